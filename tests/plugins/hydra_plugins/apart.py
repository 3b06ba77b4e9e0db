"""A launcher that runs jobs in other processes, as joblib's and submitit's do, and a sweeper that wants values."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class ApartConf:
    _target_: str = "hydra_plugins.apart.Apart"
    num: int = 1


@dataclass
class EndsConf:
    _target_: str = "hydra_plugins.apart.Ends"
    note: str = "ends.json"


ConfigStore.instance().store(group="hydra/launcher", name="apart", node=ApartConf)
ConfigStore.instance().store(group="hydra/sweeper", name="ends", node=EndsConf)


class _Plugin:
    config: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config


class Apart(_Plugin, Launcher):
    """Runs jobs in `num` processes that share nothing with the command, several one after another in each."""

    def __init__(self, num: int) -> None:
        self.num = num

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        state = Singleton.get_state()
        with ProcessPoolExecutor(self.num, get_context("spawn")) as pool:
            jobs = [
                pool.submit(_called, cloudpickle.dumps((self.context, self.task, self.config, state, list(words), num)))
                for num, words in enumerate(job_overrides, initial_job_idx)
            ]
            return [cloudpickle.loads(job.result()) for job in jobs]


def _called(job: bytes) -> bytes:
    setup_globals()
    context, task, config, state, words, num = cloudpickle.loads(job)
    Singleton.set_state(state)
    cfg = context.config_loader.load_sweep_config(config, words)
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = num
    HydraConfig.instance().set_config(cfg)
    done = run_job(
        hydra_context=context,
        task_function=task,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return cloudpickle.dumps(done)


class Ends(_Plugin, Sweeper):
    """Tries the ends of intervals, and writes down what came of them."""

    def __init__(self, note: str) -> None:
        self.note = note

    def sweep(self, arguments: list[str]) -> Any:
        launcher = Plugins.instance().instantiate_launcher(self.context, self.task, self.config)
        found: list[Any] = []
        for num, end in enumerate(("start", "end")):
            words = []
            for word, parsed in zip(arguments, OverridesParser.create().parse_overrides(arguments), strict=True):
                tried: Any = parsed.value()
                words.append(f"{parsed.key_or_group}={getattr(tried, end)}" if parsed.is_sweep_override() else word)
            try:
                found += [done.return_value for done in launcher.launch([words], num)]
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        Path(self.config.hydra.sweep.dir, self.note).write_text(json.dumps(found))

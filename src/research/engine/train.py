"""The job behind `python src/train.py`: one run, from a config to a folder that holds its result."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.engine import ranks
from research.engine.command import further_folders, shell, word
from research.engine.errors import UserError, said
from research.engine.job import tell_failure
from research.engine.record import ROOT, Record, held, recorded
from research.engine.reopen import Changes, changes, record_of, saved_config
from research.engine.stop import Stopped, asked

log = logging.getLogger(__name__)

PRETRAIN = "pretrain"  # in the run's folder: the folder of the run before it
# What a resumed run keeps: another network, split, order or idea of the best would make it another run.
FIXED = ("model", "finetune", "task", "seed", "data.", "monitor", "mode")
FIXED += ("callbacks.checkpoint.monitor", "callbacks.checkpoint.mode")  # the same, said of the checkpoint alone
FREE = ("data.batch_size", "data.num_workers", "data.cache")


def train(cfg: DictConfig, folder: Path, like: dict[str, Any] | None = None) -> float | None:
    """Trains, scores the best checkpoint, writes `metrics.json`; gives the monitored value at that checkpoint.

    Args:
        like: the record of a run that is to be made again.

    Raises:
        UserError: parts that cannot work, or a run that cannot go on as asked.
    """
    if ranks.FOLDER in os.environ:
        with ranks.together(folder, log.error), asked.before_errors():
            return _run(cfg, folder, None, record_of(folder)["was"])
    with held(folder):
        earlier, changed = None, {}
        if cfg.resume:
            earlier, changed = record_of(folder), changes(saved_config(folder), cfg)
            _refuse(changed)
            cfg.resume = None
        elif (folder / "run.json").exists():
            again = shell(word("resume", folder))
            raise UserError(f"'{folder}' is a run already; go on with it, {again}, or take another folder.")
        if cfg.pretrain:
            if "pretrained" not in cfg.model:
                raise UserError(
                    f"pretrain= is for a model that takes pretrained weights; {cfg.model._target_} does not."
                )
            cfg.model.pretrained = os.path.relpath(folder / PRETRAIN)
        with recorded(folder, cfg, earlier, changed, like) as record:
            if ranks.channel:
                ranks.channel.begun(folder)
            if cfg.pretrain:
                _pretrain([f"seed={cfg.seed}", *cfg.pretrain], folder / PRETRAIN)

            def give_up(error: BaseException) -> None:
                record.close("stopped" if isinstance(error, Stopped) else "failed", said(error))
                tell_failure(error, folder)

            ranks.hand_over(folder)
            with ranks.together(folder, give_up), asked.before_errors():
                return _run(cfg, folder, record, record.content["was"])


def _run(cfg: DictConfig, folder: Path, record: Record | None, was: str | None) -> float | None:
    from research.engine.checkpoint import load, path_of  # once the run is on record: these take seconds
    from research.engine.fit import fit
    from research.engine.report import report
    from research.engine.score import score

    parts = fit(cfg, folder, record, was)
    parts.task.load_state_dict(load(path_of(folder, "best"))["state_dict"])
    metrics = score(parts)
    if record:
        report(cfg, record, parts, metrics)
    saving: Any = parts.trainer.checkpoint_callback
    return metrics.get(cfg.monitor, saving.best)  # what is logged in training alone has no other value


def _pretrain(words: list[str], folder: Path) -> None:
    """Makes the run whose network this one starts from, in a process and a folder of its own; goes on with one begun.

    Raises:
        UserError: that run failed.
    """
    begun = (folder / "run.json").is_file()
    if begun and record_of(folder)["status"] == "finished":
        return
    ours = [word("resume", folder)] if begun else [*words, word("hydra.run.dir", str(folder).replace("${", "\\${"))]
    ours += further_folders()
    log.info("pretrain   python src/train.py %s", shell(*words))
    environment = ranks.alone() | {ranks.PARENT: str(os.getpid())}
    process = subprocess.Popen([sys.executable, str(ROOT / "src/train.py"), *ours], env=environment)
    try:
        code = process.wait()
    finally:
        process.terminate()  # of no effect on one that has ended
        process.wait()
    if code:
        raise UserError(f"the run before this one failed with code {code}; see {os.path.relpath(folder)}/train.log.")


def _refuse(changed: Changes) -> None:
    wrong = [key for key in changed if key.startswith(FIXED) and not key.startswith(FREE)]
    if wrong:
        asked = ", ".join(f"{key}={changed[key][1]} (was {changed[key][0]})" for key in wrong)
        raise UserError(
            f"a resumed run keeps its network, what of it learns, its data, seed and monitor; this asks for {asked}. "
            "Start a new run."
        )

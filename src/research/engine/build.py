"""From a config to live objects: data, task and trainer, top to bottom."""

import logging
import os
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from omegaconf import DictConfig, OmegaConf
from torch.nn.modules.batchnorm import _BatchNorm

from research.data.base import Data
from research.data.spec import Spec
from research.engine.checkpoint import Files
from research.engine.compatible import contradictions
from research.engine.direction import opposed, settle, ways
from research.engine.errors import UserError, trace, unknown, unreadable
from research.engine.features import fill, usable
from research.engine.finetune import Finetune, LeftOut
from research.engine.lightning_ranks import environment, prepare
from research.engine.loggers import made
from research.engine.pictures import Pictures
from research.engine.pretrained import from_run
from research.engine.randomness import WEIGHTS, SeedEachBatch, fold
from research.engine.rehearsal import unscored
from research.engine.schedules import StepPlateau
from research.engine.trust import literal
from research.engine.warm_start import own_settings, start_from_run

log = logging.getLogger(__name__)

TOO_LARGE = "can't allocate memory|size calculation overflowed|out of memory"  # in what torch says
# What a part says that cannot work as asked; any other exception is a fault of the code.
TOLD = (
    ValueError,
    MisconfigurationException,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


@dataclass
class Parts:
    data: Data
    task: Any
    trainer: Trainer
    plan: Finetune


def make(node: Any) -> Any:
    """A yaml node as an object; with `_partial_: true` as a function to be called with what yaml cannot hold."""
    return instantiate(_resolved(node), _convert_="all")


def maker(node: Any) -> Any:
    """A yaml node as a function to be called with what yaml cannot hold, whether or not it says `_partial_: true`."""
    return instantiate(_resolved(node), _partial_=True, _convert_="all")


def _resolved(node: Any) -> Any:
    """The plain values of a node, with what looks like a reference escaped twice, as Hydra resolves twice."""
    return literal(literal(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node))


def build(
    cfg: DictConfig,
    folder: Path,
    more: Sequence[Callback] = (),
    state: dict[str, Any] | None = None,
    fitted: Spec | None = None,
    read: bool = True,
) -> Parts:
    """Builds what a run needs, in `folder`.

    Args:
        more: callbacks beside those of the config.
        state: a checkpoint of the run, whose weights the network gets: those that are scored, the average where
            weights are averaged.
        fitted: the spec of the run, for rows that it was not made with.
        read: whether there are such rows; else the data is only good for `inputs`.

    Raises:
        UserError: parts that cannot work, or not together; all that are found are told at once.
    """
    _hush()
    _raise(list(contradictions(cfg)))
    cfg = from_run(cfg, folder) if state else cfg
    seed_all(fold(cfg.seed, WEIGHTS))
    data = read_data(cfg, fitted, read)
    problems: list[str] = []
    with _blame(problems, "augment", cfg):
        data.augment = maker(cfg.augment)(spec=data.spec)
    with _blame(problems, "model", cfg):
        net = maker(own_settings(cfg.model))(spec=data.spec)
        if state is None:
            start_from_run(net, cfg.model, data.spec)
    with _blame(problems, "finetune", cfg):
        plan = make(cfg.finetune)
    with _blame(problems, "loss", cfg):
        loss = maker(cfg.loss if "_target_" in cfg.loss else cfg.loss[data.spec.target])(spec=data.spec)
    with _blame(problems, "metrics", cfg):
        metrics = {name: maker(node) for name, node in _named(cfg.metrics, data.spec.target)}
    with _blame(problems, "optimizer", cfg, TypeError):  # would else be told only when the fit begins
        _check_rounding(maker(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))]), cfg.trainer.precision)
    _raise(problems)

    known = ways(metrics)
    undecided = settle(cfg, known)
    before = opposed(DictConfig(literal(state.get("config", {}))), known) if state else ()  # a run opens as it was made
    problems += sorted({*opposed(cfg, known)}.difference(before))
    _raise(problems)

    with _blame(problems, "finetune", cfg):
        plan.prepare(net)
    with _blame(problems, "trainer", cfg, TypeError, ImportError):
        trainer = _trainer(cfg, folder, [plan, LeftOut(), SeedEachBatch(cfg.seed), StepPlateau(), Pictures(), *more])
    _raise(problems)

    with _blame(problems, "task", cfg):
        task = maker(cfg.task)(
            net=net,
            spec=data.spec,
            loss=loss,
            metrics=metrics,
            optimizer=maker(cfg.optimizer),
            lr=cfg.optimizer.lr,
            groups=plan.groups,
            scheduler=maker(cfg.scheduler),
        )
        problems += _unwatched(cfg, task.logged)
        problems += [
            f"{key}=auto: the class of the metric {name} does not say which way is better; take {key}=min or max."
            for key, name in undecided.items()
            if name in task.logged
        ]
        problems += [] if state else task.refusals(cfg, trainer)
    if trainer.world_size > 1:
        problems += _alone(cfg, plan, trainer, new=state is None)
        normed = any(isinstance(module, _BatchNorm) for module in net.modules())
        if normed and cfg.trainer.sync_batchnorm and not _syncs(cfg.trainer) and trainer.is_global_zero:
            log.warning(
                "batch norm is of each process by itself: only GPUs share its statistics (trainer.sync_batchnorm), so "
                "the result is not that of one process"
            )
    _raise(problems)
    _raise(list(unscored(data, task, trainer)))
    if state:
        task.load_state_dict(state["state_dict"])
    if cfg.cache and usable(net, data, plan):
        with _blame(problems, "cache", cfg):
            fill(task, data, Path(cfg.cache.folder), int(cfg.cache.max_bytes), trainer)
        _raise(problems)
    if cfg.compile:
        net.compile()  # in place, which leaves the names in a checkpoint as they are
    return Parts(data, task, trainer, plan)


def read_data(cfg: DictConfig, fitted: Spec | None = None, read: bool = True) -> Data:
    """The data of a run, split. Arguments and errors are those of `build`."""
    problems: list[str] = []
    with _blame(problems, "data", cfg):
        data = maker(cfg.data)(shuffle=cfg.shuffle, seed=cfg.seed)
        data.fitted = fitted
        if read:
            data.setup()
        elif fitted:
            data.spec = fitted
    _raise(problems)
    return data  # pyright: ignore[reportPossiblyUnboundVariable]


def _trainer(cfg: DictConfig, folder: Path, more: Sequence[Callback]) -> Trainer:
    """With the callbacks of the config and more; without those that Lightning refuses where they are of no use."""
    callbacks: list[Callback] = [*map(make, _present(cfg.get("callbacks")).values()), *more]
    logger = made(cfg.logger or {}, folder)
    useless = [] if logger else [LearningRateMonitor]
    useless += [] if cfg.trainer.get("enable_progress_bar", True) else [ProgressBar]
    callbacks = [callback for callback in callbacks if not isinstance(callback, tuple(useless))]
    trainer = maker(cfg.trainer)(
        callbacks=callbacks,
        logger=logger,
        default_root_dir=folder,
        plugins=[Files(), environment()],
        precision=_precision(cfg.trainer.precision),
        sync_batchnorm=_syncs(cfg.trainer),
        use_distributed_sampler=False,  # the order of batches is ours, see data/batches.py
        enable_model_summary=False,  # a callback in conf/callbacks
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),  # and so is this one
    )
    prepare(trainer)
    if cfg.trainer.precision == "16-mixed" and trainer.precision != "16-mixed":  # Lightning would take another
        raise ValueError("precision=16-mixed is for a GPU; here take precision=bf16-mixed")
    return trainer


def _named(node: Any, target: str) -> Iterator[tuple[str, Any]]:
    """Each metric of a config with its name; of an `auto` option those for the kind of target that the data has.

    Raises:
        ValueError: what stands there is no metric.
    """
    for name, part in node.items():
        if isinstance(part, DictConfig) and "_target_" in part:
            yield name, part
        elif isinstance(part, DictConfig) and name == target:
            yield from _named(part, target)
        elif part is not None and name not in ("class", "value"):
            raise ValueError(f"'{name}' is no metric, as it has no _target_; those of an auto option are in {target}.*")


def _present(node: Any) -> dict[str, Any]:
    """The parts of a node, without those that are switched off by null."""
    return {str(key): part for key, part in (node or {}).items() if part is not None}


def seed_all(seed: int) -> None:
    """For what draws outside a training step; inside one, see `randomness.py`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _hush() -> None:
    """Leaves on the screen what is about this run."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # whose report is asked for
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own
    warnings.filterwarnings("ignore", message="`LightningModule.configure_optimizers` returned `None`")  # task=fitted
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode at the start of training")  # the plan's
    warnings.filterwarnings("ignore", message="ReduceLROnPlateau conditioned on metric")  # see StepPlateau
    warnings.filterwarnings("ignore", message="`training_step` returned `None`")  # see memory.py
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # on a machine that others train on
    warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")  # which is refused
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")  # sizes in 32 bits
    # of a resumed run
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")  # exactly
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")


def _precision(given: str) -> str:
    if given != "auto":
        return given
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _syncs(trainer: DictConfig) -> bool:
    """Whether processes share the statistics of batch norm, which torch has on GPUs alone."""
    gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return bool(trainer.sync_batchnorm) and gpu


def _check_rounding(optimizer: torch.optim.Optimizer, precision: Any) -> None:
    eps = optimizer.defaults.get("eps")
    if precision == "16-true" and eps and torch.tensor(eps, dtype=torch.float16) == 0:
        raise ValueError(
            f"optimizer.eps={eps:g}, by which steps are divided, is 0 in trainer.precision=16-true; take "
            "optimizer.eps=1e-4, or another precision: 16-mixed (on a GPU), bf16-mixed or 32-true"
        )


def _alone(cfg: DictConfig, plan: Finetune, trainer: Trainer, new: bool) -> Iterator[str]:
    """Settings that several processes cannot have."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        yield (
            f"trainer.num_nodes={trainer.num_nodes}: nothing says where the other nodes are. Start the run under Slurm "
            "or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each node."
        )
    for key in ("find_lr", "find_batch_size"):
        if new and cfg[key]:  # a run that goes on does not search again
            yield (
                f"{key} searches in one process; search with trainer.devices=1, then give what it finds to the run of "
                "several."
            )
    if plan.unfreeze:  # gradients are exchanged for what learns when the fit begins
        yield (
            "finetune.unfreeze changes what learns during the run, which several processes cannot follow; take one "
            "(trainer.devices=1), or finetune=full, head or lora."
        )
    if OmegaConf.select(cfg, "callbacks.finite.policy") == "rollback":
        yield (
            "callbacks.finite.policy=rollback begins the fit anew, which several processes cannot do together; take "
            "one (trainer.devices=1), or policy=stop or skip."
        )


def _unwatched(cfg: DictConfig, logged: set[str]) -> Iterator[str]:
    """Every `monitor` that names a metric nobody logs, and settings under which nothing is logged or saved."""
    callbacks, validates = _present(cfg.get("callbacks")), cfg.trainer.get("limit_val_batches") != 0
    logged = logged if validates else {name for name in logged if not name.startswith("val/")}
    for path, node in [("scheduler", cfg.scheduler), *((f"callbacks.{key}", node) for key, node in callbacks.items())]:
        name = node.get("monitor")
        if path == "scheduler" and name is not None and not str(name).startswith("val/"):
            yield f"scheduler.monitor={name}: the schedule looks right after each validation; take a metric of val/."
        if name is not None and name not in logged:
            why = "" if validates else " (trainer.limit_val_batches=0 leaves no val/ metrics)"
            yield f"{path}.monitor: {unknown('logged metric', name, logged)}{why}"
    if cfg.get("callbacks") and "checkpoint" not in callbacks:
        yield "callbacks.checkpoint saves what every run needs; it cannot be left out."


@contextmanager
def _blame(problems: list[str], part: str, cfg: DictConfig, *also: type[Exception]) -> Iterator[None]:
    """Collects what a part says is wrong with its arguments, so that the other parts are still looked at.

    Args:
        cfg: the settings, one of which may name a file that the part cannot read.
        also: errors that say it, beside those that always do.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, MemoryError | OverflowError) or re.search(TOO_LARGE, str(cause)):
            problems.append(f"{part}: more is asked for than memory can hold: {_sentence(cause)}")
        elif isinstance(cause, (*TOLD, *also)):
            said = unreadable(cause, OmegaConf.to_container(cfg, resolve=True)) if isinstance(cause, OSError) else ""
            problems.append(f"{part}: {said or _sentence(cause)}")
        else:
            raise
        trace.debug("%s", part, exc_info=cause)


def _sentence(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?")) else f"{text}."


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError(*dict.fromkeys(problems))

"""A finished run as live objects, for the jobs that score or export it: one device, no logger, no callbacks."""

from pathlib import Path

from omegaconf import DictConfig

from research.engine.build import Parts, build
from research.engine.checkpoint import path_of
from research.engine.errors import UserError
from research.engine.reopen import changes, saved_config, tell


def opened(cfg: DictConfig, folder: Path, *, cached: bool) -> Parts:
    """Builds a run from its own config with the changes of the command, which are told.

    Args:
        cfg: the run's own, with the changes of the command.
        cached: whether the outputs of a frozen base may stand for its inputs.

    Raises:
        UserError: a checkpoint that runs do not have, or parts that cannot work.
    """
    if cfg.checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={cfg.checkpoint}: a run has the checkpoints best and last.")
    tell(changes(saved_config(folder), cfg))
    cfg.callbacks, cfg.logger = {}, None
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    if not cached:
        cfg.cache = None
    return build(cfg, folder, start=path_of(folder, cfg.checkpoint))

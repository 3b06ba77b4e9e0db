"""A finished run as live objects, for the jobs that score or export it: one device, no logger, no callbacks."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from research.engine.build import Parts, build
from research.engine.checkpoint import FOLDER
from research.engine.errors import UserError
from research.engine.reopen import changes, saved_config

log = logging.getLogger(__name__)


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
    for key, (before, after) in changes(saved_config(folder), cfg).items():
        log.info("changed    %s: %s -> %s", key, before, after)
    cfg.callbacks, cfg.logger = {}, None
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    if not cached:
        cfg.cache = None
    return build(cfg, folder, start=folder / FOLDER / f"{cfg.checkpoint}.ckpt")

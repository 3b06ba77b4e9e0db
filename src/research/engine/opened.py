"""A finished run as live objects, for the jobs that score or export it: one device, no logger, no callbacks."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.engine.reopen import reopened

log = logging.getLogger(__name__)


def opened(cfg: DictConfig, folder: Path, name: str, *, cached: bool) -> Parts:
    """Builds a run from its own config with the changes of the command, which are told.

    Args:
        name: the primary config `cfg` was composed from.
        cached: whether the outputs of a frozen base may stand for its inputs.

    Raises:
        UserError: a checkpoint that runs do not have, or parts that cannot work.
    """
    if cfg.checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={cfg.checkpoint}: a run has the checkpoints best and last.")
    saved, changes = reopened(cfg, folder, name)
    for key, (before, after) in changes.items():
        log.info("changed    %s: %s -> %s", key, before, after)
    saved.callbacks, saved.logger = {}, None
    saved.trainer.devices, saved.trainer.num_nodes, saved.trainer.strategy = 1, 1, "auto"
    if not cached:
        saved.cache = None
    return build(saved, folder)

"""A finished run as live objects, for the jobs that score or export it: one device, no logger, no callbacks."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from research.data.spec import Spec
from research.engine.build import Parts, build
from research.engine.checkpoint import load, path_of
from research.engine.errors import UserError
from research.engine.reopen import changes, record_of, saved_config, tell

log = logging.getLogger(__name__)

FILES = ("data.path", "data.train", "data.val", "data.test", "data.name")


def opened(cfg: DictConfig, folder: Path, *, cached: bool, read: bool = True) -> Parts:
    """Builds a run from its own config with the changes of the command, which are told.

    Where the command names other files, all their rows are test rows, read as the run reads its own.

    Args:
        cfg: the run's own, with the changes of the command.
        cached: whether the outputs of a frozen base may stand for its inputs.
        read: whether rows are read at all.

    Raises:
        UserError: a checkpoint that runs do not have, or parts that cannot work.
    """
    if cfg.checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={cfg.checkpoint}: a run has the checkpoints best and last.")
    changed = changes(saved_config(folder), cfg)
    tell(changed)
    fitted = None
    if named := [key.removeprefix("data.") for key in changed if key in FILES]:
        for key in {"path", "train", "val", "test"} - set(named):
            cfg.data[key] = None
    if named or not read:
        fitted = Spec.read(record_of(folder)["data"]["spec"])
    cfg.callbacks, cfg.logger = {}, None
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    if not cached:
        cfg.cache = None
    parts = build(cfg, folder, state=load(path_of(folder, cfg.checkpoint)), fitted=fitted, read=read)
    if fitted is None and parts.data.fingerprint != record_of(folder)["data"]["fingerprint"]:
        log.warning("warning    the data is not what the run was made with: its content has changed")
    return parts

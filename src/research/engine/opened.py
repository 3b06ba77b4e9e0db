"""A finished run as live objects, for the jobs that score or export it: one device, no logger, no callbacks."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from omegaconf import DictConfig

from research.data.base import Data
from research.data.file_data import FileData
from research.data.spec import Spec
from research.engine.build import Parts, build, read_data
from research.engine.checkpoint import load, path_of
from research.engine.errors import UserError
from research.engine.pretrained import from_run
from research.engine.reopen import Changes, changes, record_of, saved_config, tell

CHANGED = (
    "a run's own rows are read as it read them: where they have changed since, put them back; new rows are scored from "
    "a file of another name, data.path=FILE. A relative path counts from the folder that the command runs in."
)
FILES = ("data.path", "data.train", "data.val", "data.test", "data.name")


def opened(cfg: DictConfig, folder: Path, *, cached: bool, read: bool = True) -> Parts:
    """Builds a run from its own config with the changes of the command, which are told.

    Where the command names other files, all their rows are test rows, read as the run reads its own.

    Args:
        cfg: the run's own, with the changes of the command.
        cached: whether the outputs of a frozen base may stand for its inputs.
        read: whether rows are read at all.

    Raises:
        UserError: a checkpoint that runs do not have, data that is not the run's, or parts that cannot work.
    """
    if cfg.checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={cfg.checkpoint}: a run has the checkpoints best and last.")
    changed = changes(saved_config(folder), cfg)
    tell(changed)
    if (made_with := record_of(folder).get("data")) is None:
        raise UserError(f"'{folder.name}' ended before its data was read, so it has no network; see its train.log.")
    fitted = None
    if named := [key.removeprefix("data.") for key in changed if key in FILES]:
        for key in {"path", "train", "val", "test"} - set(named):
            cfg.data[key] = None
    if named or not read:
        fitted = Spec.read(made_with["spec"])
    cfg.callbacks, cfg.logger = {}, None
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    if not cached:
        cfg.cache = None
    try:
        parts = build(cfg, folder, state=load(path_of(folder, cfg.checkpoint)), fitted=fitted, read=read)
    except UserError as error:
        if fitted is None and read and any(problem.startswith("data: ") for problem in error.problems):
            raise UserError(*error.problems, CHANGED) from error
        raise
    except RuntimeError:  # weights of another shape than the data asks for, if it is not the run's own
        if fitted is None:
            _refuse_others(read_data(from_run(cfg, folder)), folder, made_with, changed)
        raise
    if fitted is None:
        _refuse_others(parts.data, folder, made_with, changed)
    return parts


def _refuse_others(data: Data, folder: Path, made_with: dict[str, Any], changed: Changes) -> None:
    """Raises a UserError for rows that are not the run's own, or not split as they were: train rows would be tested."""
    splits = folder / "splits.npz"
    try:
        before = dict(np.load(splits, allow_pickle=False)) if splits.is_file() else {}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"'{splits}' cannot be read: {error}.") from error
    same = all(np.array_equal(rows, data.ids[name].numpy()) for name, rows in before.items())
    if same and data.fingerprint == made_with["fingerprint"]:
        return
    asked = [f"{key}={now}" for key, (_, now) in changed.items() if key.startswith("data.")]
    why = f"{', '.join(asked)} makes it other data" if asked else "its content has changed"
    new = (
        "; or name rows to be scored, data.path=FILE, which are then all test rows"
        if isinstance(data, FileData)
        else ""
    )
    raise UserError(
        f"the data is not what '{folder.name}' was made with: {why}, so that rows it was trained on could be scored as "
        f"test rows. Put it back{new}."
    )

"""The checkpoints of a run: `best.ckpt` and `last.ckpt`, tensors and plain values only."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from research.engine.errors import UserError

FOLDER = "checkpoints"


class RunCheckpoint(ModelCheckpoint):
    """One file, saved after validation at the end of an epoch: of the best epoch by `monitor`, or of the last one.

    Its state holds file names, not paths, so that a run folder may be moved and still knows its best.

    Args:
        filename: `best` or `last`.
        monitor: None to save every epoch.
        mode: whether a small or a large value of `monitor` is better.
    """

    def __init__(self, filename: Literal["best", "last"], monitor: str | None, mode: Literal["min", "max"]) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self._last_global_step_saved = -1  # else a network that is fitted, in no step, would not be saved

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return state | {key: Path(state[key]).name for key in paths} | {"best_k_models": best, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        here = Path(self.dirpath)
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {str(here / name): score for name, score in state_dict["best_k_models"].items()}
        whole = {key: str(here / state_dict[key]) if state_dict[key] else "" for key in paths}
        super().load_state_dict(state_dict | whole | {"best_k_models": best, "dirpath": self.dirpath})


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running code from it.

    Raises:
        UserError: it is missing, damaged (the checksums in the file are checked, which torch does not), or holds
            anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise UserError(f"the checkpoint '{path}' is damaged at '{broken}'.")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint '{path}'; did the run finish an epoch?") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the checkpoint '{path}' cannot be read: {error}") from error


def load_weights(task: nn.Module, path: Path) -> None:
    """Puts the weights of a checkpoint into a task: the evaluated ones, which are the average with weight averaging.

    Raises:
        UserError: as `load` does.
    """
    task.load_state_dict(load(path)["state_dict"])


def path_of(run: Path, which: str) -> Path:
    """Where a run has its checkpoint `best` or `last`."""
    return run / FOLDER / f"{which}.ckpt"


def newest(run: Path) -> tuple[Path, int, int]:
    """The good checkpoint of a run that is furthest on: its path, its epoch (counted from 0) and its step.

    Raises:
        UserError: there is none; the reason for each file is told.
    """
    found, reasons = [], []
    for path in sorted((run / FOLDER).glob("*.ckpt")):
        try:
            checkpoint = load(path)
            found.append((checkpoint["global_step"], path.name == "last.ckpt", path, checkpoint["epoch"]))
        except UserError as error:
            reasons.append(str(error))
    if not found:
        raise UserError(f"'{run}' has no checkpoint to go on from. {' '.join(reasons)}".strip())
    step, _, path, epoch = max(found)
    return path, epoch, step

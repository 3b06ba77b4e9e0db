"""Scores a checkpoint of a run on its validation and test rows."""

from pathlib import Path
from typing import Literal

from research.engine.build import Parts
from research.engine.checkpoint import FOLDER, load

Which = Literal["best", "last"]


def score(parts: Parts, folder: Path, which: Which) -> dict[str, float]:
    """Loads the weights of a checkpoint into the task and gives its flat metrics, `val/...` and `test/...`.

    The weights are the evaluated ones: with weight averaging, the average.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    parts.task.load_state_dict(load(folder / FOLDER / f"{which}.ckpt")["state_dict"])
    trainer = parts.trainer
    found: dict[str, float] = {}
    for run in (trainer.validate, trainer.test):
        run(parts.task, datamodule=parts.data, verbose=False)
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return found

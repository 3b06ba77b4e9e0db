"""TensorBoard: one run folder is one run, also after a resume, and its row in the HParams tab has real numbers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

RESULT = ".result"


class TensorBoard(TensorBoardLogger):
    """Writes into the run folder itself.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def restart(self, step: int) -> None:
        """Drops the points from `step` on, which a resumed run will draw again."""
        self._kwargs["purge_step"] = step

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Calls a rate `train/lr`, whatever the optimizer, so that runs share one chart.

        Left out are the epoch, and the rate of parameters that do not decay, which is that of the others.
        """
        kept = {k: v for k, v in metrics.items() if k != "epoch" and not k.endswith("/kept")}
        super().log_metrics({re.sub("^lr-[^/]+", "train/lr", k).removesuffix("/decayed"): kept[k] for k in kept}, step)

    def save(self) -> None:
        """Leaves no file of hyperparameters beside the run's own config."""
        self.experiment.flush()

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """A run killed later keeps the points up to this checkpoint, from which it will go on."""
        self.experiment.flush()

    @rank_zero_only
    def log_result(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """The row of this run in the HParams tab, in an event file of its own: a resumed run writes it anew.

        Args:
            settings: numbers, strings and booleans a person would compare.
            metrics: of the best checkpoint; `val/...` is shown as `val_best/...`, apart from the curve of that name.
            step: at the end of the run.
        """
        for old in Path(self.log_dir).glob(f"*{RESULT}"):
            old.unlink()
        best = {name.replace("val/", "val_best/"): value for name, value in metrics.items()}
        with SummaryWriter(self.log_dir, filename_suffix=RESULT) as writer:
            for name, value in best.items():
                writer.add_scalar(name, value, step)
            for summary in hparams(settings, best):
                writer._get_file_writer().add_summary(summary)

"""What every dataset of the template is: a DataModule that says what it holds and augments its training batches."""

from abc import abstractmethod
from typing import Any

from lightning import LightningDataModule
from torch import nn

from research.data.spec import Spec
from research.engine.randomness import AUGMENT, fold, reseed


class Data(LightningDataModule):
    """After `setup`, `spec` says what (x, y) are and `fingerprint` names the content.

    Args:
        batch_size: rows a step, over all devices together.
        seed: of the order of rows and of augmentation.
    """

    spec: Spec
    fingerprint: str

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.augment: nn.Module | None = None  # (x, y) -> (x, y), set by build

    @property
    @abstractmethod
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments a training batch on its device; the draw is a function of (seed, epoch, batch, process)."""
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training:
            return batch
        batch_idx = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # counts this batch only from now on
        reseed(fold(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, AUGMENT))
        return self.augment(*batch)

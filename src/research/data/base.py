"""What every dataset of the template is: a DataModule that says what it holds and augments its training batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from research.data.batches import BatchOrder, Rows, Tokens
from research.data.spec import Spec
from research.data.workers import workers
from research.engine.randomness import AUGMENT, fold, reseed
from research.engine.schedules import position
from research.engine.stop import asked


@dataclass(frozen=True)
class Inputs:
    """Rows to predict.

    Attributes:
    given: the rows as they are in the file: an Arrow batch.
    x: of those that can be read.
    good: (n,) their places among the rows.
    wrong: the place of each other row, and why it cannot be read.
    """

    given: Any
    x: Any
    good: Tensor
    wrong: list[tuple[int, str]]


class Data(LightningDataModule):
    """`setup` fills `rows`, `spec` (what x and y are) and `fingerprint` (a hash of the content).

    Args:
        batch_size: rows a step, over all devices together.
        shuffle: draw a new order of the training rows each epoch.
        seed: of the order of rows and of augmentation.
    """

    spec: Spec
    fingerprint: str
    source: str | None = None  # where the rows come from, when the name does not say it
    fitted: Spec | None = None  # of the run that is opened on other rows, which are then all `test`
    balanced = False  # whether training rows are drawn so that each class comes equally often
    num_workers = 0  # processes that read batches
    start = (0, 0)  # the epoch and the batch with which training begins

    def __init__(self, batch_size: int, shuffle: bool, seed: int) -> None:
        super().__init__()
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rows: dict[str, Rows | Tokens] = {}
        self.features: dict[str, Tensor] = {}  # what a frozen base outputs for each row, in place of x
        self.ids: dict[str, Tensor] = {}  # which rows of the source each split has
        self.findings: list[str] = []  # what was warned of
        self.augment: nn.Module | None = None  # (x, y) -> (x, y), set by build

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments a training batch on its device; the draw is a function of (seed, epoch, batch, process)."""
        asked.heed()
        trainer = self.trainer
        if trainer is None or not trainer.training:
            return batch
        # counts this batch only from now on
        return self._augmented(batch, trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _augmented(self, batch: Any, trainer: Any, batch_idx: int) -> Any:
        if self.augment is None:
            return batch
        reseed(fold(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, AUGMENT))
        return self.augment(*batch)

    def batch(self, batch_idx: int) -> tuple[Tensor, Any]:
        """A training batch of this epoch again: which of the training rows it has, (B,), and the batch as it was."""
        trainer: Any = self.trainer
        loader = trainer.train_dataloader
        index = loader.sampler.shares()[batch_idx]
        # not by the strategy, which would augment it
        batch = trainer.precision_plugin.convert_input(loader.dataset[index])
        batch = move_data_to_device(batch, trainer.strategy.root_device)
        return index, self._augmented(batch, trainer, batch_idx)

    def _loader(self, split: str, seed: int | None) -> DataLoader[Any]:
        rows, trainer = self.rows[split], self.trainer
        place = {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}
        train = split == "train"
        labels = rows.labels if self.balanced and train and seed is not None else None
        order = BatchOrder(
            len(rows), self.batch_size, seed=seed, train=train, lengths=rows.lengths, balance=labels, **place
        )
        if train:  # processes that read ahead do so before Lightning sets the epoch
            order.start, order.epoch = self.start, self.start[0]
        held = Rows(self.features[split], rows.labels) if self.features else rows
        read: dict[str, Any] = workers(self.num_workers)
        return DataLoader(held, sampler=order, batch_size=None, pin_memory=torch.cuda.is_available(), **read)

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        epoch, batch = position(self.trainer)
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["epoch"], state_dict["batch"]

    def inputs(self, path: str) -> Iterator[Inputs]:
        """Rows of a file to predict, batch by batch. Raises ValueError where this data has no file."""
        raise ValueError(f"a run on {type(self).__name__} cannot read files; train with data=table, text or images")

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", self.seed if self.shuffle else None)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", None)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", None)

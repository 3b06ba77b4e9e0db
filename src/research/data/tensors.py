"""The base of datasets that fit in memory: splits, scaling statistics and batches from two tensors."""

import hashlib
from abc import abstractmethod
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader

from research.data.base import Data
from research.data.batches import BatchOrder, Rows
from research.data.spec import Spec
from research.engine.values import Fractions, NonNegativeInt, PositiveInt


class TensorData(Data):
    """Give `read`; the rest follows.

    Args:
        batch_size: rows a step, over all devices together.
        fractions: of the rows for train, val and test.
        split_seed: of the split alone, so that runs over seeds share one test set.
        shuffle: draw a new order of the training rows each epoch.
        seed: of that order.
    """

    def __init__(
        self, batch_size: PositiveInt, fractions: Fractions, split_seed: NonNegativeInt, shuffle: bool, seed: int
    ) -> None:
        super().__init__(batch_size, seed)
        self.fractions, self.split_seed, self.shuffle = fractions, split_seed, shuffle
        self.rows: dict[str, Rows] = {}

    @abstractmethod
    def read(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The whole dataset, unscaled: x, y and the class names.

        Returns:
            x: (N, D) features, or (N, C, H, W) images in [0, 1]; float32.
            y: (N,) class indices, int64, or (N, K) values, float32.
            names of the classes, in the order of their indices; empty for values.
        """

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits, and measures the training rows; once."""
        if self.rows:
            return
        x, y, classes = self.read()
        ids = _split(y, self.fractions, self.split_seed, stratify=bool(classes))
        self.rows = {name: Rows(x, y, part) for name, part in zip(("train", "val", "test"), ids, strict=True)}
        self.spec = _describe(self.rows["train"], classes)
        self.fingerprint = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()

    @property
    def num_rows(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def _loader(self, split: str, seed: int | None) -> DataLoader[Any]:
        rows, trainer = self.rows[split], self.trainer
        place = {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}
        order = BatchOrder(len(rows), self.batch_size, seed=seed, train=split == "train", **place)
        return DataLoader(rows, sampler=order, batch_size=None, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", self.seed if self.shuffle else None)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", None)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", None)


def _split(y: Tensor, fractions: list[float], seed: int, stratify: bool) -> list[Tensor]:
    """Disjoint, sorted row ids for train, val and test; a function of its arguments alone."""
    ids = torch.arange(len(y)).numpy()
    labels = y.numpy()
    rest, test = train_test_split(ids, test_size=fractions[2], random_state=seed, stratify=labels if stratify else None)
    share = fractions[1] / (fractions[0] + fractions[1])
    train, val = train_test_split(rest, test_size=share, random_state=seed, stratify=labels[rest] if stratify else None)
    return [torch.from_numpy(part).sort().values for part in (train, val, test)]


def _describe(train: Rows, classes: tuple[str, ...]) -> Spec:
    x, y = train.x, train.y
    over = [d for d in range(x.dim()) if d != 1]  # all but features or channels
    return Spec(
        kind="image" if x.dim() == 4 else "features",
        shape=tuple(x.shape[1:]),
        target="class" if classes else "value",
        classes=classes,
        x_mean=tuple(x.mean(over).tolist()),
        x_std=tuple(x.std(over, correction=0).tolist()),
        y_mean=() if classes else tuple(y.mean(0).tolist()),
        y_std=() if classes else tuple(y.std(0, correction=0).tolist()),
        class_counts=tuple(torch.bincount(y, minlength=len(classes)).tolist()) if classes else (),
    )

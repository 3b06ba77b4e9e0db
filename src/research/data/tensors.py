"""The base of datasets that fit in memory: splits and scaling statistics from two tensors."""

import hashlib
from abc import abstractmethod

import torch
from torch import Tensor

from research.data.base import Data
from research.data.batches import Rows
from research.data.spec import Spec
from research.data.splits import random_split
from research.engine.values import Fractions, PositiveInt, Seed


class TensorData(Data):
    """Give `read`; the rest follows.

    Args:
        batch_size, shuffle, seed: see `Data`.
        fractions: of the rows for train, val and test.
        split_seed: of the split alone, so that runs over seeds share one test set.
    """

    def __init__(
        self, batch_size: PositiveInt, fractions: Fractions, split_seed: Seed, shuffle: bool, seed: int
    ) -> None:
        super().__init__(batch_size, shuffle, seed)
        self.fractions, self.split_seed = fractions, split_seed

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
        self.ids = random_split(y, self.fractions, self.split_seed, stratify=bool(classes))
        self.rows = {name: Rows(x[part], y[part]) for name, part in self.ids.items()}
        self.spec = _describe(x[self.ids["train"]], y[self.ids["train"]], classes)
        self.fingerprint = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()


def _describe(x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Spec:
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

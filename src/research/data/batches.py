"""Batches as slices of tensors: a batch is one indexing call, and its order a pure function of (seed, epoch)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from research.engine.randomness import fold


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of two aligned tensors.

    Args:
        x: (N, ...).
        y: (N,) classes or (N, K) values.
        ids: (n,) which of the N rows these are.
    """

    def __init__(self, x: Tensor, y: Tensor, ids: Tensor) -> None:
        self.x, self.y, self.ids = x[ids], y[ids], ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a vector of indices (B,), gives x (B, ...) and y (B,) or (B, K)."""
        return self.x[index], self.y[index]


class BatchOrder(Sampler[Tensor]):
    """The indices of each batch, for `DataLoader(rows, sampler=..., batch_size=None)`.

    `batch_size` counts the rows of all processes together, so that a run means the same on one device and on eight.
    In training the processes share out each batch; where shares differ by a row, `weight` makes up for it. (A last
    batch with fewer rows than processes is left out.) In evaluation every row goes to exactly one process.

    Args:
        num_rows: N.
        batch_size: B, over all processes.
        seed: None for the given order, every time the same.
        rank: this process, of `world_size`.
    """

    def __init__(
        self, num_rows: int, batch_size: int, *, seed: int | None, train: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_rows, self.batch_size, self.seed, self.train = num_rows, batch_size, seed, train
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def _batches(self) -> list[Tensor]:
        if self.seed is None:
            order = torch.arange(self.num_rows)
        else:
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(fold(self.seed, self.epoch)))
        if not self.train:
            share = -(-self.batch_size // self.world_size)
            return list(order[self.rank :: self.world_size].split(share))
        shared = [batch for batch in order.split(self.batch_size) if len(batch) >= self.world_size]
        return [batch[self.rank :: self.world_size] for batch in shared]

    def weight(self, batch_idx: int) -> float:
        """The factor of this process's mean loss that makes the mean over processes the mean over rows."""
        rows = min(self.batch_size, self.num_rows - batch_idx * self.batch_size)
        return len(range(self.rank, rows, self.world_size)) * self.world_size / rows

    def __iter__(self) -> Iterator[Tensor]:
        # a generator: on a resume Lightning makes the iterator before it sets the epoch, and draws from it after
        yield from self._batches()

    def __len__(self) -> int:
        if not self.train:
            share = -(-self.batch_size // self.world_size)
            rows = len(range(self.rank, self.num_rows, self.world_size))
            return -(-rows // share)
        full, rest = divmod(self.num_rows, self.batch_size)
        return full + (rest >= self.world_size)

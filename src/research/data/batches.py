"""Batches as slices of tensors: a batch is one indexing call, and its order a pure function of (seed, epoch).

B rows or texts, T tokens of the longest text in a batch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from research.engine.errors import UserError
from research.engine.randomness import fold

POOL = 32  # batches whose texts are sorted by length together


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Two aligned tensors.

    Args:
        x: (N, ...).
        y: (N,) classes or (N, K) values.
    """

    lengths: Tensor | None = None

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    @property
    def labels(self) -> Tensor:
        """(N,) classes or (N, K) values, in the order of the rows."""
        return self.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a vector of indices (B,), gives x (B, ...) and y (B,) or (B, K)."""
        return self.x[index], self.y[index]


class Tokens(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Texts as token ids, padded to the longest of a batch and no further.

    Args:
        ids: (T,) of each text.
        y: (N,) classes.
        pad: the id of the padding token.
    """

    def __init__(self, ids: list[Tensor], y: Tensor, pad: int) -> None:
        self.ids, self.y, self.pad = ids, y, pad
        self.lengths = torch.tensor([len(row) for row in ids])

    @property
    def labels(self) -> Tensor:
        """(N,) classes."""
        return self.y

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Takes a vector of indices (B,); gives `input_ids` and `attention_mask`, both (B, T), and y (B,)."""
        padded = pad_sequence([self.ids[i] for i in index.tolist()], batch_first=True, padding_value=self.pad)  # (B, T)
        mask = torch.arange(padded.shape[1]) < self.lengths[index].unsqueeze(1)  # (B, T)
        return {"input_ids": padded, "attention_mask": mask.long()}, self.y[index]


def spread(num_rows: int, most: int) -> Tensor:
    """At most so many of the rows, sorted and evenly spread, the first and the last among them."""
    num = min(most, num_rows)
    return torch.arange(num) * (num_rows - 1) // max(1, num - 1)  # whole numbers: float32 ends at 2^24


class BatchOrder(Sampler[Tensor]):
    """The indices of each batch, for `DataLoader(rows, sampler=..., batch_size=None)`.

    `batch_size` counts the rows of all processes together, so that a run means the same on one device and on eight.
    In training the processes share out each batch; where shares differ by a row, `share` makes up for it. (A batch
    with fewer rows than processes is left out.) In evaluation every row goes to exactly one process.

    Args:
        num_rows: N.
        batch_size: B, over all processes.
        seed: None for the given order, every time the same.
        lengths: (N,) of texts: batches are then made of texts of like length.
        balance: (N,) classes: rows are then drawn, with replacement, so that each class is equally likely.
        rank: this process, of `world_size`.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int | None,
        train: bool,
        lengths: Tensor | None = None,
        balance: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if train and batch_size < world_size:
            raise UserError(
                f"data.batch_size={batch_size} is shared by {world_size} processes; it must be at least that."
            )
        self.num_rows, self.batch_size, self.seed, self.train = num_rows, batch_size, seed, train
        self.lengths, self.rank, self.world_size = lengths, rank, world_size
        self.weights = None if balance is None else 1 / torch.bincount(balance).double()[balance]  # (N,)
        self.epoch = 0
        self.start: tuple[int, int] = (0, 0)  # the epoch that begins with another batch than its first, and which
        self.sizes: list[int] = []  # rows of each batch of this epoch, over all processes

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def _batches(self) -> list[Tensor]:
        """Of all processes."""
        if self.seed is None:
            order = torch.arange(self.num_rows)
            if self.lengths is not None:
                order = self.lengths.argsort(stable=True)
            return list(order.split(self.batch_size))
        generator = torch.Generator().manual_seed(fold(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_rows, generator=generator)
        else:
            order = _drawn(self.weights, self.num_rows, generator)
        if self.lengths is None:
            return list(order.split(self.batch_size))
        pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in order.split(POOL * self.batch_size)]
        batches = [batch for pool in pools for batch in pool.split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def shares(self) -> list[Tensor]:
        """The indices of each batch of this epoch, of this process."""
        batches = self._batches()
        if self.train:
            batches = [batch for batch in batches if len(batch) >= self.world_size]
        self.sizes = [len(batch) for batch in batches]
        return [share for batch in batches if len(share := batch[self.rank :: self.world_size])]

    def __iter__(self) -> Iterator[Tensor]:
        # a generator: on a resume Lightning makes the iterator before it sets the epoch, and draws from it after
        epoch, batch = self.start
        yield from self.shares()[batch if self.epoch == epoch else 0 :]

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self.batch_size)
        least = self.world_size if self.train else self.rank + 1
        return (full if self.batch_size >= least else 0) + (rest >= least)

    def share(self, batch_idx: int, window: range) -> float:
        """Return the factor that makes this process's mean loss of a batch its part of a mean over rows.

        The mean is over all rows of the batches in `window`, once its parts are added up over the batches and averaged
        over the processes.
        """
        own = len(range(self.rank, self.sizes[batch_idx], self.world_size))
        return own * self.world_size / sum(self.sizes[index] for index in window)


def _drawn(weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(num,) indices with replacement; by their cumulated weights, as multinomial takes no more than 2^24."""
    steps = weights.cumsum(0)
    at = torch.rand(num, generator=generator, dtype=torch.float64) * steps[-1]
    return torch.searchsorted(steps, at).clamp(max=len(weights) - 1)

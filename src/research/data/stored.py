"""A table in the cache, as batches are gathered from it. N rows, D columns, B rows of a batch."""

import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.data.batches import Rows
from research.data.spec import Column
from research.data.splits import Listing


class Stored:
    """A table in the cache, memory-mapped."""

    FILES = ("x", "y", "identity", "rest", "given", "group", "time")

    def __init__(self, place: Path) -> None:
        self.place, self.info = place, json.loads((place / "info.json").read_text("utf-8"))
        self.num_rows = int(self.info["num_rows"])
        self.columns = [Column.read(column) for column in self.info["columns"]]
        self.label = Column.read(self.info["label"])
        self.x = self._map("x", np.float32, len(self.columns))

    @cached_property
    def listing(self) -> Listing:
        classes = tuple(self.info["classes"])
        y = self._map("y", np.int64) if classes else self._map("y", np.float32, 1)
        marks = {name: self._map(name, np.float64) for name in self.info["marks"]}
        given = self._map("given", np.int8) if self.info["given"] else None
        return Listing(_tensor(y), classes, self._map("identity", np.uint64), self.cells, given, **marks)

    def cells(self, ids: Any) -> Any:
        """(n, D + 1) of rows, what the network does not see of them as one number more."""
        rest = self._map("rest", np.uint64)[ids].astype(np.float64)
        return np.concatenate([self.x[ids], rest[:, None]], 1)

    def _map(self, name: str, kind: Any, width: int | None = None) -> Any:
        """For reading alone: what may be written, copy-on-write too, has to fit into memory, or is refused."""
        shape = (self.num_rows,) if width is None else (self.num_rows, width)
        return np.memmap(self.place / name, kind, "r", shape=shape)


def _tensor(mapped: Any) -> Tensor:
    """Of rows that are only ever gathered; torch warns that it does not know of memory that may not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


class TableRows(Rows):
    """Rows of a split, gathered from the memory-mapped table.

    Args:
        table: (N, D).
        y: (N,) classes or (N, 1) values.
        ids: (n,) of the split.
        codes: for columns of which not every category is kept: from its code in the file to the one in the spec.
    """

    def __init__(self, table: Any, y: Tensor, ids: Tensor, codes: dict[int, Tensor]) -> None:
        super().__init__(_tensor(table), y)
        self.ids, self.codes = ids, codes

    @property
    def labels(self) -> Tensor:
        return self.y[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Takes indices (B,) into the split, gives x (B, D) and y (B,) or (B, 1)."""
        ids = self.ids[index]
        x = self.x[ids]
        for column, table in self.codes.items():
            code = x[:, column]
            x[:, column] = torch.where(code >= 0, table[code.nan_to_num(0).long().clamp(min=0)], code)
        return x, self.y[ids]


def kept_codes(stored: list[Column], fitted: tuple[Column, ...]) -> dict[int, Tensor]:
    """What `TableRows` takes as its codes."""
    found = {}
    for index, (before, after) in enumerate(zip(stored, fitted, strict=True)):
        if before.categories != after.categories:
            place = {name: code for code, name in enumerate(after.categories)}
            found[index] = torch.tensor([float(place.get(name, -1)) for name in before.categories])
    return found

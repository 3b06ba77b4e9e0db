"""A table as a network sees it. B rows, D columns, F numbers, P pieces."""

from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from research.data.spec import Column, Spec
from research.tasks.scaling import Standardize


@runtime_checkable
class Takes(Protocol):
    """A network that says what it takes for x, where that is not standardised numbers.

    Attributes:
        takes: `cells`, which is x in the data's own units: of a table numbers and codes as in the file; or `pieces`:
            of a table the numbers in pieces beside the rest, see `Pieces`.
    """

    takes: Literal["cells", "pieces"]


def encoding(spec: Spec, net: nn.Module) -> nn.Module:
    """Return the layer that turns x of the data into what the network takes."""
    takes = net.takes if isinstance(net, Takes) else ""
    if takes == "cells":
        return nn.Identity()
    if not spec.columns:
        return Standardize(spec.x_mean, spec.x_std)
    return Pieces(spec.columns) if takes == "pieces" else Encode(spec.columns)


class Encode(nn.Module):
    """(B, D) cells as in the file -> (B, F): numbers, standardised; categories, one-hot; what is missing, flagged.

    A missing number counts as the median, with an indicator where training rows lack it too; a missing category has a
    place of its own then. A category that is not known is all zeros.

    Args:
        columns: as fitted on the training rows.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        super().__init__()
        numeric = [i for i, column in enumerate(columns) if column.kind != "categorical"]
        fitted = [columns[i] for i in numeric]
        codes = [(i, code) for i, column in enumerate(columns) for code in range(len(column.categories))]
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.long))
        self.register_buffer("median", torch.tensor([column.median for column in fitted]))
        self.register_buffer("mean", torch.tensor([column.mean for column in fitted]))
        self.register_buffer("std", torch.tensor([column.std for column in fitted]))
        self.register_buffer("hot", torch.tensor([i for i, _ in codes], dtype=torch.long))
        self.register_buffer("code", torch.tensor([float(code) for _, code in codes]))
        missing = [i for i, column in enumerate(columns) if column.missing]
        self.register_buffer("missing", torch.tensor(missing, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D) -> (B, F)."""
        numbers = x[:, self.numeric]  # pyright: ignore
        numbers = torch.where(numbers.isnan(), self.median, numbers)  # pyright: ignore
        scaled = (numbers - self.mean) / self.std  # pyright: ignore
        hot = x[:, self.hot] == self.code  # pyright: ignore
        return torch.cat([scaled, hot.to(x.dtype), x[:, self.missing].isnan().to(x.dtype)], 1)  # pyright: ignore


class Pieces(Encode):
    """(B, D) cells -> (B, F + P): what `Encode` makes of them, and how much of each piece a number has passed, 0 to 1.

    A piece reaches from a quantile of a column to the next (Gorishniy et al., 2022, piecewise linear encoding). A
    missing number counts as the median.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        super().__init__(columns)
        fitted = [column for column in columns if column.kind != "categorical"]
        pieces = [(i, low, high) for i, column in enumerate(fitted) for low, high in pairwise(column.quantiles)]
        self.register_buffer("number", torch.tensor([i for i, _, _ in pieces], dtype=torch.long))
        self.register_buffer("low", torch.tensor([low for _, low, _ in pieces]))
        self.register_buffer("width", torch.tensor([high - low for _, low, high in pieces]))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D) -> (B, F + P)."""
        numbers = x[:, self.numeric]  # pyright: ignore
        numbers = torch.where(numbers.isnan(), self.median, numbers)  # pyright: ignore
        passed = ((numbers[:, self.number] - self.low) / self.width).clamp(0, 1)  # pyright: ignore
        return torch.cat([super().forward(x), passed], 1)

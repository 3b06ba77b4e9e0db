"""A table as a network sees it. B rows, D columns, F numbers."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from research.data.spec import Column, Spec
from research.tasks.scaling import Standardize


@runtime_checkable
class TakesCells(Protocol):
    """A network that takes x in the data's own units: of a table cells as in the file, codes for categories."""

    takes_cells: bool


def encoding(spec: Spec) -> nn.Module:
    """Return the layer that turns x of the data into what a network sees."""
    return Encode(spec.columns) if spec.columns else Standardize(spec.x_mean, spec.x_std)


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

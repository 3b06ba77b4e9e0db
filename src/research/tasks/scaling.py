"""Standardisation as a layer: its statistics travel with the weights, so a network takes raw inputs anywhere."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """(x - mean) / std over dimension 1; the identity when there are no statistics, for text or class labels say.

    Args:
        mean, std: one number a feature or channel. A feature that never varies keeps its scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.fitted = len(mean) > 0
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor([value or 1.0 for value in std], dtype=torch.float32))

    def _shaped(self, values: Tensor, x: Tensor) -> Tensor:
        return values.view(-1, *[1] * (x.dim() - 2))  # (C,) -> (C, 1, 1) for images

    def forward(self, x: Any) -> Any:
        return (x - self._shaped(self.mean, x)) / self._shaped(self.std, x) if self.fitted else x

    def inverse(self, x: Any) -> Any:
        return x * self._shaped(self.std, x) + self._shaped(self.mean, x) if self.fitted else x

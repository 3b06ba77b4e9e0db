"""Handwritten digits: 1,797 images, 8x8, ten classes (E. Alpaydin, C. Kaynak, UCI 1998), as shipped by scikit-learn."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from research.data.tensors import TensorData


class Digits(TensorData):
    def read(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        digits: Any = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (N, 1, 8, 8) in [0, 1]
        return x, torch.tensor(digits.target, dtype=torch.int64), tuple(str(name) for name in digits.target_names)

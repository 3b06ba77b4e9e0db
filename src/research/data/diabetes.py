"""Progression of diabetes a year on, from ten measurements of 442 patients (Efron et al., 2004)."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from research.data.tensors import TensorData


class Diabetes(TensorData):
    def read(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        x, y = load_diabetes(return_X_y=True, scaled=False)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(1), ()

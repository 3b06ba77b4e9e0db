"""Metrics: only what torchmetrics lacks."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.utilities.data import dim_zero_cat


class MacroAUROC(MulticlassAUROC):
    """The mean over classes of one-against-rest AUROC, over the classes that the rows have.

    torchmetrics counts a class without rows as 0, which lowers the mean by as much as a useless classifier would.
    """

    def __init__(self, num_classes: int, **settings: Any) -> None:
        super().__init__(num_classes, average=None, **settings)

    def compute(self) -> Tensor:
        present = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes) > 0  # pyright: ignore
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the classes that are left out
            scores: Any = super().compute()
        return scores[present].mean()

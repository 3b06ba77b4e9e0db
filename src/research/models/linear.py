"""A linear model: the baseline of every numeric input. B rows, D numbers in, K numbers out.

Ridge regression or logistic regression, as scikit-learn fits them to all rows at once.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import PositiveFloat

MAX_ITERATIONS = 1000
Rows = tuple[Tensor, Tensor, Tensor | None]  # x, y and weights, None for 1


class Linear(nn.Module):
    """Weights that are fitted to all rows at once, see `tasks/fitted.py`.

    Args:
        l2: regularisation of the weights: alpha of a ridge regression, 1/C of a logistic one.

    Raises:
        ValueError: x is not numeric.
    """

    def __init__(self, spec: Spec, l2: PositiveFloat) -> None:
        super().__init__()
        spec.need("model=linear", kind=("features", "image"))
        self.classes, self.l2 = len(spec.classes), l2
        self.register_buffer("weight", torch.zeros(spec.num_outputs, math.prod(spec.shape)))
        self.register_buffer("bias", torch.zeros(spec.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) of D numbers a row -> (B, K) logits or values."""
        return nn.functional.linear(x.flatten(1), self.weight.to(x.dtype), self.bias.to(x.dtype))  # pyright: ignore

    def fit(self, train: Rows, val: Rows | None, seed: int) -> None:
        """Fit the weights.

        Args:
            train: x (N, ...), y (N,) classes or (N, K) values, and weights (N,) of the rows.
            val, seed: nothing here depends on them.
        """
        from sklearn.linear_model import LogisticRegression, Ridge

        x, y, weights = with_every_class(train, self.classes)
        made: Any = LogisticRegression(C=1 / self.l2, max_iter=MAX_ITERATIONS) if self.classes else Ridge(self.l2)
        made.fit(x.flatten(1).double().numpy(), y.numpy(), None if weights is None else weights.double().numpy())
        weight = torch.from_numpy(made.coef_).reshape(-1, x.flatten(1).shape[1])
        bias = torch.from_numpy(made.intercept_).flatten()
        if self.classes == 2:  # the library says how much more likely the second class is
            weight, bias = (torch.cat([torch.zeros_like(each), each]) for each in (weight, bias))
        self.weight, self.bias = weight.float(), bias.float()


def with_every_class(rows: Rows, num_classes: int) -> Rows:
    """Add a row without weight for each class that no row has: networks of a library learn of no others."""
    x, y, weights = rows
    lacking = torch.arange(num_classes)
    lacking = lacking[~torch.isin(lacking, y)] if num_classes else lacking
    if not len(lacking):
        return rows
    weights = torch.ones(len(y)) if weights is None else weights
    more = (x[:1].expand(len(lacking), *x.shape[1:]), lacking, torch.zeros(len(lacking)))
    x, y, weights = (torch.cat(pair) for pair in zip((x, y, weights), more, strict=True))
    return x, y, weights

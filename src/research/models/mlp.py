"""A multilayer perceptron for any numeric input. B rows, D numbers in, K numbers out."""

import math
from itertools import pairwise

from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import NonNegativeInt, PositiveInt, Probability


class Mlp(nn.Module):
    """Hidden layers of one width with layer norm, ReLU and dropout.

    Args:
        width: units of a hidden layer.
        depth: hidden layers; 0 gives a linear model.
        dropout: share of hidden units set to zero in training.

    Raises:
        ValueError: x is not numeric.
    """

    def __init__(self, spec: Spec, width: PositiveInt, depth: NonNegativeInt, dropout: Probability) -> None:
        super().__init__()
        spec.need("model=mlp", kind=("features", "image"))
        sizes = [math.prod(spec.shape), *[width] * depth]
        layers = [[nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU(), nn.Dropout(dropout)] for a, b in pairwise(sizes)]
        self.hidden = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(sizes[-1], spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) of D numbers a row -> (B, K)."""
        return self.head(self.hidden(x.flatten(1)))

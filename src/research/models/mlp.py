"""A multilayer perceptron for any numeric input. B rows, D numbers in, K numbers out; F columns, P pieces of them."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import NonNegativeInt, PositiveInt, Probability
from research.models.linear import Linear

L2 = 1.0  # of the linear model that the skip starts as
FAR = 4.0  # standard deviations from the mean, beyond which a number of a table counts as so far
SMALL = 1e-3  # weights that the head begins with beside a skip
BESIDE = 0.3  # the hidden layers' share beside the skip, so that they learn after it


class Mlp(nn.Module):
    """Hidden layers of one width with layer norm, ReLU and dropout.

    Of features, the columns of a table say, a linear skip leads from the input to the output. It starts as the linear
    model that fits the training rows, and the hidden layers with next to nothing: where a table teaches no more, early
    stopping leaves it nearly at that.

    Args:
        width: units of a hidden layer.
        depth: hidden layers; 0 gives a linear model (of a table's numbers one in pieces).
        dropout: share of hidden units set to zero in training.

    Raises:
        ValueError: x is not numeric.
    """

    takes = "pieces"

    def __init__(self, spec: Spec, width: PositiveInt, depth: NonNegativeInt, dropout: Probability) -> None:
        super().__init__()
        spec.need("model=mlp", kind=("features", "image"))
        num_pieces = sum(max(0, len(column.quantiles) - 1) for column in spec.columns)
        sizes = [math.prod(spec.shape) + num_pieces, *[width] * depth]
        layers = [[nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU(), nn.Dropout(dropout)] for a, b in pairwise(sizes)]
        self.hidden = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(sizes[-1], spec.num_outputs)
        self.skip = nn.Linear(math.prod(spec.shape), spec.num_outputs) if spec.kind == "features" else None
        self.spec = spec
        self.register_buffer("started", torch.tensor(self.skip is None))
        if self.skip:
            nn.init.normal_(self.head.weight, std=SMALL)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) of D numbers a row, of a table (B, F + P) -> (B, K)."""
        found = self.head(self.hidden(x.flatten(1)))
        return found if self.skip is None else self.skip(self._near(x)) + BESIDE * found

    def _near(self, x: Tensor) -> Tensor:
        """What the skip sees: (B, F)."""
        return x[:, : self.spec.shape[0]].clamp(-FAR, FAR)

    def start(self, x: Tensor, y: Tensor) -> None:
        """Fit the skip alone. x: (N, F + P); y: (N,) classes or (N, K) values."""
        assert self.skip
        linear = Linear(self.spec, L2)
        linear.fit((self._near(x).cpu(), y.cpu(), None), None, seed=0)
        self.skip.load_state_dict(linear.state_dict())
        self.started.fill_(True)  # pyright: ignore

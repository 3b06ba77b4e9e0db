"""Losses: built from the spec of the data, so that one refuses data it cannot score; called as loss(prediction, y).

B rows, C classes, K targets. Targets of a regression arrive standardised (see `tasks/supervised.py`).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from research.data.spec import Spec
from research.engine.values import Fraction, NonNegativeFloat, PositiveFloat

ClassWeights = list[PositiveFloat] | Literal["balanced"] | None


def weight_vector(spec: Spec, given: ClassWeights) -> Tensor | None:
    """(C,) weights; `balanced` is inverse to the training rows of a class, with mean 1 over the rows.

    Raises:
        ValueError: not one weight for each class.
    """
    if given is None:
        return None
    if given == "balanced":
        counts = torch.tensor(spec.class_counts, dtype=torch.float32).clamp(min=1)
        return counts.sum() / (len(counts) * counts)
    if len(given) != len(spec.classes):
        raise ValueError(f"class_weights has {len(given)} numbers for {len(spec.classes)} classes {list(spec.classes)}")
    return torch.tensor(given, dtype=torch.float32)


def total_weight(loss: nn.Module, y: Tensor) -> int | Tensor:
    """Return what the mean loss of a batch divides by: its number of rows, or what `loss.total_weight(y)` says.

    Means of batches are put together by it, so that a reported loss does not depend on the size of batches. A loss of
    your own that is not a plain mean over its rows needs that method.
    """
    own = getattr(loss, "total_weight", None)
    return len(y) if own is None else own(y)


class CrossEntropy(nn.CrossEntropyLoss):
    """prediction: (B, C) logits; y: (B,) classes, or (B, C) shares of classes."""

    def __init__(self, spec: Spec, label_smoothing: Fraction, class_weights: ClassWeights) -> None:
        spec.need("loss=cross_entropy", target="class")
        super().__init__(label_smoothing=label_smoothing)
        # a setting, not a state: a checkpoint must not bring back weights that the command has changed
        self.register_buffer("weight", weight_vector(spec, class_weights), persistent=False)

    def total_weight(self, y: Tensor) -> int | Tensor:
        """Return what torch divides by: the weights of the classes of all rows, or the rows where y are shares."""
        return len(y) if self.weight is None or y.dim() > 1 else self.weight[y].sum()


class Focal(nn.Module):
    """Cross-entropy that turns down the rows a network already gets right (Lin et al., 2017).

    prediction: (B, C) logits; y: (B,) classes, or (B, C) shares of classes.
    """

    weight: Tensor | None

    def __init__(self, spec: Spec, gamma: NonNegativeFloat, class_weights: ClassWeights) -> None:
        super().__init__()
        spec.need("loss=focal", target="class")
        self.gamma = gamma
        self.register_buffer("weight", weight_vector(spec, class_weights), persistent=False)

    def total_weight(self, y: Tensor) -> int | Tensor:
        """Return what `forward` divides by."""
        if self.weight is None:
            return len(y)
        return self.weight[y].sum() if y.dim() == 1 else (y * self.weight).sum()

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        log_p = log_softmax(prediction, 1)  # (B, C)
        shares = one_hot(y, prediction.shape[1]) if y.dim() == 1 else y  # (B, C)
        rest = (1 - log_p.exp()).clamp(min=1e-6)  # at 0 a power below 1 has no gradient
        loss = -(rest**self.gamma) * log_p * shares  # (B, C)
        if self.weight is None:
            return loss.sum(1).mean()
        return (loss * self.weight).sum() / (shares * self.weight).sum()  # as torch weighs cross-entropy


class Mse(nn.MSELoss):
    """prediction, y: (B, K)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        spec.need("loss=mse", target="value")


class Huber(nn.HuberLoss):
    """prediction, y: (B, K); squared up to `delta` standard deviations, linear beyond (Huber, 1964)."""

    def __init__(self, spec: Spec, delta: PositiveFloat) -> None:
        super().__init__(delta=delta)
        spec.need("loss=huber", target="value")

"""Losses against a hand computation, metrics against scikit-learn over the whole epoch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from composing import a_spec, composed
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from research.data.spec import Spec
from research.engine.build import make
from research.losses import CrossEntropy, Focal, Huber, Mse, weight_vector

CLASSES, VALUES = a_spec(num_classes=4), a_spec(num_values=2)
WEIGHTS = [0.5, 1.0, 2.0, 4.0]


def drawn(seed: int = 0, rows: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, 4), classes (B,) and shares of classes (B, 4)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 4, generator=generator)
    shares = torch.rand(rows, 4, generator=generator)
    return logits, torch.randint(4, (rows,), generator=generator), shares / shares.sum(1, keepdim=True)


def by_hand(logits: Tensor, y: Tensor, weights: list[float] | None, gamma: float, smoothing: float) -> float:
    """Row by row and class by class: -share * (1 - p)^gamma * log p * weight, over the weight of the rows."""
    loss = total = 0.0
    for row, label in zip(logits.double().tolist(), y, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        shares = np.eye(len(row))[int(label)] if label.dim() == 0 else label.double().numpy()
        weight = np.array(weights or [1.0] * len(row))
        smooth = shares * (1 - smoothing) + smoothing / len(row)
        loss -= (smooth * (1 - p) ** gamma * np.log(p) * weight).sum()
        total += (shares * weight).sum()
    return loss / total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_classes(weights: Any, smoothing: float) -> None:
    logits, y, _ = drawn()
    loss = CrossEntropy(CLASSES, smoothing, weights)(logits, y)
    assert loss.item() == pytest.approx(by_hand(logits, y, weights, 0.0, smoothing), rel=1e-5)


def test_cross_entropy_of_shares() -> None:
    logits, _, shares = drawn()
    loss = CrossEntropy(CLASSES, 0.1, None)(logits, shares)
    assert loss.item() == pytest.approx(by_hand(logits, shares, None, 0.0, 0.1), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("target", [1, 2], ids=["classes", "shares"])
def test_focal(weights: Any, gamma: float, target: int) -> None:
    logits, y = drawn()[0], drawn()[target]
    loss = Focal(CLASSES, gamma, weights)(logits, y)
    assert loss.item() == pytest.approx(by_hand(logits, y, weights, gamma, 0.0), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_without_gamma_is_cross_entropy(weights: Any) -> None:
    logits, y, _ = drawn()
    given = None if weights is None else torch.tensor(weights)
    torch.testing.assert_close(Focal(CLASSES, 0.0, weights)(logits, y), cross_entropy(logits, y, given))


def test_focal_without_gamma_is_cross_entropy_of_shares() -> None:
    logits, _, shares = drawn()
    torch.testing.assert_close(Focal(CLASSES, 0.0, None)(logits, shares), cross_entropy(logits, shares))


@pytest.mark.parametrize("loss", [CrossEntropy(CLASSES, 0.0, WEIGHTS), Focal(CLASSES, 2.0, WEIGHTS)])
def test_one_hot_shares_score_as_classes(loss: nn.Module) -> None:
    logits, y, _ = drawn()
    rows = [loss(logits[i : i + 1], y[i : i + 1]) for i in range(len(y))]
    weight = torch.tensor(WEIGHTS)[y]
    torch.testing.assert_close(loss(logits, y), (torch.stack(rows) * weight).sum() / weight.sum())
    shares = one_hot(y, 4).float()
    torch.testing.assert_close(Focal(CLASSES, 2.0, WEIGHTS)(logits, shares), Focal(CLASSES, 2.0, WEIGHTS)(logits, y))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_the_network_is_certain(gamma: float) -> None:
    logits = torch.tensor([[50.0, 0, 0, 0], [0, 50.0, 0, 0]], requires_grad=True)
    loss = Focal(CLASSES, gamma, None)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_focal_turns_down_what_is_right_already() -> None:
    logits = torch.tensor([[4.0, 0, 0, 0]])
    plain, focal = (Focal(CLASSES, gamma, None)(logits, torch.tensor([0])) for gamma in (0.0, 2.0))
    p = log_softmax(logits, 1).exp()[0, 0]
    torch.testing.assert_close(focal / plain, (1 - p) ** 2)


def test_mse() -> None:
    loss = Mse(VALUES)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    assert loss.item() == pytest.approx((0 + 4 + 9 + 0) / 4)


def test_huber_is_squared_up_to_delta_and_linear_beyond() -> None:
    loss = Huber(VALUES, 2.0)(torch.tensor([[1.0, 5.0]]), torch.tensor([[0.0, 0.0]]))
    assert loss.item() == pytest.approx((0.5 * 1 + 2 * (5 - 0.5 * 2)) / 2)


def with_counts(*counts: int) -> Spec:
    return Spec("features", (5,), "class", tuple(map(str, counts)), class_counts=counts)


def test_balanced_weights_are_inverse_to_the_rows_and_one_on_average() -> None:
    weights = weight_vector(with_counts(10, 30, 60), "balanced")
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([100 / 30, 100 / 90, 100 / 180]))
    assert (weights * torch.tensor([10, 30, 60])).sum().item() == pytest.approx(100)


def test_balanced_weights_of_a_class_without_rows_are_finite() -> None:
    weights = weight_vector(with_counts(10, 0), "balanced")
    assert weights is not None
    assert weights.isfinite().all()


def test_given_weights_are_taken_as_they_are() -> None:
    assert weight_vector(CLASSES, None) is None
    weights = weight_vector(CLASSES, WEIGHTS)
    assert weights is not None
    assert weights.tolist() == WEIGHTS


@pytest.mark.parametrize("make_loss", [lambda w: CrossEntropy(CLASSES, 0.0, w), lambda w: Focal(CLASSES, 2.0, w)])
def test_losses_use_the_class_weights(make_loss: Callable[[Any], nn.Module]) -> None:
    logits, y, _ = drawn()
    assert make_loss(None)(logits, y) != make_loss(WEIGHTS)(logits, y)
    with pytest.raises(ValueError, match="class_weights has 2 numbers for 4 classes"):
        make_loss([1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "make_loss"),
    [
        ("cross_entropy", lambda: CrossEntropy(VALUES, 0.0, None)),
        ("focal", lambda: Focal(VALUES, 2.0, None)),
        ("mse", lambda: Mse(CLASSES)),
        ("huber", lambda: Huber(CLASSES, 1.0)),
    ],
)
def test_losses_refuse_the_other_kind_of_target(name: str, make_loss: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=rf"loss={name} is for targets that are a (class|value)") as told:
        make_loss()
    assert ("4 classes" if name in ("mse", "huber") else "2 numeric target(s)") in str(told.value)


# metrics

BATCHES = [1, 64, 7, 100, 28]  # unequal on purpose: a mean of batches is another number


def over_the_epoch(option: str, predicted: Tensor, y: Tensor, **known: Any) -> dict[str, float]:
    metrics = {name: metric(**known) for name, metric in make(composed(f"metrics={option}").metrics).items()}
    for metric in metrics.values():
        for some, labels in zip(predicted.split(BATCHES), y.split(BATCHES), strict=True):
            metric.update(some, labels)
    return {name: metric.compute().item() for name, metric in metrics.items()}


def classified(seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities (200, 4) that are right more often than not, and classes of unequal size (200,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.6, 0.2, 0.15, 0.05]), 200, replacement=True, generator=generator)
    logits = torch.randn(200, 4, generator=generator) + 1.5 * one_hot(y, 4)
    return logits.softmax(1), y


def calibration_error(predicted: np.ndarray, y: np.ndarray, num_bins: int) -> float:
    confidence, right = predicted.max(1), predicted.argmax(1) == y
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    chosen = [bins == b for b in range(num_bins) if (bins == b).any()]
    return sum(abs(right[rows].mean() - confidence[rows].mean()) * rows.mean() for rows in chosen)


@pytest.mark.parametrize("seed", [0, 1])
def test_classification_metrics_are_those_of_scikit_learn(seed: int) -> None:
    predicted, y = classified(seed)
    p, labels = predicted.double().numpy(), y.numpy()
    p /= p.sum(1, keepdims=True)  # scikit-learn wants rows to add up in double precision
    found = over_the_epoch("classification", predicted, y, num_classes=4, validate_args=False)
    assert found == pytest.approx(
        {
            "acc": accuracy_score(labels, p.argmax(1)),
            "f1": f1_score(labels, p.argmax(1), average="macro"),
            "auroc": roc_auc_score(labels, p, multi_class="ovr", average="macro"),
            "ece": calibration_error(p, labels, 15),
        },
        rel=1e-5,
    )
    assert 0.5 < found["acc"] < 1


def test_a_class_that_a_split_lacks_does_not_lower_the_auroc() -> None:
    predicted, y = classified(0)
    y[y == 3] = 0
    p = predicted.numpy()
    found = over_the_epoch("classification", predicted, y, num_classes=4, validate_args=False)
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(y.numpy() == c, p[:, c]) for c in range(3)]))


@pytest.mark.parametrize("seed", [0, 1])
def test_regression_metrics_are_those_of_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = 150 + 70 * torch.randn(200, 1, generator=generator)
    predicted = y + 30 * torch.randn(200, 1, generator=generator)
    assert over_the_epoch("regression", predicted, y) == pytest.approx(
        {
            "mae": mean_absolute_error(y, predicted),
            "rmse": mean_squared_error(y, predicted) ** 0.5,
            "r2": r2_score(y, predicted),
        },
        rel=1e-5,
    )

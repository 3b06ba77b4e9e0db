"""The linear baseline says what the library says, also of classes that the training rows lack."""

import pytest
import torch
from composing import a_spec
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from research.models.boosting import Boosting
from research.models.linear import Linear, with_every_class


def drawn(num_classes: int, num: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 5, generator=generator)
    y = x[:, :2] + 0.3 * torch.randn(num, 2, generator=generator)
    return x, (y.sum(1) * 2).long() % num_classes if num_classes else y


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_is_that_of_the_library(num_classes: int, weighted: bool) -> None:
    x, y = drawn(num_classes)
    weights = torch.arange(1, num_classes + 1.0)[y] if weighted else None
    net = Linear(a_spec(num_classes=num_classes), l2=0.5)
    net.fit((x, y, weights), None, seed=0)
    theirs = LogisticRegression(C=2, max_iter=1000).fit(x.numpy(), y.numpy(), None if weights is None else weights)
    assert net(x).softmax(1).numpy() == pytest.approx(theirs.predict_proba(x.numpy()), abs=1e-3)


def test_ridge_regression_is_that_of_the_library() -> None:
    x, y = drawn(0)
    net = Linear(a_spec(num_values=2), l2=3.0)
    net.fit((x, y, None), None, seed=0)
    assert net(x).numpy() == pytest.approx(Ridge(3.0).fit(x.numpy(), y.numpy()).predict(x.numpy()), abs=1e-4)


@pytest.mark.parametrize("classes", [(0, 2), (1, 3), (1,), (0, 1, 3)])
@pytest.mark.parametrize("kind", ["linear", "boosting"])
def test_classes_without_a_row_are_nearly_never_predicted(kind: str, classes: tuple[int, ...]) -> None:
    x, y = drawn(4)
    there = torch.isin(y, torch.tensor(classes))
    spec = a_spec(num_classes=4)
    rounds = {"num_rounds": 5, "learning_rate": 0.1, "max_leaf_nodes": 8, "min_samples_leaf": 5}
    net = Linear(spec, l2=1.0) if kind == "linear" else Boosting(spec, **rounds, l2=0.0, patience=None)
    net.fit((x[there], y[there], None), None, seed=0)
    shares = net(x).softmax(1)
    lacking = [index for index in range(4) if index not in classes]
    assert shares.shape == (len(x), 4)
    assert shares[:, lacking].max() < 0.05


def test_rows_of_every_class_stay_as_they_are() -> None:
    x, y = drawn(2)
    rows = (x, y, None)
    assert with_every_class(rows, 2) is rows

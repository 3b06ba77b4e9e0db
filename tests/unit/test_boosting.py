"""Boosted trees: as the library says them, fitted with the run's seed and class weights, or refused in a sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import a_spec, quick, told
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor, nn

from research.data.spec import Column
from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.models.boosting import Boosting, Rows, rounded_down

SETTINGS: Any = {"num_rounds": 20, "learning_rate": 0.1, "max_leaf_nodes": 8, "min_samples_leaf": 5, "l2": 0.0}
SETTINGS["patience"] = None
THEIRS: Any = {"max_iter": 20, "max_leaf_nodes": 8, "min_samples_leaf": 5, "early_stopping": False}


def drawn(num_classes: int, num: int = 3000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 5, generator=generator)
    y = x[:, 0] * x[:, 1] + x[:, 2].sin()
    return x, (y * 2).long() % num_classes if num_classes else y.unsqueeze(1)


@pytest.mark.parametrize("num_classes", [0, 2, 4])
def test_trees_say_what_the_library_says_of_every_row(num_classes: int) -> None:
    x, y = drawn(num_classes)
    net = Boosting(a_spec(num_classes=num_classes, num_values=0 if num_classes else 1), **SETTINGS)
    net.fit((x, y, None), None, seed=3)
    kind: Any = HistGradientBoostingClassifier if num_classes else HistGradientBoostingRegressor
    theirs = kind(**THEIRS).fit(x.numpy(), y.flatten().numpy())
    found = net(x).softmax(1) if num_classes else net(x).squeeze(1)
    expected = theirs.predict_proba(x.numpy()) if num_classes else theirs.predict(x.numpy())
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not any(value.dtype == torch.float64 for value in net.state_dict().values())  # which some devices lack


def cells(num: int = 2000, num_codes: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Column, ...]]:
    """Rows of a number and two categories, a tenth of the cells missing; the effect of a code does not follow it."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(num_codes, (num, 2), generator=generator)
    x = torch.cat([torch.randn(num, 1, generator=generator), codes], 1)
    y = x[:, 0] + torch.sin(37.0 * codes[:, 0]) * 3 + (codes[:, 1] % 2) * x[:, 0]
    x[torch.rand(num, 3, generator=generator) < 0.1] = torch.nan
    names = tuple(str(i) for i in range(num_codes))
    kinds = (Column("a", "numeric"), Column("b", "categorical", names), Column("c", "categorical", names))
    return x, y.unsqueeze(1), kinds


def of_cells(columns: tuple[Column, ...], **settings: Any) -> Boosting:
    return Boosting(replace(a_spec(num_values=1), columns=columns), **{**SETTINGS, **settings})


@pytest.mark.parametrize("num_codes", [3, 40, 255])
def test_categories_and_missing_cells_are_split_as_the_library_splits_them(num_codes: int) -> None:
    x, y, columns = cells(num_codes=num_codes)
    net = of_cells(columns)
    net.fit((x, y, None), None, seed=0)
    columns_by_category: Any = [1, 2]
    theirs = HistGradientBoostingRegressor(**THEIRS, categorical_features=columns_by_category)
    theirs.fit(x.numpy(), y.flatten().numpy())
    new = cells(num_codes=num_codes, seed=1)[0]
    new[:50, 1] = -1  # unknown
    assert net(new).flatten().numpy() == pytest.approx(theirs.predict(new.numpy()), rel=1e-4, abs=1e-5)
    missing = new.masked_fill(new == -1, torch.nan)
    assert torch.equal(net(new[:50, :]), net(missing[:50, :]))


def test_codes_that_the_rows_lack_count_as_missing() -> None:
    x, y, columns = cells(num_codes=12)
    few = (x[:, 1] != 3) & (x[:, 2] != 11)
    net = of_cells(columns)
    net.fit((x[few], y[few], None), None, seed=0)
    unseen = x[x[:, 1] == 3]
    missing = unseen.clone()
    missing[:, 1] = torch.nan
    assert torch.equal(net(unseen), net(missing))


def test_more_categories_than_the_library_takes_are_split_as_numbers() -> None:
    x, y, columns = cells(num_codes=300)
    net = of_cells(columns)
    net.fit((x, y, None), None, seed=0)
    x[:9, 1] = -1
    assert net(x).isfinite().all()
    assert torch.equal(net(x[:9]), net(x.masked_fill(x == -1, torch.nan)[:9]))


def test_trees_of_categories_come_back_from_their_state() -> None:
    x, y, columns = cells()
    net = of_cells(columns)
    net.fit((x, y, None), None, seed=0)
    again = of_cells(columns)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("num_classes", [0, 2, 4])
def test_patience_ends_at_the_round_that_is_best_on_the_validation_rows(num_classes: int) -> None:
    x, y = drawn(num_classes, 400)
    y = y.roll(1, 0) if num_classes else y + 3 * torch.randn(len(y), 1, generator=torch.Generator().manual_seed(1))
    spec = a_spec(num_classes=num_classes, num_values=0 if num_classes else 1)
    net = Boosting(spec, **{**SETTINGS, "num_rounds": 200, "patience": 5})
    train, val = (x[:300], y[:300], None), (x[300:], y[300:], None)
    net.fit(train, val, seed=0)
    left: Any = net.left
    rounds = len(left) // max(1, num_classes if num_classes > 2 else 1)
    losses = []
    for num in range(1, rounds + 5):
        one = Boosting(spec, **{**SETTINGS, "num_rounds": num})
        one.fit(train, None, seed=0)
        loss = nn.functional.cross_entropy if num_classes else nn.functional.mse_loss
        losses.append(float(loss(one(val[0]), val[1])))
    assert rounds == 1 + int(np.argmin(losses))


def test_validation_rows_reach_the_network(tmp_path: Path) -> None:
    parts, spy = fitted(tmp_path)
    assert spy.val is not None
    assert len(spy.val[0]) == parts.data.num_rows["val"]
    assert torch.equal(spy.val[1], parts.data.rows["val"].labels)


@given(st.floats(-1e30, 1e30), st.floats(width=32, allow_nan=False))
def test_a_threshold_in_float32_parts_numbers_as_the_one_in_float64(threshold: float, number: float) -> None:
    exact = torch.tensor([threshold], dtype=torch.float64)
    for x in (torch.tensor([number]), exact.float(), rounded_down(exact)):
        assert bool(x.double() <= exact) == bool(x <= rounded_down(exact))


class Spy(nn.Module):
    """Notes what it is fitted to, and says what the rows' first number is."""

    def fit(self, train: Rows, val: Rows | None, seed: int) -> None:
        self.fitted, self.val = (train[0], train[1], seed, train[2]), val

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


def fitted(folder: Path, *words: str) -> tuple[Parts, Spy]:
    cfg = quick("model=boosting", *words, "trainer.limit_train_batches=null")  # of which `quick` takes a few
    parts, spy = build(cfg, folder), Spy()
    parts.task.net = spy
    parts.trainer.fit(parts.task, parts.data)
    return parts, spy


def test_the_seed_is_that_of_the_run_and_the_loss_that_of_all_rows(tmp_path: Path) -> None:
    parts, spy = fitted(tmp_path, "seed=7")
    x, y, seed, weights = spy.fitted
    assert (seed, weights) == (7, None)
    assert len(y) == parts.data.num_rows["train"]
    assert parts.task.train_weight == len(y)
    expected = nn.functional.cross_entropy(spy(x), y)
    assert float(parts.trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_many_rows_is_measured_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("research.tasks.fitted.ROWS", 500)
    real = Spy.forward
    monkeypatch.setattr(Spy, "forward", lambda self, x: sizes.append(len(x)) or real(self, x))
    parts, spy = fitted(tmp_path, "trainer.limit_val_batches=0", "scheduler=constant")
    assert sizes == [500, 500, parts.data.num_rows["train"] - 1000]
    assert float(parts.trainer.callback_metrics["train/loss"]) == pytest.approx(
        float(nn.functional.cross_entropy(real(spy, spy.fitted[0]), spy.fitted[1])), rel=1e-5
    )


def test_class_weights_of_the_loss_are_those_of_the_rows(tmp_path: Path) -> None:
    parts, spy = fitted(tmp_path, "loss=cross_entropy", "loss.class_weights=balanced")
    _, y, _, weights = spy.fitted
    assert weights is not None
    assert torch.equal(weights, parts.task.loss.weight[y])
    assert len(weights.unique()) > 1


def test_class_weights_move_the_trees_towards_the_rare_class() -> None:
    x, y = drawn(2)
    rare = (y == 1) & (torch.arange(len(y)) % 20 > 0)
    x, y = x[~rare], y[~rare]
    shares = []
    for weights in (None, torch.tensor([1.0, 20.0])[y]):
        net = Boosting(a_spec(num_classes=2), **SETTINGS)
        net.fit((x, y, weights), None, seed=0)
        shares.append(float(net(x).softmax(1)[:, 1].mean()))
    assert shares[1] > 2 * shares[0]
    theirs: Any = HistGradientBoostingClassifier(**THEIRS, class_weight={0: 1.0, 1: 20.0})
    assert shares[1] == pytest.approx(
        np.mean(theirs.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())[:, 1]), rel=1e-4
    )


def test_a_tree_of_one_leaf_is_refused_with_the_words_of_the_command() -> None:
    (problem,) = told("data=diabetes", "model=boosting", "model.max_leaf_nodes=1")
    assert "model.max_leaf_nodes=1" in problem
    assert "greater than or equal to 2" in problem


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches"),
        ("trainer.max_epochs=3", "trainer.max_epochs"),
        ("trainer.max_steps=1", "trainer.max_steps"),
        ("trainer.val_check_interval=1", "trainer.val_check_interval"),
        ("trainer.precision=bf16-true", "trainer.precision"),
        ("find_lr=true", "find_lr"),
        ("find_batch_size=true", "find_batch_size"),
        ("compile=true", "compile"),
        ("scheduler=cosine", "scheduler"),
        ("callbacks=ema", "callbacks.averaging"),
        ("callbacks=swa", "callbacks.averaging"),
    ],
)
def test_settings_of_steps_are_refused(tmp_path: Path, word: str, what: str) -> None:
    with pytest.raises(UserError, match=f"Boosting is fitted to all rows at once: .* leave out {what}"):
        fitted(tmp_path, word)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(UserError, match=r"one process, .* leave out trainer.devices or trainer.num_nodes"):
        fitted(tmp_path)


def test_shares_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leave out augment\.mix"):
        fitted(tmp_path, "augment=mixup")


@pytest.mark.parametrize("option", ["head", "gradual", "lora"])
def test_a_plan_for_parameters_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match="no parameters that learn step by step; take finetune=full"):
        fitted(tmp_path, f"finetune={option}")

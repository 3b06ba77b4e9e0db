"""Learning rates against formulas written by hand, on their own and in a run of Lightning."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed, quick
from lightning import Callback
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from research.engine.build import build, make
from research.engine.errors import UserError
from research.engine.schedules import TrainingLength, constant, cosine, linear, onecycle, plateau, step

LR, MORE_LR = 0.2, 0.05  # of two parameter groups
LENGTH = TrainingLength(steps=100, epochs=20)
TOTAL = {"step": 100, "epoch": 20}
INTERVALS = pytest.mark.parametrize("interval", ["step", "epoch"])


def an_optimizer(kind: Any = SGD, **more: Any) -> Optimizer:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    return kind([{"params": parameters[:1], "lr": LR}, {"params": parameters[1:], "lr": MORE_LR}], lr=LR, **more)


def rates(make_schedule: Callable[..., Any], interval: Any, **settings: Any) -> list[float]:
    """The rate at each count of intervals, the end included. Both groups keep their ratio."""
    optimizer = an_optimizer()
    schedule = make_schedule(optimizer, LENGTH, interval=interval, **settings)
    assert schedule["interval"] == interval
    found = []
    for _ in range(TOTAL[interval] + 1):
        one, other = (group["lr"] for group in optimizer.param_groups)
        assert other == pytest.approx(one * MORE_LR / LR, abs=1e-12)
        found.append(one)
        optimizer.step()
        if len(found) <= TOTAL[interval]:
            schedule["scheduler"].step()
    return found


@INTERVALS
def test_constant_without_warmup(interval: str) -> None:
    assert rates(constant, interval, warmup_frac=0.0) == [LR] * (TOTAL[interval] + 1)


@INTERVALS
def test_constant_rises_from_near_zero_and_stays(interval: str) -> None:
    total = TOTAL[interval]
    warmup = total // 10
    found = rates(constant, interval, warmup_frac=0.1)
    assert found[:warmup] == pytest.approx([LR * (n + 1) / (warmup + 1) for n in range(warmup)])
    assert found[warmup:] == [LR] * (total + 1 - warmup)


@INTERVALS
@pytest.mark.parametrize("final", [0.0, 0.25])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.1, 0.5])
def test_linear(interval: str, final: float, warmup_frac: float) -> None:
    total = TOTAL[interval]
    warmup = round(warmup_frac * total)
    found = rates(linear, interval, warmup_frac=warmup_frac, final_frac=final)
    up = [LR * (n + 1) / (warmup + 1) for n in range(warmup)]
    down = [LR + (final * LR - LR) * n / (total - warmup) for n in range(total - warmup + 1)]
    assert found == pytest.approx(up + down, abs=1e-12)
    assert found[0] > 0
    assert found[warmup] == max(found) == LR
    assert found[-1] == pytest.approx(final * LR, abs=1e-12)


@INTERVALS
@pytest.mark.parametrize("final", [0.0, 0.25])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.1, 0.5])
def test_cosine(interval: str, final: float, warmup_frac: float) -> None:
    total = TOTAL[interval]
    warmup = round(warmup_frac * total)
    found = rates(cosine, interval, warmup_frac=warmup_frac, final_frac=final)
    up = [LR * (n + 1) / (warmup + 1) for n in range(warmup)]
    middle, reach = (1 + final) / 2 * LR, (1 - final) / 2 * LR
    down = [middle + reach * math.cos(math.pi * n / (total - warmup)) for n in range(total - warmup + 1)]
    assert found == pytest.approx(up + down, abs=1e-12)
    assert found[warmup] == max(found) == LR
    assert found[-1] == pytest.approx(final * LR, abs=1e-12)


@pytest.mark.parametrize("make_schedule", [linear, cosine])
def test_rate_stays_at_its_end_when_a_run_is_longer_than_was_said(make_schedule: Callable[..., Any]) -> None:
    optimizer = an_optimizer()
    schedule = make_schedule(optimizer, TrainingLength(4, 1), interval="step", warmup_frac=0.0, final_frac=0.5)[
        "scheduler"
    ]
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LR / 2)


@INTERVALS
def test_onecycle(interval: str) -> None:
    total = TOTAL[interval]
    optimizer = an_optimizer(momentum=0.9)
    schedule = onecycle(optimizer, LENGTH, interval, pct_start=0.3, div_factor=25.0, final_div_factor=100.0)  # pyright: ignore[reportArgumentType]
    found, momenta = [], []
    for n in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if n < total:
            schedule["scheduler"].step()

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    peak = 0.3 * (total + 1) - 1  # in counts, as torch places it
    first, last = LR / 25, LR / 25 / 100
    expected = [
        between(first, LR, n / peak) if n <= peak else between(LR, last, (n - peak) / (total - peak))
        for n in range(total + 1)
    ]
    assert found == pytest.approx(expected)
    assert (found[0], found[-1]) == (pytest.approx(first), pytest.approx(last))
    assert momenta[0] == pytest.approx(0.95)
    assert min(momenta) < 0.86  # the other way round


def test_onecycle_brings_no_momentum_to_an_optimizer_that_was_given_none() -> None:
    optimizer = an_optimizer(momentum=0.0)
    onecycle(optimizer, LENGTH, "step", pct_start=0.3, div_factor=25.0, final_div_factor=100.0)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.0, 0.0]


@INTERVALS
def test_step(interval: str) -> None:
    found = rates(step, interval, step_size=7, gamma=0.5)
    assert found == pytest.approx([LR * 0.5 ** (n // 7) for n in range(len(found))])


@pytest.mark.parametrize(
    ("mode", "values"), [("min", [5, 4, 4, 4, 4, 3, 3, 3, 3]), ("max", [1, 2, 2, 2, 2, 3, 3, 3, 3])]
)
def test_plateau_lowers_the_rate_after_patience(mode: Any, values: list[int]) -> None:
    optimizer = an_optimizer()
    schedule = plateau(optimizer, LENGTH, monitor="val/f1", mode=mode, factor=0.1, patience=2)
    found = []
    for value in values:
        schedule["scheduler"].step(value)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([LR] * 4 + [0.1 * LR] * 4 + [0.01 * LR])
    assert (schedule["monitor"], schedule["interval"]) == ("val/f1", "epoch")


# in a run


class Rates(Callback):
    """The rate that each optimizer step was made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def trained(folder: Path, *overrides: str, epochs: int, steps: int) -> list[float]:
    """Rates over the optimizer's own, step by step."""
    cfg, seen = quick(*overrides, epochs=epochs, steps=steps), Rates()
    parts = build(cfg, folder, [seen])
    parts.trainer.fit(parts.task, parts.data)
    return [rate / cfg.optimizer.lr for rate in seen.rates]


def test_a_run_steps_its_schedule_after_each_step(tmp_path: Path) -> None:
    found = trained(tmp_path, "scheduler=linear", "scheduler.warmup_frac=0.25", epochs=2, steps=4)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_a_run_steps_its_schedule_after_each_epoch(tmp_path: Path) -> None:
    linear_by_epoch = ("scheduler=linear", "scheduler.interval=epoch", "scheduler.warmup_frac=0")
    found = trained(tmp_path, *linear_by_epoch, epochs=4, steps=2)
    assert found == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25])


def test_steps_are_counted_after_accumulation(tmp_path: Path) -> None:
    accumulated = ("scheduler=linear", "scheduler.warmup_frac=0", "trainer.accumulate_grad_batches=2")
    assert trained(tmp_path, *accumulated, epochs=2, steps=4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_run_limited_by_its_steps_is_as_long_as_these(tmp_path: Path) -> None:
    limited = ("scheduler=linear", "scheduler.interval=step", "scheduler.warmup_frac=0", "trainer.max_steps=4")
    assert trained(tmp_path, *limited, epochs=-1, steps=2) == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("epochs", [-1, 9])
def test_epochs_of_a_run_limited_by_its_steps_are_counted_from_these(epochs: int, tmp_path: Path) -> None:
    limited = ("scheduler=linear", "scheduler.interval=epoch", "scheduler.warmup_frac=0", "trainer.max_steps=4")
    assert trained(tmp_path, *limited, epochs=epochs, steps=2) == pytest.approx([1, 1, 0.5, 0.5])


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leave the run without an end; set one of them"):
        trained(tmp_path, epochs=-1, steps=2)


def test_plateau_steps_once_after_each_validation(tmp_path: Path) -> None:
    # at such a rate nothing is learnt, so that the first loss stays the best
    same = ("scheduler=plateau", "optimizer=sgd", "optimizer.lr=1e-7", "scheduler.patience=1", "scheduler.factor=0.5")
    found = trained(tmp_path, *same, epochs=6, steps=4)
    per_epoch = [found[4 * epoch : 4 * epoch + 4] for epoch in range(6)]
    assert per_epoch == [pytest.approx([rate] * 4) for rate in (1, 1, 1, 0.5, 0.5, 0.25)]


def test_plateau_of_an_option_follows_the_monitor_of_the_run() -> None:
    cfg = composed("scheduler=plateau", "monitor=val/f1", "mode=max")
    schedule = make(cfg.scheduler)(an_optimizer(Adam), LENGTH)
    assert schedule["monitor"] == "val/f1"
    assert schedule["scheduler"].mode == "max"

"""Numbers that are not: a metric that is nan or endless is never the best, and what a run writes is JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.test_lasting import QUIET, out, started, status
from faults import ended
from scripted import Scripted

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
AGAIN = "metrics.odd._target_=scripted.Rising"  # what conf/ does not name, for a run that goes on
FAST = (*QUIET, "trainer.num_sanity_val_steps=0", "trainer.limit_train_batches=2", "logger=csv")


def watched(kind: str, *words: str) -> tuple[str, ...]:
    return (*FAST, f"+metrics.odd={{_target_: scripted.{kind}, _partial_: true}}", "monitor=val/odd", *words)


def run(folder: Path, values: list[float], *words: str) -> int:
    """The exit code of a run, or of one that goes on, whose metric has these values; it is tried twice before."""
    return ended(started(folder, *words, fault=lambda: Scripted.values.extend([0.0, 0.0, *values])))


def strict(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("kind", "values", "best"),
    [
        ("Rising", [NAN, 0.3, NAN, 0.5, 0.4], 3),
        ("Rising", [INF, 0.3, 0.2], 1),
        ("Rising", [-INF, NAN, 0.2], 2),
        ("Falling", [NAN, NAN, 0.5, 0.4, INF], 3),
        ("Falling", [-INF, 0.5, 0.6], 1),
    ],
)
def test_a_monitor_without_a_number_is_never_the_best(
    kind: str, values: list[float], best: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = watched(kind, f"trainer.max_epochs={len(values)}", "scheduler=plateau", "scheduler.patience=0")
    assert run(folder, [*values, NAN, INF], *words) == 0, out(folder)
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == best
    metrics = strict(folder / "metrics.json")
    assert (metrics["val/odd"], metrics["test/odd"]) == (None, None)  # as it is scored once more, at the end
    assert metrics["val/acc"] > 0
    assert strict(folder / "run.json")["status"] == "finished"
    assert "no_number" in torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Saving"]


def test_a_run_whose_monitor_never_had_a_number_fails_and_keeps_its_weights(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", watched("Rising", "trainer.max_epochs=2")
    assert run(folder, [NAN, INF], *words) == 1
    for _ in range(2):
        assert status(folder) == "failed"
        error = strict(folder / "run.json")["error"]
        assert error.startswith("UserError: val/odd was never a finite number, so that no checkpoint is the best")
        assert f"error: {error.removeprefix('UserError: ')}" in out(folder)
        assert "Traceback" not in out(folder)
        assert not (folder / "metrics.json").exists()
        assert not (folder / "checkpoints/best.ckpt").exists()
        assert run(folder, [], AGAIN) == 1  # nothing is left to train, and it is no more finished than it was
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_run_whose_monitor_gets_a_number_later_goes_on(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", watched("Rising", "trainer.max_epochs=2")
    assert run(folder, [NAN, NAN], *words) == 1
    cfg = folder / "config.yaml"
    cfg.write_text(cfg.read_text().replace("max_epochs: 2", "max_epochs: 4"))
    assert run(folder, [NAN, 0.5, 0.5, 0.5], AGAIN) == 0, out(folder)
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == 3
    assert strict(folder / "metrics.json")["test/odd"] == 0.5

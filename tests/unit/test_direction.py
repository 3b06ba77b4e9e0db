"""Which way is better: the metric says it, `mode: auto` follows it, and what contradicts it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import quick
from omegaconf import DictConfig, OmegaConf

from research.engine.build import build
from research.engine.errors import UserError
from research.engine.schedules import StepPlateau

WAYS = {
    "val/loss": "min",
    "train/loss": "min",
    "train/loss_step": "min",
    "val/acc": "max",
    "val/f1": "max",
    "val/auroc": "max",
    "val/ece": "min",
}
WAYS_OF_VALUES = {"val/loss": "min", "val/mae": "min", "val/rmse": "min", "val/r2": "max"}
CASES = [(name, way, ()) for name, way in WAYS.items()]
CASES += [(name, way, ("data=diabetes",)) for name, way in WAYS_OF_VALUES.items()]
WATCHED = ("callbacks.early_stopping", "callbacks.checkpoint", "scheduler")
UNDIRECTED = "+metrics.odd={_target_: scripted.Scripted, _partial_: true}"


def built(folder: Path, *words: str, **more: Any) -> DictConfig:
    """The config as a run has it on record, of a build that takes all that watches a metric."""
    cfg = quick(*words, "callbacks=default")
    build(cfg, folder, **more)
    return cfg


@pytest.mark.parametrize(("monitor", "way", "words"), CASES, ids=lambda value: str(value))
def test_auto_follows_the_metric(monitor: str, way: str, words: tuple[str, ...], tmp_path: Path) -> None:
    plateau = ("scheduler=plateau",) if monitor.startswith("val/") else ()
    cfg = quick(*words, *plateau, f"monitor={monitor}", "callbacks=default")
    parts = build(cfg, tmp_path)
    assert cfg.mode == way
    assert {OmegaConf.select(cfg, f"{key}.mode") for key in WATCHED} <= {way, None}
    stops, saves = parts.trainer.early_stopping_callback, parts.trainer.checkpoint_callback
    assert stops is not None
    assert stops.mode == way
    assert saves.sign == {"min": 1, "max": -1}[way]  # pyright: ignore
    if plateau:
        optimizer = torch.optim.SGD(parts.task.parameters(), 0.1)
        assert parts.task.make_scheduler(optimizer, None)["scheduler"].mode == way
        assert any(isinstance(callback, StepPlateau) for callback in parts.trainer.callbacks)  # pyright: ignore


@pytest.mark.parametrize("monitor", WAYS)
def test_the_other_way_is_refused_whoever_says_it(monitor: str, tmp_path: Path) -> None:
    way = WAYS[monitor]
    wrong = {"min": "max", "max": "min"}[way]
    for key in ("mode", *(f"{key}.mode" for key in WATCHED)):
        if key.startswith("scheduler") and not monitor.startswith("val/"):
            continue
        plateau = ("scheduler=plateau",) if key.startswith("scheduler") else ()
        with pytest.raises(UserError) as told:
            built(tmp_path, *plateau, f"monitor={monitor}", f"{key}={wrong}")
        better = {"min": "lower", "max": "higher"}[way]
        expected = f"{key}={wrong}: {monitor} is better when it is {better}; take {key}={way}, or auto."
        assert list(told.value.problems) == [expected]
        built(tmp_path, *plateau, f"monitor={monitor}", f"{key}={way}")


def test_each_that_watches_another_metric_follows_its_own(tmp_path: Path) -> None:
    cfg = built(tmp_path, "monitor=val/acc", "callbacks.early_stopping.monitor=val/ece", "scheduler=plateau",
                "scheduler.monitor=val/loss")  # fmt: skip
    assert [OmegaConf.select(cfg, f"{key}.mode") for key in WATCHED] == ["min", "max", "min"]
    with pytest.raises(UserError) as told:
        built(tmp_path, "monitor=val/acc", "mode=max", "callbacks.early_stopping.monitor=val/ece")
    assert list(told.value.problems) == [
        "callbacks.early_stopping.mode=max: val/ece is better when it is lower; "
        "take callbacks.early_stopping.mode=min, or auto."
    ]


def test_a_metric_that_says_nothing_needs_a_mode(tmp_path: Path) -> None:
    words = (UNDIRECTED, "monitor=val/odd")
    with pytest.raises(UserError) as told:
        built(tmp_path, *words)
    assert list(told.value.problems) == [
        "mode=auto: the class of the metric val/odd does not say which way is better; take mode=min or max."
    ]
    for mode in ("min", "max"):
        assert built(tmp_path, *words, f"mode={mode}").callbacks.checkpoint.mode == mode
    built(tmp_path, UNDIRECTED)  # that nobody watches
    with pytest.raises(UserError, match="no logged metric 'val/od'; did you mean 'val/odd'") as told:
        built(tmp_path, UNDIRECTED, "monitor=val/od")
    assert "does not say" not in str(told.value)


def test_a_run_of_before_opens_as_it_was_made_and_takes_no_new_contradiction(tmp_path: Path) -> None:
    cfg = quick("monitor=val/acc", "callbacks=default")
    task = build(cfg, tmp_path).task
    for node in (cfg, cfg.callbacks.checkpoint, cfg.callbacks.early_stopping):
        node.mode = "min"  # as today's default was
    state = {"state_dict": task.state_dict(), "config": OmegaConf.to_container(cfg, resolve=True)}
    build(cfg, tmp_path, state=state)
    assert cfg.callbacks.checkpoint.mode == "min"
    cfg.callbacks.early_stopping.monitor, cfg.callbacks.early_stopping.mode = "val/loss", "max"
    with pytest.raises(UserError, match=r"^callbacks.early_stopping.mode=max: val/loss is better when it is lower"):
        build(cfg, tmp_path, state=state)

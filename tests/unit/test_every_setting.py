"""Every key of the config with null, and every whole number with values out of range: it works, or one message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, composed, options, own_files, quick, told
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import OmegaConf

from research.engine.build import build
from research.engine.check import _keys
from research.engine.errors import UserError

ELSEWHERE = {"data", "experiment", "hydra"}
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
PARTS = [f"{group}={name}" for group in sorted(GROUPS - ELSEWHERE) for name in options(group)]
BEYOND = ("-1", "0", str(2**31 - 1), str(10**30), "1.5", "x", "null")
SLOW = ("bert", "head", "lora", "gradual", "=masked")  # read the standard library


def keys() -> Iterator[Any]:
    """Each key of each option, with the words that bring it about."""
    usual = {key: () for key in _keys(composed()) if key not in GROUPS and not key.startswith("trainer.")}
    for words in ["", *PARTS]:
        found = usual if not words else _keys(composed(words))
        for key in found:
            if not words or (key.startswith(words.split("=")[0] + ".") and key not in usual and "trainer." not in key):
                slow = any(name in words for name in SLOW)
                yield pytest.param(words, key, id=f"{words} {key}", marks=[pytest.mark.slow] if slow else [])


def outcome(words: list[str], folder: Path, texts: bool = False) -> str:
    """What a user reads of a command, one line; nothing when it trains. Fails on anything but a message."""
    problems = told(*words)
    if not problems:
        try:
            chosen = [word for word in words if "callbacks.progress" not in word]
            parts = build(quick("callbacks=default", *chosen), folder / "run")
            if not texts:
                parts.trainer.fit(parts.task, parts.data)
            return ""
        except UserError as error:
            problems = list(error.problems)
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    return problems[0]


@pytest.mark.parametrize(("words", "key"), list(keys()))
def test_null_works_or_is_told(words: str, key: str, tmp_path: Path) -> None:
    logger = ["logger=tensorboard"] if key.startswith("logger") and not words else []
    said = outcome([*words.split(), *logger, f"{key}=null", f"cache.folder={tmp_path}"], tmp_path)
    assert not said or key.split(".")[0] in said, said


@pytest.mark.parametrize("key", composed("callbacks=ema").callbacks)
def test_every_callback_but_the_one_that_saves_can_be_switched_off(key: str, tmp_path: Path) -> None:
    for way in (f"callbacks.{key}=null", f"~callbacks.{key}"):
        said = outcome(["callbacks=ema", way], tmp_path)
        assert ("cannot be left out" in said) == (key == "checkpoint"), said


@pytest.mark.parametrize(
    "word", ["callbacks.progress=null", "~callbacks.progress", "trainer.enable_progress_bar=false"]
)
def test_no_progress_bar_is_left(word: str, tmp_path: Path) -> None:
    cfg = composed("trainer.accelerator=cpu", word)
    trainer: Any = build(cfg, tmp_path).trainer
    assert not [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]


def test_a_yaml_that_switches_a_callback_off(tmp_path: Path) -> None:
    cfg = composed("callbacks=default", "trainer.accelerator=cpu")
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks = OmegaConf.merge(cfg.callbacks, {"early_stopping": None, "summary": None})
    trainer: Any = build(cfg, tmp_path).trainer
    kinds = {type(callback).__name__ for callback in trainer.callbacks}
    assert "Saving" in kinds
    assert not kinds & {"EarlyStopping", "Summary"}


def numbers() -> Iterator[Any]:
    """Each whole number of each dataset and of the primary config."""
    for name in ("", "digits", "docstrings", "table", "text", "images"):  # the others have the same
        cfg: Any = OmegaConf.to_container(composed(f"data={name}") if name else composed())
        node = cfg["data"] if name else {key: value for key, value in cfg.items() if key not in GROUPS}
        yield from ((name, f"data.{key}" if name else key) for key, value in node.items() if _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


NUMBERS = [*numbers(), ("table", "data.folds"), ("images", "data.num_workers")]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return own_files(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_a_number_out_of_range_works_or_is_told(name: str, key: str, own: dict[str, list[str]], tmp_path: Path) -> None:
    words = own.get(name, [f"data={name}"] if name else [])
    for value in BEYOND:
        if key == "data.num_workers" and value == "0":
            continue
        given = [word for word in words if not word.startswith(f"{key}=")]
        texts = name in ("text", "hub", "docstrings")
        if texts and (told(*given, f"{key}={value}") == []):
            continue  # read in the tests of texts
        said = outcome([*given, f"{key}={value}", f"cache.folder={tmp_path / 'cache'}"], tmp_path, texts)
        assert not said or key.split(".")[-1] in said or "memory" in said, said
        if value in ("1.5", "x"):
            assert said

"""A run opened again: its own config is the base, the words of the command go on top, today's `conf/` stays out."""

import json
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, composed, options
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from research.engine.check import check
from research.engine.errors import UserError
from research.engine.record import held
from research.engine.reopen import changes, pointed, quoted, reopened, saved_config

LATE = "research.engine.schedules.LearningRate"
CHOICES = {"model": "mlp", "optimizer": "adam", "data": "digits", "trainer": "default", "callbacks": "default"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of settings that today's defaults do not have, and of an experiment that is no longer there."""
    cfg = composed("trainer.max_epochs=77", "optimizer.lr=0.5")
    OmegaConf.set_struct(cfg, False)
    cfg.model.width = 12
    cfg.callbacks.of_the_past = {"_target_": LATE, "logging_interval": "step"}
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    record = {"choices": CHOICES, "overrides": ["experiment=gone", "trainer.max_epochs=77"]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def opened(run: Path, groups: list[str], values: list[str], name: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return reopened(name, run, groups, values, [CONF])


def told(run: Path, *words: str) -> list[str]:
    return check(str(CONF), "train", list(words), folder=run)


def test_without_words_nothing_changes(run: Path) -> None:
    assert changes(saved_config(run), opened(run, [], [f"resume={run}"])) == {}
    assert told(run, f"resume={run}") == []


def test_a_value_is_set_also_where_todays_config_has_no_such_key(run: Path) -> None:
    words = ["trainer.max_epochs=99", "callbacks.of_the_past.logging_interval=epoch", "~callbacks.early_stopping"]
    assert told(run, *words) == []
    found = changes(saved_config(run), opened(run, [], words))
    early = saved_config(run)["callbacks"]["early_stopping"]
    assert found.pop("callbacks.early_stopping") == (early, None)
    assert found == {"trainer.max_epochs": (77, 99), "callbacks.of_the_past.logging_interval": ("step", "epoch")}


def test_an_option_changes_what_differs_from_the_option_the_run_was_made_with(run: Path) -> None:
    trainer = opened(run, ["trainer=ddp"], []).trainer
    assert (trainer.strategy, trainer.devices, trainer.max_epochs) == ("ddp", 2, 77)
    assert opened(run, ["optimizer=adam"], []).optimizer.lr == 0.5
    assert opened(run, ["optimizer=sgd"], []).optimizer == composed("optimizer=sgd").optimizer
    averaged = opened(run, ["callbacks=ema"], []).callbacks
    assert averaged.averaging.decay == 0.99
    assert averaged.of_the_past.logging_interval == "step"


def test_an_option_of_a_run_whose_own_is_gone_counts_as_a_whole(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["choices"]["optimizer"] = "gone"
    (run / "run.json").write_text(json.dumps(record))
    assert opened(run, ["optimizer=adam"], []).optimizer.lr == 1e-3


def test_the_keys_of_another_command_are_added(run: Path) -> None:
    cfg = opened(run, [], [f"run={run}", "checkpoint=last"], name="evaluate")
    assert (cfg.checkpoint, cfg.trainer.max_epochs) == ("last", 77)
    assert changes(saved_config(run), cfg) == {}


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        ("trainer.max_epochs=ten", "integer"),
        ("callbacks.of_the_past.loging_interval=epoch", "did you mean 'callbacks.of_the_past.logging_interval'?"),
        ("optimizer=sgdd", "did you mean 'sgd'?"),
        ("trainer.max_epochs=1,2", "one run folder is opened at a time"),
    ],
)
def test_mistakes_are_told_against_the_run(run: Path, word: str, fragment: str) -> None:
    problems = told(run, word)
    assert len(problems) == 1
    assert fragment in problems[0]


@pytest.mark.parametrize("content", ["", "- a\n", "a: [", "\x00"], ids=repr)
def test_a_damaged_config_is_told(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    problems = told(run, "seed=3")
    assert len(problems) == 1
    assert "config.yaml" in problems[0]


@pytest.mark.parametrize("word", ["run=", "run=null", "resume=", "run=nowhere", "resume=a,b"])
def test_what_is_not_a_run_is_refused(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        pointed([word])


NAMES = st.text(st.sampled_from(list("aé'\"\\ ,[]{}()$=:;~#&@!*?%|<>`^+-.\t")), min_size=1, max_size=8)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=NAMES.filter(lambda name: name not in (".", "..") and "${" not in name), key=st.sampled_from(["run", "resume"])
)
def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    (tmp_path / "train.yaml").write_text(f"{key}: null\n")
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for file in ("config.yaml", "run.json"):
        (folder / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    # as it is typed, as a shell hands on what a hint says, and as this project writes it for another process
    typed = [f"{key}={name}", *shlex.split(shlex.quote(f"{key}={name}")), f"{key}={folder}", f"{key}={quoted(folder)}"]
    for word in typed:
        found, words = pointed(["seed=1", word])
        assert found is not None
        assert found.resolve() == folder
        assert words == ["seed=1", f"{key}={quoted(found)}"]
    words = [f"{key}={quoted(folder)}", f"hydra.run.dir={quoted(folder)}"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("train", words, return_hydra_config=True)
    assert cfg[key] == cfg.hydra.run.dir == str(folder)
    assert check(str(tmp_path), "train", words) == []


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null", "'a'", "o'dir", "a,b"])
def test_a_folder_is_the_one_that_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for other in (name, "a"):
        Path(other).mkdir(exist_ok=True)
        Path(other, "config.yaml").write_text("{}")
        Path(other, "run.json").write_text("{}")
    assert pointed([f"run=./{name}"])[0] == Path(name)
    if name != "null":
        assert pointed([f"run={name}"])[0] == Path(name)
    with pytest.raises(UserError, match="names two runs"):
        pointed([f"run=./{name}", "resume=a"])


def test_a_folder_that_hydra_would_read_otherwise_is_told(tmp_path: Path) -> None:
    (tmp_path / "a${b}").mkdir()
    with pytest.raises(UserError, match="rename it"):
        pointed([f"run={tmp_path}/a${{b}}"])


# types


def numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def declared(key: str, cfg: DictConfig) -> Any:
    """The type that Python itself says, of a class that is imported; Any where it says none."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if "_target_" not in node:
        return int if key == "seed" else Any if parent in ("", "cache") else None  # else a part of an argument
    target: Any = get_object(node._target_)
    for kind in getattr(target, "__mro__", [target]):
        hints = typing.get_type_hints(kind.__init__ if isinstance(kind, type) else kind, include_extras=True)
        if leaf in hints:
            return hints[leaf]
    return Any


OPTIONS = [f"{group}={option}" for group in ("optimizer", "scheduler", "loss", "augment") for option in options(group)]
OPTIONS += ["callbacks=ema", "callbacks=swa", "model=boosting", "model=cnn", "model=bert", "model=mlp", "finetune=lora"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_number_is_refused_by_its_type_alone_not_by_its_default(run: Path, option: str) -> None:
    """A whole number in a config, of a run or a yaml file, may be a number that happens to have no fraction."""
    cfg = composed(option)
    whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    keys = [key for key, _ in numbers(cfg) if declared(key, cfg) is not None]
    fractional = []
    for key in keys:
        kind = declared(key, cfg)
        if kind is Any or not misfit(0.5, kind):
            fractional.append(key)
            OmegaConf.update(whole, key, 1)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(whole))
    problems = told(run, *(f"{key}=0.5" for key in fractional))
    assert [problem for problem in problems if "integer" in problem or "is not" in problem] == []
    rest = [key for key in keys if key not in fractional]
    problems = told(run, *(f"{key}=1.5" for key in rest))
    assert all(any(problem.startswith(f"{key}=1.5") for problem in problems) for key in rest)


def misfit(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind, config={"arbitrary_types_allowed": True}).validate_python(value, strict=True)
    except ValidationError:
        return True
    return False


def test_a_new_run_points_nowhere() -> None:
    assert pointed(["resume=null", "seed=3", "running=4"])[0] is None


def test_one_process_at_a_time_holds_a_folder(run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"pid": 123}))
    raised: Any = pytest.raises(UserError, match="process 123 is training")
    with held(run), raised, held(run):
        pass
    with held(run):  # free again
        pass


def test_a_folder_is_free_when_the_block_ends_not_when_something_is_collected(run: Path) -> None:
    (run / "run.json").unlink()
    first = held(run)
    refused: Any = pytest.raises(UserError, match="another process is training")
    with first, refused, held(run):
        pass
    with held(run):
        pass
    assert first is not None

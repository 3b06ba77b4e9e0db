"""A run opened again: its own config is the base, the words of the command go on top, today's `conf/` stays out."""

import json
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, composed
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from research.engine.check import check
from research.engine.errors import UserError
from research.engine.record import held
from research.engine.reopen import changes, pointed, reopened, saved_config, with_values

CHOICES = {"model": "mlp", "optimizer": "adam", "data": "digits", "trainer": "default", "callbacks": "default"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of settings that today's defaults do not have, and of an experiment that is no longer there."""
    cfg = composed("trainer.max_epochs=77", "optimizer.lr=0.5")
    OmegaConf.set_struct(cfg, False)
    cfg.model.width = 12
    cfg.callbacks.of_the_past = {"_target_": "lightning.pytorch.callbacks.Timer", "interval": "step"}
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    record = {"choices": CHOICES, "overrides": ["experiment=gone", "trainer.max_epochs=77"]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def opened(run: Path, groups: list[str], values: list[str], name: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return with_values(reopened(name, run, groups), values)


def told(run: Path, *words: str) -> list[str]:
    return check(str(CONF), "train", list(words), folder=run)


def test_without_words_nothing_changes(run: Path) -> None:
    assert changes(saved_config(run), opened(run, [], [f"resume={run}"])) == {}
    assert told(run, f"resume={run}") == []


def test_a_value_is_set_also_where_todays_config_has_no_such_key(run: Path) -> None:
    words = ["trainer.max_epochs=99", "callbacks.of_the_past.interval=epoch", "~callbacks.early_stopping"]
    assert told(run, *words) == []
    found = changes(saved_config(run), opened(run, [], words))
    early = saved_config(run).callbacks.early_stopping
    assert found.pop("callbacks.early_stopping") == (early, None)
    assert found == {"trainer.max_epochs": (77, 99), "callbacks.of_the_past.interval": ("step", "epoch")}


def test_an_option_changes_what_differs_from_the_option_the_run_was_made_with(run: Path) -> None:
    trainer = opened(run, ["trainer=ddp"], []).trainer
    assert (trainer.strategy, trainer.devices, trainer.max_epochs) == ("ddp", 2, 77)
    assert opened(run, ["optimizer=adam"], []).optimizer.lr == 0.5
    assert opened(run, ["optimizer=sgd"], []).optimizer == composed("optimizer=sgd").optimizer
    averaged = opened(run, ["callbacks=ema"], []).callbacks
    assert averaged.averaging.decay == 0.99
    assert averaged.of_the_past.interval == "step"


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
        ("callbacks.of_the_past.interwal=epoch", "did you mean 'callbacks.of_the_past.interval'?"),
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


def test_a_new_run_points_nowhere() -> None:
    assert pointed(["resume=null", "seed=3", "running=4"]) is None


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

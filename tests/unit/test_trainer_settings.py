"""A walk through every argument of the trainer: each value makes a whole run, or is refused in a sentence."""

import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed, quick, told
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from lightning import Trainer
from omegaconf import OmegaConf

from research.engine.arguments import wrong_value
from research.engine.build import Parts, build
from research.engine.checkpoint import load, path_of
from research.engine.errors import UserError
from research.engine.guard import explained
from research.engine.limits import TRAINER
from research.engine.rehearsal import check_training
from research.engine.score import score
from research.engine.stop import asked

VALUES = ("0", "-1", "1", "-3", "1000000000", f"{10**30}", "null", "1.5", "-0.5", "x", "[1]", "true", "auto")
GIVEN = [key for key in map(str, composed().trainer) if not key.startswith("_")]  # of conf/trainer/default.yaml
WALK = [f"{'' if key in GIVEN else '+'}trainer.{key}={value}" for key in TRAINER for value in VALUES]
MORE = [
    "trainer.limit_train_batches=0.001",
    "trainer.limit_val_batches=0.001",
    "trainer.limit_test_batches=0.001",
    "trainer.precision=16-mixed",
    "trainer.precision=16-true",
    "trainer.precision=bf16-true",
    "trainer.precision=64-true",
    "trainer.precision=transformer-engine",
    "trainer.strategy=fsdp",
    "trainer.strategy=ddp_spawn",
    "trainer.profiler=simple",
    "+trainer.max_time=00:00:00:30",
    "+trainer.max_time=00:00:00:00",
    "+trainer.max_time={seconds: 30}",
    "trainer.val_check_interval='00:00:01:00'",
]


def trained(folder: Path, *words: str) -> tuple[Parts, dict[str, float]]:
    """As `python src/train.py` does it, in this process: build, look ahead, fit, score the best."""
    chosen = () if any(word.startswith("callbacks") for word in words) else ("callbacks=default",)
    cfg = quick(*chosen, *words)
    parts = build(cfg, folder)
    saving: Any = parts.trainer.checkpoint_callback
    saving.config = OmegaConf.to_container(cfg, resolve=True)
    check_training(parts)
    parts.trainer.fit(parts.task, parts.data)
    best = path_of(folder, "best")
    parts.task.load_state_dict(load(best if best.is_file() else path_of(folder, "last"))["state_dict"])
    return parts, score(parts)


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stay with the tests."""
    monkeypatch.setattr(asked, "take", lambda: None)


@pytest.fixture(scope="module")
def refused() -> list[str]:
    """What is told of all words of the walk; each of them begins with the word that it is about."""
    return told(*WALK, *MORE)


def test_every_argument_of_the_trainer_has_a_limit() -> None:
    assert set(TRAINER) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}


NONSENSE = """max_epochs=0 max_epochs=-3 max_steps=0 max_steps=-3 min_epochs=0 min_steps=-1 limit_train_batches=0
limit_train_batches=-1 limit_val_batches=-1 limit_test_batches=-3 num_sanity_val_steps=-3 val_check_interval=0
val_check_interval=-1 check_val_every_n_epoch=0 check_val_every_n_epoch=-1 log_every_n_steps=0 log_every_n_steps=-1
gradient_clip_val=0 gradient_clip_val=-1 accumulate_grad_batches=0 accumulate_grad_batches=-1 devices=0 num_nodes=0
devices=-3 max_epochs=1.5 log_every_n_steps=null deterministic=null precision=1 strategy=x strategy=fsdp
strategy=ddp_spawn profiler=x overfit_batches=1 fast_dev_run=true enable_checkpointing=true barebones=true
use_distributed_sampler=true plugins=x callbacks=x logger=true default_root_dir=x reload_dataloaders_every_n_epochs=1
enable_model_summary=true limit_predict_batches=1 model_registry=x max_time=x max_time=00:00:00:00"""


@pytest.mark.parametrize("word", NONSENSE.split())
def test_a_value_that_makes_no_sense_is_told_from_the_words(word: str, refused: list[str]) -> None:
    spelled = word.replace("null", "None").replace("true", "True")
    assert any(problem.startswith((f"trainer.{word}", f"trainer.{spelled}")) for problem in refused)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("trainer.max_epochs=-1", "without an end"),
        ("trainer.max_epochs=null", "without an end"),
        ("+trainer.min_epochs=5 trainer.max_epochs=3", "min_epochs=5 is more than trainer.max_epochs=3"),
        ("+trainer.min_steps=5 trainer.max_steps=3", "min_steps=5 is more than trainer.max_steps=3"),
        ("+trainer.gradient_clip_algorithm=value", "nothing is clipped"),
        ("trainer.check_val_every_n_epoch=null", "must be a number of batches"),
        ("trainer.check_val_every_n_epoch=null trainer.val_check_interval=0.5", "must be a number of batches"),
        ("trainer.check_val_every_n_epoch=30", "no epoch would be validated"),
        ("trainer.accumulate_grad_batches=2 trainer.val_check_interval=1", "within a step"),
        ("trainer.devices=1000000000", "share out data.batch_size=64 rows"),
        ("trainer.num_nodes=1000", "share out data.batch_size=64 rows"),
        ("trainer.benchmark=true", "needs trainer.deterministic=false"),
        ("+trainer.fast_dev_run=true", "take trainer=debug"),
        ("+trainer.overfit_batches=1", "take trainer=overfit"),
    ],
)
def test_settings_that_make_no_sense_together_are_told_from_the_words(words: str, fragment: str) -> None:
    (problem,) = told(*words.split())
    assert fragment in problem


DIABETES = "data=diabetes loss=mse metrics=regression"
SMALL = "model=cnn model.stages=4 model.width=4 trainer.limit_train_batches=null"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("trainer.val_check_interval=1000", "more than the 2 batches of an epoch"),
        (
            "trainer.check_val_every_n_epoch=null trainer.val_check_interval=7 trainer.max_epochs=3",
            "more than the 6 batches of the whole run",
        ),
        ("trainer.limit_train_batches=0.001", "trainer.limit_train_batches=0.001 of 20 batches is none"),
        ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches=0.001 of 5 batches is none"),
        ("trainer.limit_test_batches=0.001", "trainer.limit_test_batches=0.001 of 5 batches is none"),
        (f"{SMALL} data.batch_size=157", "leaves a batch of one row, of the 1257 rows"),
        (f"{SMALL} data.batch_size=1", "leaves a batch of one row, of the 1257 rows"),
        ("metrics.acc.average=null", "metrics.acc gives 10 numbers where one is needed"),
        ("metrics.f1.average=none", "metrics.f1 gives 10 numbers where one is needed"),
        (f"{DIABETES} +metrics.r2.multioutput=raw_values data.batch_size=1 trainer.limit_val_batches=1", "metrics.r2"),
        (f"{DIABETES} data.batch_size=1 trainer.limit_val_batches=1", "at least two samples to calculate r2"),
        (f"{DIABETES} data.batch_size=1 trainer.num_sanity_val_steps=1", "at least two samples to calculate r2"),
        ("trainer.precision=16-true", "optimizer.eps=1e-08, by which steps are divided, is 0"),
        ("trainer.precision=16-mixed", "precision=16-mixed is for a GPU"),
        ("trainer.precision=transformer-engine", "transformer_engine"),
        ("trainer.devices=[0]", "should be an int > 0"),
        ("trainer.num_nodes=2", "nothing says where the other nodes are"),
    ],
)
def test_what_the_rows_do_not_allow_is_told_before_the_fit(
    words: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("the fit began"))
    with pytest.raises(UserError) as told:
        trained(tmp_path, *words.split())
    assert fragment in str(told.value)


@pytest.mark.parametrize(
    "words",
    [
        f"{SMALL} data.batch_size=157 trainer.limit_train_batches=2",  # does not come to the last batch
        f"{SMALL} data.batch_size=157 model.stages=1 trainer.limit_test_batches=1",  # has many pixels a row
        f"{DIABETES} data.batch_size=1 trainer.limit_val_batches=2 trainer.limit_test_batches=2",
        "trainer.precision=16-true optimizer.eps=1e-4",
        "trainer.precision=bf16-true callbacks=ema",
        "trainer.precision=64-true",
        "trainer.check_val_every_n_epoch=null trainer.val_check_interval=3 trainer.max_epochs=3",
        "trainer.limit_test_batches=0",
    ],
)
def test_what_the_rows_allow_is_trained(words: str, tmp_path: Path) -> None:
    check_whole(tmp_path, *words.split())


def check_whole(folder: Path, *words: str) -> None:
    parts, metrics = trained(folder, *words)
    assert path_of(folder, "last").is_file()
    assert metrics
    assert all(map(math.isfinite, metrics.values()))
    assert parts.trainer.global_step > 0


def test_a_plateau_is_looked_at_where_there_is_a_validation(tmp_path: Path) -> None:
    words = ("scheduler=plateau", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=6")
    parts, _ = trained(tmp_path, *words)
    assert parts.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3  # one look a validation


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("words", ["", "model=cnn model.width=4 augment=images"])
def test_a_batch_is_made_again_in_the_precision_of_the_run(words: str, precision: str, tmp_path: Path) -> None:
    cfg = quick(*words.split(), f"trainer.precision={precision}", "optimizer=sgd")
    parts, made = build(cfg, tmp_path), []
    real: Callable[..., Any] = parts.task.loss_of

    def loss_of(batch: Any, batch_idx: int) -> Any:
        made.append(batch)
        return real(batch, batch_idx)

    def again(*_: Any) -> None:
        assert "the loss is" in explained(parts.trainer, parts.task, 1)  # runs it

    parts.task.loss_of, parts.task.on_train_epoch_end = loss_of, again
    parts.trainer.fit(parts.task, parts.data)
    *_, first, second = made
    assert first[0].dtype == second[0].dtype
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_out_of_memory_a_step_is_done_again_in_the_precision_of_the_run(precision: str, tmp_path: Path) -> None:
    parts = build(quick(f"trainer.precision={precision}"), tmp_path)
    real: Callable[..., Any] = parts.task.loss_of

    def loss_of(batch: Any, batch_idx: int) -> Any:
        if len(batch[1]) > 40:
            raise torch.OutOfMemoryError("too much")
        return real(batch, batch_idx)

    parts.task.loss_of = loss_of
    parts.trainer.limit_val_batches = 0
    parts.trainer.fit(parts.task, parts.data)
    assert parts.trainer.global_step == 2
    assert parts.task.parts == 2


def test_scores_of_a_run_in_16_bits_are_summed_in_32(tmp_path: Path) -> None:
    words = (*DIABETES.split(), "trainer.precision=bf16-true", "trainer.limit_val_batches=1.0", "data.batch_size=2")
    parts = build(quick(*words, "model.dropout=0"), tmp_path)
    parts.trainer.fit(parts.task, parts.data)
    rows: Any = parts.data.rows["val"]
    task = parts.task.eval()
    with torch.no_grad():
        x, y = rows.x.bfloat16(), rows.y.bfloat16()
        predicted = task.predicted(task.net(task.scale_x(x)))
    expected = (predicted - y.float()).abs().mean()
    found = parts.trainer.callback_metrics["val/mae"]
    assert float(found) == pytest.approx(float(expected), rel=1e-3)  # sums in 16 bits are 1 % off


def passes(word: str) -> bool:
    """Whether the limit of the argument lets the value pass."""
    key, _, text = word.partition("=")
    value = OverridesParser.create().parse_override(word).value()
    return not wrong_value(key, text if isinstance(value, QuotedString) else value, None, TRAINER[key.split(".")[-1]])


@pytest.mark.slow
@pytest.mark.parametrize("word", [word for word in [*WALK, *MORE] if passes(word)])
def test_what_is_accepted_makes_a_run_or_is_told(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    words = [word, "trainer.max_steps=3"] if "max_epochs" in word else [word]
    if not told(*words):
        with suppress(UserError):
            check_whole(tmp_path, *words)

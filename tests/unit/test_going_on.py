"""A run that goes on with other settings: state from the checkpoint, settings from the command."""

import csv
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_hand_task import TwoOptimizers
from composing import quick
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from research.engine.averaging import Ema
from research.engine.build import Parts, build
from research.engine.checkpoint import load, path_of
from research.engine.errors import UserError
from research.engine.fit import fit
from research.engine.saving import Saving
from research.engine.stop import Stopped, asked

CALLBACKS = "callbacks=default"
LONG = ("mode=min", "callbacks.early_stopping.patience=500", "optimizer=sgd", "model.width=8")


def trained(folder: Path, *words: str, was: str | None = None, batches: Any = None) -> Parts:
    """Train, or go on with a run, in this process."""
    cfg: DictConfig = quick(CALLBACKS, *LONG, *words)
    cfg.trainer.limit_train_batches = batches
    return fit(cfg, folder, None, was)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """The points of a metric, by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


# the law of schedules


def factor(name: str, count: int, total: int, more: dict[str, Any]) -> float:
    """The rate of a schedule over the optimizer's, by hand."""
    if name == "step":
        return more["gamma"] ** (count // more["step_size"])
    if name == "onecycle":
        top = (more["pct_start"] * (total + 1) - 1) or 0.001
        low, end = 1 / more["div_factor"], 1 / more["div_factor"] / more["final_div_factor"]
        start, stop, share = (low, 1, count / top) if count <= top else (1, end, (count - top) / (total - top))
        return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2
    warmup = more["warmup_frac"] * total
    if count < warmup:
        return (count + 1) / (warmup + 1)
    share = min(1.0, (count - warmup) / max(1.0, total - warmup))
    final = more.get("final_frac", 1.0)
    if name == "linear":
        return 1 - (1 - final) * share
    if name == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
    return 1.0


INTERVAL = st.sampled_from(["step", "epoch"])
WARM = {"interval": INTERVAL, "warmup_frac": st.sampled_from([0.0, 0.1, 0.4])}
FINAL = {**WARM, "final_frac": st.sampled_from([0.0, 0.25])}
CYCLE = {"interval": st.just("step"), "pct_start": st.sampled_from([0.25, 0.5])}
CYCLE |= {"div_factor": st.just(10.0), "final_div_factor": st.just(100.0)}
STEP = {"interval": INTERVAL, "step_size": st.integers(1, 7), "gamma": st.sampled_from([0.1, 0.5])}
KINDS: dict[str, dict[str, Any]] = {"constant": WARM, "linear": FINAL, "cosine": FINAL, "onecycle": CYCLE, "step": STEP}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(KINDS)))
    return name, {key: draw(values) for key, values in KINDS[name].items()}


@st.composite
def lengths(draw: st.DrawFn) -> dict[str, int]:
    """Settings that say how many steps a run has: rows a batch, batches a step, epochs, and perhaps steps."""
    chosen = {
        "data.batch_size": draw(st.sampled_from([157, 314, 419, 629])),  # of 1,257 rows: 9, 5, 3 or 2 batches
        "trainer.accumulate_grad_batches": draw(st.integers(1, 3)),
        "optimizer.lr": draw(st.sampled_from([0.05, 0.01])),
    }
    if draw(st.booleans()):
        chosen["trainer.max_steps"] = draw(st.integers(1, 12))
    return chosen


def by_hand(
    schedule: tuple[str, dict[str, Any]], length: dict[str, int], max_epochs: int, epochs: int, batches: int, step: int
) -> list[float]:
    """The rate of each step that is left, after whole epochs and some batches, and optimizer steps in all."""
    name, more = schedule
    per_epoch = math.ceil(math.ceil(1257 / length["data.batch_size"]) / length["trainer.accumulate_grad_batches"])
    within = math.ceil(batches / length["trainer.accumulate_grad_batches"])
    done, total, total_epochs = epochs * per_epoch + within, max_epochs * per_epoch, max_epochs
    left = total - done
    if length.get("trainer.max_steps", math.inf) - step < left:  # steps end it: the place is counted in steps
        left = length["trainer.max_steps"] - step
        done, total, total_epochs = step, length["trainer.max_steps"], epochs + math.ceil((within + left) / per_epoch)
    by_epoch = more["interval"] == "epoch"
    rates = []
    for index in range(left):
        count = epochs + (within + index) // per_epoch if by_epoch else done + index
        rates.append(length["optimizer.lr"] * factor(name, count, total_epochs if by_epoch else total, more))
    return rates


def words(schedule: tuple[str, dict[str, Any]], length: dict[str, int], max_epochs: int) -> list[str]:
    name, more = schedule
    settings_ = {f"scheduler.{key}": value for key, value in more.items()} | length
    settings_["trainer.max_epochs"] = max_epochs
    return [f"scheduler={name}", *(f"{key}={value}" for key, value in settings_.items())]


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(schedules(), lengths(), st.integers(1, 3), schedules(), lengths(), st.integers(1, 3))
def test_a_run_follows_from_its_first_step_the_schedule_of_the_settings_it_goes_on_with(
    tmp_path_factory: pytest.TempPathFactory,
    before: tuple[str, dict[str, Any]],
    length: dict[str, int],
    max_epochs: int,
    after: tuple[str, dict[str, Any]],
    further: dict[str, int],
    more_epochs: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    trained(folder, *words(before, length, max_epochs))
    rates = [rate for _, rate in curve(folder, "train/lr")]
    assert rates == pytest.approx(by_hand(before, length, max_epochs, 0, 0, 0), rel=1e-6, abs=1e-12)

    state = load(path_of(folder, "last"))
    epochs, batches, step = state["position"]["epoch"], state["position"]["batch"], state["global_step"]
    if batches:  # batches are counted anew only between epochs
        further |= {key: length[key] for key in ("data.batch_size", "trainer.accumulate_grad_batches")}
    if "trainer.max_steps" in further:
        further["trainer.max_steps"] += step
    all_epochs = epochs + bool(batches) + more_epochs
    trained(folder, *words(after, further, all_epochs), was="finished")
    found = curve(folder, "train/lr")[len(rates) :]
    assert [rate for _, rate in found] == pytest.approx(
        by_hand(after, further, all_epochs, epochs, batches, step), rel=1e-6, abs=1e-12
    )
    assert [at for at, _ in found] == list(range(step, step + len(found)))  # one curve, no overlap


def test_a_finished_run_learns_on_with_another_schedule(tmp_path: Path) -> None:
    trained(tmp_path, "scheduler=cosine", "trainer.max_epochs=2", batches=4)
    trained(tmp_path, "scheduler=step", "trainer.max_epochs=4", batches=4, was="finished")
    assert [rate for _, rate in curve(tmp_path, "train/lr")][8:] == [0.05] * 8


def test_a_cycle_of_momentum_ends_with_its_schedule(tmp_path: Path) -> None:
    trained(tmp_path, "scheduler=onecycle", "trainer.max_epochs=1", batches=4)
    assert load(path_of(tmp_path, "last"))["optimizer_states"][0]["param_groups"][0]["momentum"] != 0.9
    trained(tmp_path, "scheduler=constant", "trainer.max_epochs=2", batches=4, was="finished")
    assert load(path_of(tmp_path, "last"))["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.9


STILL = "optimizer.lr=1e-9"  # nothing changes, so that no validation is better than the first
PLATEAU = ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5")


def test_a_plateau_keeps_its_reductions_and_takes_new_settings(tmp_path: Path) -> None:
    trained(tmp_path, *PLATEAU, "optimizer.lr=1e-6", "trainer.max_epochs=3", batches=4)
    assert [rate for _, rate in curve(tmp_path, "train/lr")][8:] == [0.5e-6] * 4
    again = (*PLATEAU, "scheduler.factor=0.1", "optimizer.lr=2e-6", "trainer.max_epochs=5")
    trained(tmp_path, *again, batches=4, was="finished")
    rates = [rate for _, rate in curve(tmp_path, "train/lr")][12:]
    assert rates == pytest.approx([0.5e-6] * 4 + [0.5e-7] * 4)  # reduced twice by half before


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["optimizer=adam"], ["optimizer=adam", "optimizer.amsgrad=true"], "optimizer.amsgrad=True needs what the"),
        (["optimizer=rmsprop"], ["optimizer=rmsprop", "optimizer.momentum=0.9"], "optimizer.momentum=0.9 needs what"),
        ([], ["find_lr=true"], "find_lr: this comes before the first step of a run"),
        ([], ["data.batch_size=32", "trainer.max_epochs=1"], "has trained all its 1 epochs"),
        (["trainer.max_steps=3"], ["trainer.max_steps=3"], "has trained all its 3 steps"),
        (["trainer.max_steps=3"], ["trainer.max_steps=9", "data.batch_size=32"], "after batch 3; data.batch_size can"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, first: list[str], second: list[str], message: str) -> None:
    trained(tmp_path, "trainer.max_epochs=1", *first, batches=4)
    with pytest.raises(UserError, match=message):
        trained(tmp_path, "trainer.max_epochs=2", *second, batches=4, was="finished")


def test_settings_of_callbacks_are_those_of_the_command(tmp_path: Path) -> None:
    """Of every callback there is: no argument of its constructor is taken from a checkpoint."""
    parts = trained(tmp_path, "callbacks.early_stopping.patience=1", STILL, "trainer.max_epochs=9", batches=4)
    assert parts.trainer.current_epoch < 9
    done = load(path_of(tmp_path, "last"))["position"]["epoch"]
    again = ("callbacks.early_stopping.patience=5", STILL, "trainer.max_epochs=20")
    trained(tmp_path, *again, batches=4, was="finished")
    assert load(path_of(tmp_path, "last"))["position"]["epoch"] == done + 4


def test_class_weights_are_those_of_the_command(tmp_path: Path) -> None:
    trained(tmp_path, "trainer.max_epochs=1", "loss.class_weights=balanced", batches=2)
    parts = trained(
        tmp_path, "trainer.max_epochs=2", "loss.class_weights=[1,1,1,1,1,1,1,1,1,9]", batches=2, was="finished"
    )
    assert parts.task.loss.weight.tolist() == [1.0] * 9 + [9.0]
    parts = trained(tmp_path, "trainer.max_epochs=3", "loss=focal", batches=2, was="finished")
    assert parts.task.loss.weight is None


# ends within an epoch


def same_state(one: Path, other: Path) -> None:
    first, second = load(path_of(one, "last")), load(path_of(other, "last"))
    assert first["position"] == second["position"]
    assert first["global_step"] == second["global_step"]
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize("more", [(), ("callbacks=ema",), ("trainer.val_check_interval=2",)], ids=str)
def test_a_run_of_some_steps_goes_on_with_the_next_batch(tmp_path: Path, steps: int, more: tuple[str, ...]) -> None:
    """Also from the end of an epoch, without an empty one and without another point of a curve."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trained(whole, *more, "trainer.max_epochs=-1", "trainer.max_steps=14", batches=4)
    trained(broken, *more, "trainer.max_epochs=-1", f"trainer.max_steps={steps}", batches=4)
    trained(broken, *more, "trainer.max_epochs=-1", "trainer.max_steps=14", batches=4, was="finished")
    same_state(whole, broken)
    for name in ("train/lr", "train/loss_step", "train/loss", "val/loss"):
        assert curve(broken, name) == curve(whole, name), name


def test_a_run_out_of_time_goes_on_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.callbacks import Timer

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trained(whole, "trainer.max_epochs=3", batches=4)
    with monkeypatch.context() as patched:
        patched.setattr(Timer, "time_elapsed", lambda timer, stage="train": 0.0 if TIMED["step"] < 6 else 99.0)

        def count(timer: Any, trainer: Any, *more: Any, **named: Any) -> None:
            TIMED["step"] = trainer.global_step
            timer._check_time_remaining(trainer)

        patched.setattr(Timer, "on_train_batch_end", count)
        trained(broken, "trainer.max_epochs=3", "+trainer.max_time='00:00:00:03'", batches=4)
    assert load(path_of(broken, "last"))["position"] == {"epoch": 1, "batch": 2}
    trained(broken, "trainer.max_epochs=3", "+trainer.max_time='00:01:00:00'", batches=4, was="finished")
    same_state(whole, broken)
    for name in ("train/lr", "train/loss", "val/loss"):
        assert curve(broken, name) == curve(whole, name), name


TIMED = {"step": 0}


def test_early_stopping_within_an_epoch_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    often = ("trainer.val_check_interval=2", STILL, "trainer.max_epochs=2")
    trained(whole, *often, batches=8)
    trained(broken, *often, "callbacks.early_stopping.patience=2", batches=8)
    assert load(path_of(broken, "last"))["position"] == {"epoch": 0, "batch": 6}
    trained(broken, *often, batches=8, was="finished")
    same_state(whole, broken)
    for name in ("train/lr", "train/loss", "val/loss"):
        assert curve(broken, name) == curve(whole, name), name


@pytest.mark.parametrize("more", [("trainer.max_steps=6",), ("trainer.check_val_every_n_epoch=2",)], ids=str)
def test_the_last_steps_are_validated_and_may_be_the_best(tmp_path: Path, more: tuple[str, ...]) -> None:
    parts = trained(tmp_path, "trainer.max_epochs=3", *more, batches=4)
    best = load(path_of(tmp_path, "best"))
    assert best["global_step"] == parts.trainer.global_step  # the loss falls with each step
    assert scored_by(parts, best["state_dict"]) == pytest.approx(parts.trainer.checkpoint_callback.best)  # pyright: ignore


# averages


def scored_by(parts: Parts, weights: dict[str, Any]) -> float:
    parts.task.load_state_dict(weights)
    parts.trainer.validate(parts.task, datamodule=parts.data, verbose=False)
    return float(parts.trainer.callback_metrics["val/loss"])


@pytest.mark.parametrize("callbacks", ["swa", "ema"])
def test_an_average_that_has_not_begun_is_not_used(tmp_path: Path, callbacks: str) -> None:
    late = "callbacks.averaging.start_frac=0.9" if callbacks == "swa" else "callbacks.averaging.start_step=1000"
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    ends = ("trainer.max_epochs=-1", "trainer.max_steps=7", "trainer.val_check_interval=2")
    trained(plain, *ends, batches=5)
    trained(averaged, f"callbacks={callbacks}", late, *ends, batches=5)
    same_state(plain, averaged)
    assert curve(averaged, "val/loss") == curve(plain, "val/loss")


def test_the_mean_of_late_epochs_and_what_is_scored_within_them(tmp_path: Path) -> None:
    ends = ("trainer.max_epochs=4", "trainer.val_check_interval=2", "callbacks.checkpoint.keep=20")
    parts = trained(tmp_path, "callbacks=swa", "callbacks.averaging.start_frac=0.5", *ends, batches=4)
    states = [load(path) for path in (tmp_path / "checkpoints").glob("last*.ckpt")]
    found = {state["global_step"]: state for state in states}
    trained_weights = {step: s.get("current_model_state", s["state_dict"]) for step, s in found.items()}
    for step, taken in {10: [10], 12: [12], 14: [12, 14], 16: [12, 16]}.items():  # epochs of 4 steps; from step 12 on
        for name, value in found[step]["state_dict"].items():
            mean = torch.stack([trained_weights[at][name].double() for at in taken]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
    curve_of = dict(curve(tmp_path, "val/loss"))
    for step in (6, 10, 14, 16):
        assert curve_of[step - 1] == pytest.approx(scored_by(parts, found[step]["state_dict"]), rel=1e-5)


def test_an_exponential_average_by_hand_and_with_a_warm_up() -> None:
    module: Any = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema, trainer = Ema(decay=0.3, start_step=2), SimpleNamespace(global_step=0)
    ema.on_train_start(trainer, module)  # pyright: ignore
    average, num = None, 0
    for step in range(1, 9):
        with torch.no_grad():
            for value in module.state_dict().values():
                value.copy_(torch.rand_like(value.float()).to(value.dtype) + step)
        trainer.global_step = step
        ema.on_train_batch_end(trainer, module, None, None, 2 * step)  # pyright: ignore
        ema.on_train_batch_end(trainer, module, None, None, 2 * step + 1)  # pyright: ignore
        current = {name: value.clone() for name, value in module.state_dict().items()}
        if step <= 2:
            assert ema.scored(current) is current
            continue
        decay = min(0.3, (1 + num) / (10 + num))
        if average is None:
            average = current
        else:
            average = {
                name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
                for name, value in current.items()
            }
        num += 1
        torch.testing.assert_close(ema.scored(current), average)


def test_an_average_may_be_added_dropped_or_exchanged(tmp_path: Path) -> None:
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    trained(plain, "trainer.max_epochs=3", batches=4)
    trained(changed, "callbacks=ema", "trainer.max_epochs=1", batches=4)
    trained(changed, "callbacks=swa", "callbacks.averaging.start_frac=0.1", "trainer.max_epochs=2", batches=4, was="x")
    trained(changed, "trainer.max_epochs=3", batches=4, was="finished")
    same_state(plain, changed)  # what is trained is not touched by what is averaged


# gradients of a step


@pytest.mark.parametrize("accumulate", [1, 3, 7, 40])
def test_gradients_of_accumulated_batches_are_those_of_their_rows(tmp_path: Path, accumulate: int) -> None:
    """Also in the last step of an epoch, which has fewer batches, of which one has fewer rows."""
    plain = ("optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", "model.dropout=0")
    one = ("trainer.max_epochs=1", *plain, f"trainer.accumulate_grad_batches={accumulate}", "data.batch_size=64")
    parts = trained(tmp_path, *one)
    task = build(quick(*LONG, *one), tmp_path / "third").task
    rows: Any = parts.data.rows["train"]
    order = parts.trainer.train_dataloader.sampler.shares()  # pyright: ignore
    for first in range(0, len(order), accumulate):
        index = torch.cat(order[first : first + accumulate])
        x, y = rows[index]
        task.zero_grad()
        task.loss(task.net(task.scale_x(x)), y).backward()
        with torch.no_grad():
            for parameter in task.net.parameters():
                parameter -= 0.05 * parameter.grad
    for name, value in task.net.named_parameters():
        torch.testing.assert_close(parts.task.get_parameter(f"net.{name}"), value, rtol=1e-4, atol=1e-6)


def test_rate_is_drawn_once_a_step(tmp_path: Path) -> None:
    trained(tmp_path, "trainer.max_epochs=1", "trainer.accumulate_grad_batches=3", batches=9)
    assert [step for step, _ in curve(tmp_path, "train/lr")] == [0, 1, 2]


# reported losses


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_reported_losses_do_not_depend_on_the_size_of_batches(tmp_path: Path, loss: str) -> None:
    weighted = (f"loss={loss}", "loss.class_weights=[1,1,1,1,1,1,1,1,1,20]", "trainer.max_epochs=1")
    parts = trained(tmp_path, *weighted)
    weights = load(path_of(tmp_path, "best"))["state_dict"]
    task = parts.task
    task.load_state_dict(weights)
    x, y = parts.data.rows["val"][torch.arange(len(parts.data.rows["val"]))]
    with torch.inference_mode():
        expected = task.loss(task.eval().net(task.scale_x(x)), y).item()
    for size in (1, 7, 64, 2000):
        parts.data.batch_size = size
        parts.trainer.limit_val_batches = 1.0
        parts.trainer.validate_loop._combined_loader = None
        assert scored_by(parts, weights) == pytest.approx(expected, rel=1e-5)


def test_a_reported_training_loss_is_weighted_alike(tmp_path: Path) -> None:
    weighted = ("loss.class_weights=[1,1,1,1,1,1,1,1,1,20]", "optimizer.lr=1e-9", "model.dropout=0")
    found = []
    for size in (16, 64, 1257):
        trained(tmp_path / str(size), *weighted, "trainer.max_epochs=1", f"data.batch_size={size}")
        found += [value for _, value in curve(tmp_path / str(size), "train/loss")]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


# a task that optimizes by hand


BY_HAND = ("task._target_=by_hand_task.TwoOptimizers", "trainer.max_epochs=-1")


@pytest.mark.parametrize("steps", [2, 6, 8, 14])  # of two optimizers: 1, 3, 4 and 7 batches of epochs of 4
def test_a_run_optimized_by_hand_goes_on_with_the_next_batch(tmp_path: Path, steps: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trained(whole, *BY_HAND, "trainer.max_steps=20", batches=4)
    trained(broken, *BY_HAND, f"trainer.max_steps={steps}", batches=4)
    assert load(path_of(broken, "last"))["global_step"] == steps
    trained(broken, *BY_HAND, "trainer.max_steps=20", batches=4, was="finished")
    same_state(whole, broken)
    for name in ("train/loss", "val/loss"):
        assert curve(broken, name) == curve(whole, name), name


def test_a_run_optimized_by_hand_is_saved_every_few_steps_and_on_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = Saving._save

    def save(saving: Saving, trainer: Any, best: bool = False) -> None:
        saved.append(trainer.global_step)
        real(saving, trainer, best)
        saving.files.wait()  # pyright: ignore[reportOptionalMemberAccess]
        if trainer.global_step >= 10:
            asked.number = signal.SIGTERM

    monkeypatch.setattr(Saving, "_save", save)
    monkeypatch.setattr(asked, "number", None)
    with pytest.raises(Stopped):
        trained(tmp_path, *BY_HAND, "trainer.max_steps=40", "callbacks.checkpoint.every_steps=5", batches=9)
    assert saved == [6, 10, 12]  # 5 and 10 steps are within the third and the fifth batch
    assert load(path_of(tmp_path, "last"))["position"] == {"epoch": 0, "batch": 6}


def test_a_bad_step_by_hand_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TwoOptimizers.loss_of

    def loss_of(task: Any, batch: Any, batch_idx: int) -> Any:
        loss, weight = real(task, batch, batch_idx)
        return loss * (float("nan") if task.training and batch_idx == 1 else 1.0), weight

    monkeypatch.setattr(TwoOptimizers, "loss_of", loss_of)
    skip = (*BY_HAND, "trainer.max_steps=8", "callbacks.finite.policy=skip")
    parts = trained(tmp_path, *skip, batches=4)
    assert all(torch.isfinite(value).all() for value in parts.task.state_dict().values())
    with pytest.raises(UserError, match="step 2, batch 1 of epoch 0: a loss or a gradient is not finite"):
        trained(tmp_path / "stop", *BY_HAND, "trainer.max_steps=8", batches=4)


def test_settings_that_a_task_by_hand_cannot_follow_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, *BY_HAND, "trainer.max_steps=8", batches=4)
    with pytest.raises(UserError, match=r"optimizes by hand, so that nobody else can tell what optimizer\.lr means"):
        trained(tmp_path, *BY_HAND, "trainer.max_steps=12", "optimizer.lr=1", batches=4, was="finished")

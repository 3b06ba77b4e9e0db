"""A resumed run equals one that was never stopped, bit for bit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Command, script, warm_up
from end_to_end.test_train import scalars
from faults import forked

pytestmark = pytest.mark.slow

RICH = ("augment=images", "scheduler=cosine", "trainer.max_epochs=6", "trainer.accelerator=cpu")


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def killed_after_epoch(folder: Path, epoch: int, *words: str) -> None:
    """Starts a run and kills it once the checkpoint of an epoch (counted from 0) is whole."""
    warm_up()
    pid = forked(partial(script, "train", *words, f"hydra.run.dir={folder}"), folder.with_name(f"{folder.name}.out"))
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.01)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
            try:
                if last(folder)["epoch"] >= epoch:
                    return
            except Exception:  # not there yet, or half written
                continue
        raise AssertionError("no checkpoint in two minutes")
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "words",
    [
        RICH,
        (*RICH, "model=cnn", "callbacks=ema", "model.width=8"),
        ("scheduler=plateau", "scheduler.patience=0", "optimizer=sgd", "optimizer.lr=0.5", "trainer.max_epochs=8"),
        ("callbacks=swa", "augment=mixup", "scheduler=onecycle", "optimizer=rmsprop", "trainer.max_epochs=6"),
    ],
    ids=["mlp", "cnn-ema", "plateau", "swa-mixup-onecycle"],
)
def test_resumed_equals_uninterrupted(command: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    whole = command("train", *words, folder=tmp_path / "whole")
    broken = tmp_path / "broken"
    killed_after_epoch(broken, 2, *words)
    assert json.loads((broken / "run.json").read_text())["status"] == "running"
    command("train", f"resume={broken}")
    assert json.loads((broken / "metrics.json").read_text()) == whole.json("metrics.json")
    expected, found = last(whole.folder), last(broken)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(found[key], expected[key])
    for tag in ("val/loss", "train/loss", "train/loss_step"):
        assert scalars(broken, tag) == scalars(whole.folder, tag)  # one curve, no overlap
    record = json.loads((broken / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["resumed"]) == 1


def test_a_table_of_curves_goes_on_without_overlap(command: Command, tmp_path: Path) -> None:
    words = ("logger=csv", "trainer.max_epochs=5")
    whole = command("train", *words, folder=tmp_path / "whole")
    assert "metrics.csv" in whole.out
    broken = tmp_path / "broken"
    killed_after_epoch(broken, 2, *words)
    command("train", f"resume={broken}")
    assert (broken / "metrics.csv").read_text() == (whole.folder / "metrics.csv").read_text()


def test_a_second_process_cannot_train_into_the_folder(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "src/train.py", "trainer.max_epochs=500", f"hydra.run.dir={folder}"]
    words.append("callbacks.early_stopping.patience=500")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        second = command("train", f"resume={folder}", ok=False)
        assert second.code == 1
        assert f"process {process.pid} is training into" in second.out
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    command("train", f"resume={folder}", f"trainer.max_epochs={last(folder)['epoch'] + 2}")  # held no longer


def test_changed_settings_are_honoured_and_listed(command: Command) -> None:
    run = command("train", "trainer.max_epochs=2", "optimizer.weight_decay=0.1")
    again = command("train", f"resume={run.folder}", "trainer.max_epochs=4", "optimizer.lr=1e-4", "data.batch_size=32")
    assert "optimizer.lr: 0.001 -> 0.0001" in again.out
    assert "trainer.max_epochs: 2 -> 4" in again.out
    groups = last(run.folder)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [1e-4, 1e-4]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert last(run.folder)["global_step"] == 2 * 20 + 2 * 40
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 4
    assert config["optimizer"]["lr"] == 1e-4


def test_another_optimizer_and_schedule_start_anew(command: Command) -> None:
    run = command("train", "trainer.max_epochs=1")
    command("train", f"resume={run.folder}", "trainer.max_epochs=2", "optimizer=sgd", "scheduler=step")
    groups = last(run.folder)["optimizer_states"][0]["param_groups"]
    assert groups[0]["momentum"] == 0.9
    assert groups[0]["lr"] == 0.05


def test_the_last_epoch_is_saved_whether_or_not_it_is_the_best(command: Command, tmp_path: Path) -> None:
    rising = ("scheduler=step", "scheduler.step_size=1", "scheduler.gamma=100")  # the first epoch stays the best
    words = (*rising, "trainer.max_epochs=5")
    whole = command("train", *words, folder=tmp_path / "whole")
    best = torch.load(whole.folder / "checkpoints/best.ckpt", weights_only=True)
    assert (best["epoch"], last(whole.folder)["epoch"]) == (0, 4)
    broken = tmp_path / "broken"
    killed_after_epoch(broken, 2, *words)
    command("train", f"resume={broken}")
    assert json.loads((broken / "metrics.json").read_text()) == whole.json("metrics.json")
    states = last(broken), last(whole.folder)
    for state in states:
        for callback in state["callbacks"].values():
            callback.pop("current_score", None)  # of the last save of this process, which nothing reads
    for key in ("state_dict", "optimizer_states", "callbacks"):
        assert_same(states[0][key], states[1][key])


def test_a_refused_resume_leaves_the_run_as_it_was(command: Command) -> None:
    run = command("train", "trainer=debug")
    before = {name: (run.folder / name).read_bytes() for name in ("run.json", "config.yaml", "metrics.json")}
    for word in ("loss=mse", "callbacks.checkpoint.monitor=val/nothing", "monitor=val/acc", "trainer.max_epochs=1"):
        assert command("train", f"resume={run.folder}", "trainer.max_epochs=3", word, ok=False).code == 1
        assert {name: (run.folder / name).read_bytes() for name in before} == before


def test_a_run_folder_is_not_written_over(command: Command) -> None:
    run = command("train", "trainer=debug")
    again = command("train", "trainer=debug", folder=run.folder, ok=False)
    assert again.code == 1
    assert f"resume={run.folder}" in again.out


def test_the_newest_good_checkpoint_is_taken(command: Command) -> None:
    run = command("train", "trainer.max_epochs=2")
    path = run.folder / "checkpoints/last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = command("train", f"resume={run.folder}", "trainer.max_epochs=3")
    assert "resume     after 1 epochs, step 20" in again.out
    assert run.json("run.json")["status"] == "finished"


@pytest.mark.parametrize("words", [("model.width=32",), ("seed=7",), ("data.split_seed=3",), ("model=cnn",)], ids=str)
def test_what_makes_it_another_run_is_refused(command: Command, words: tuple[str, ...]) -> None:
    run = command("train", "trainer=debug")
    again = command("train", f"resume={run.folder}", "trainer.max_epochs=3", *words, ok=False)
    assert again.code == 1
    assert words[0].split("=")[0] in again.out
    assert "Start a new run" in again.out
    assert run.json("run.json")["status"] == "finished"


def test_nothing_left_to_train(command: Command) -> None:
    run = command("train", "trainer=debug")
    again = command("train", f"resume={run.folder}", ok=False)
    assert again.code == 1
    assert "trainer.max_epochs=2" in again.out


def test_fewer_epochs_than_there_were_are_refused(command: Command) -> None:
    run = command("train", "trainer.max_epochs=2")
    before = (run.folder / "run.json").read_bytes()
    again = command("train", f"resume={run.folder}", "trainer.max_epochs=1", ok=False)
    assert again.code == 1
    assert "is in epoch 2, so trainer.max_epochs=1 is past" in again.out
    assert (run.folder / "run.json").read_bytes() == before


def test_a_run_is_opened_wherever_it_is_and_whatever_it_is_called(command: Command, tmp_path: Path) -> None:
    run = command("train", "trainer.max_epochs=1", "trainer.accelerator=cpu", "optimizer.weight_decay=0")
    folder = tmp_path / 'o\'dir $x/-run, [1] = "a"'
    folder.parent.mkdir()
    run.folder.rename(folder)
    scored = json.loads((folder / "metrics.json").read_text())
    command("evaluate", f"run={folder}", "optimizer.weight_decay=1e-4")
    assert json.loads((folder / "evaluate.json").read_text()) == pytest.approx(scored)
    command("export", f"run={folder}")
    again = command("train", f"resume={folder}", "trainer.max_epochs=2", "optimizer.weight_decay=1e-4")
    assert last(folder)["epoch"] == 1
    shown = next(line for line in again.out.splitlines() if "tensorboard" in line)
    assert shlex.split(shown.split("curves")[1])[1].endswith("o'dir $x")
    (folder / "evaluate.log").unlink()
    (folder / "evaluate.log").mkdir()  # as good as a folder that may not be written
    told = command("evaluate", f"run={folder}", ok=False)
    assert told.code == 1
    assert "the run's folder cannot be written" in told.out
    assert "Traceback" not in told.out

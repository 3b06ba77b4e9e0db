"""Real commands, and what they leave behind."""

import json
import math
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")
METRICS = {f"{split}/{name}" for split in ("val", "test") for name in ("loss", "acc", "f1", "auroc", "ece")}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def test_default_run(command: Command) -> None:
    run = command("train")
    metrics, record = run.json("metrics.json"), run.json("run.json")
    assert metrics.keys() == METRICS
    assert metrics["test/acc"] >= 0.97
    assert record["status"] == "finished"
    assert record["seed"] == 42
    assert record["packages"]["torch"] == torch.__version__
    assert len(record["data"]["fingerprint"]) == 64
    assert record["data"]["spec"]["classes"] == [str(digit) for digit in range(10)]
    assert f"{metrics['test/acc']:.4f}" in run.out
    assert "tensorboard --logdir" in run.out
    assert {"config.yaml", "metrics.json", "run.json", "train.log"} <= {path.name for path in run.folder.iterdir()}
    assert "Traceback" not in run.out
    assert "Warning" not in run.out
    # the best epoch is the best of the curve, and what is scored
    curve = scalars(run.folder, "val/loss")
    assert len(curve) == 20
    assert math.isclose(min(value for _, value in curve), metrics["val/loss"], rel_tol=1e-5)
    # TensorBoard: pictures, and a row of settings with the final numbers
    events = EventAccumulator(str(run.folder))
    events.Reload()
    assert {"train/inputs", "test/confusion"} <= set(events.Tags()["images"])
    assert scalars(run.folder, "test/acc")[-1][1] == pytest.approx(metrics["test/acc"])
    assert scalars(run.folder, "val_best/loss")[-1][1] == pytest.approx(metrics["val/loss"])
    assert "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    # evaluate gives the same numbers from the folder alone, also after it was moved
    moved = run.folder.with_name("moved")
    shutil.move(run.folder, moved)
    command("evaluate", f"run={moved}")
    assert json.loads((moved / "evaluate.json").read_text()) == metrics


def test_checkpoints_hold_only_tensors_and_plain_values(command: Command) -> None:
    run = command("train", "trainer=debug", "callbacks=ema", "scheduler=plateau")
    for name in ("best", "last"):
        path = run.folder / "checkpoints" / f"{name}.ckpt"
        torch.load(path, weights_only=True)
        with zipfile.ZipFile(path) as archive:
            pickle = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        named = {str(arg) for op, arg, _ in pickletools.genops(pickle) if op.name == "GLOBAL"}
        assert all(word.startswith(("torch", "collections OrderedDict")) for word in named), named
        assert str(run.folder).encode() not in pickle


def test_a_new_file_is_in_the_record(clone: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["git", "add", "README.md"], cwd=clone, check=True)
    subprocess.run(["git", *AUTHOR, "commit", "-qm", "x"], cwd=clone, check=True)
    people = clone / "people.csv"  # a user's data beside the code is not
    people.write_text("name\nAda\n")
    done = subprocess.run(
        [sys.executable, "src/train.py", "trainer=debug"], cwd=clone, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads(next(clone.glob("logs/*/run.json")).read_text())["git"]
    assert len(record["commit"]) == 40
    assert "+++ b/src/research/models/cnn.py" in record["diff"]
    assert f"+++ b/{people.name}" not in record["diff"]
    status = subprocess.run(["git", "diff", "--cached", "--stat"], cwd=clone, capture_output=True, check=True)
    assert status.stdout == b""  # the index is as it was


def test_regression_follows_the_data(command: Command) -> None:
    metrics = command("train", "data=diabetes").json("metrics.json")
    assert metrics.keys() == {f"{split}/{name}" for split in ("val", "test") for name in ("loss", "mae", "rmse", "r2")}
    assert metrics["val/r2"] > 0.4
    assert 20 < metrics["test/mae"] < 60  # in the target's own units


@pytest.mark.parametrize(
    "words",
    [
        ("model=cnn", "optimizer=sgd", "scheduler=cosine", "augment=images"),
        ("optimizer=rmsprop", "loss=focal", "seed=0"),
    ],
    ids=" ".join,
)
def test_parts_swap_by_name(command: Command, words: tuple[str, ...]) -> None:
    run = command("train", *words)
    assert run.json("metrics.json")["test/acc"] > 0.95
    assert run.json("run.json")["overrides"][: len(words)] == list(words)


def test_multirun_leaves_a_folder_for_each_combination(command: Command, tmp_path: Path) -> None:
    words = ("-m", "optimizer=adam,adamw,sgd,rmsprop", "seed=0,1", "trainer=debug", f"hydra.sweep.dir={tmp_path}")
    command("train", *words)
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/run.json"))]
    assert len(records) == 8
    assert {record["status"] for record in records} == {"finished"}
    assert {tuple(record["overrides"][:2]) for record in records} == {
        (f"optimizer={name}", f"seed={seed}") for name in ("adam", "adamw", "sgd", "rmsprop") for seed in (0, 1)
    }


def test_two_runs_of_one_second_do_not_collide(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "src/train.py"), "trainer=debug"]
    both = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in "ab"]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert len(list(tmp_path.glob("logs/*/metrics.json"))) == 2


def test_one_seed_gives_one_result_and_another_another(command: Command, tmp_path: Path) -> None:
    results = [
        command("train", "trainer.max_epochs=2", "augment=images", f"seed={seed}", folder=tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (result.json("metrics.json") for result in results)
    assert first == again
    assert first != other


def test_two_processes_make_one_run_with_the_metrics_of_one(command: Command, tmp_path: Path) -> None:
    # by gradient descent, which keeps rounding as small as it is: Adam divides by it where a gradient is near zero
    words = ("trainer.max_epochs=3", "trainer.accelerator=cpu", "model.dropout=0", "optimizer=sgd")
    one = command("train", *words, folder=tmp_path / "one").json("metrics.json")
    run = command("train", "trainer=ddp", *words, folder=tmp_path / "two")
    assert run.json("metrics.json") == pytest.approx(one, abs=1e-5)
    assert len(list(tmp_path.iterdir())) == 2
    assert run.json("run.json")["status"] == "finished"


def test_averaged_weights_are_the_ones_scored(command: Command) -> None:
    for name in ("ema", "swa"):
        run = command("train", f"callbacks={name}", "trainer.max_epochs=8", folder=None)
        best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
        key = "net.head.weight"
        assert not torch.equal(best["state_dict"][key], best["current_model_state"][key])
        metrics = run.json("metrics.json")
        assert math.isclose(
            min(value for _, value in scalars(run.folder, "val/loss")), metrics["val/loss"], rel_tol=1e-5
        )
        command("evaluate", f"run={run.folder}")
        assert run.json("evaluate.json") == metrics
        shutil.rmtree(run.folder)


def test_finders_set_what_they_find(command: Command) -> None:
    run = command("train", "find_lr=true", "find_batch_size=true", "trainer.max_epochs=1", "data=diabetes")
    import yaml

    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["optimizer"]["lr"] != 1e-3
    assert config["data"]["batch_size"] > 32
    state = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == config["optimizer"]["lr"]


@pytest.mark.parametrize("name", ["cpu", "debug", "overfit", "profile"])
def test_trainers(command: Command, name: str) -> None:
    run = command("train", f"trainer={name}", *(["trainer.max_epochs=2"] if name == "cpu" else []))
    if name == "overfit":
        assert scalars(run.folder, "train/loss")[-1][1] < 0.01
    if name == "debug":
        assert len(scalars(run.folder, "val/loss")) == 1
    if name == "profile":
        assert "run_training_batch" in run.out


def test_plain_settings_of_the_trainer(command: Command) -> None:
    words = ("trainer.gradient_clip_val=0.5", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed")
    run = command("train", *words, "trainer.max_epochs=3")
    state = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 3 * 10
    assert run.json("metrics.json")["test/acc"] > 0.8


def test_compiled_run_equals_the_plain_one(command: Command, tmp_path: Path) -> None:
    words = ("trainer.max_epochs=2", "model.dropout=0", "optimizer=sgd")
    plain = command("train", *words, folder=tmp_path / "plain")
    compiled = command("train", *words, "compile=true", folder=tmp_path / "compiled")
    assert compiled.json("metrics.json") == pytest.approx(plain.json("metrics.json"), abs=1e-5)
    weights = torch.load(compiled.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in key for key in weights)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii", "TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: "+".join(environment),
)
def test_a_screen_without_the_characters_of_the_bar_does_not_fail_the_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = command("train", "trainer=debug", "trainer.accelerator=cpu", fresh=True)
    assert run.out.isascii()
    assert "| val" in run.out
    assert "| val" in (run.folder / "train.log").read_text("utf-8")

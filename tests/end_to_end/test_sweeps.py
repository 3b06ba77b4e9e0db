"""A sweep by any launcher and sweeper: exit codes, values, runs that do not touch one another, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

QUICK = ("trainer=debug", "trainer.accelerator=cpu", "callbacks.progress=null")
MODEL = '''\
import torch
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import PositiveInt


class Shaped(nn.Module):
    """Has another output when it is not compiled, and soon gives up compiling."""

    def __init__(self, spec: Spec, width: PositiveInt) -> None:
        super().__init__()
        torch._dynamo.config.recompile_limit = 1
        self.first, self.head = nn.Linear(64, width), nn.Linear(width, spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.first(x.flatten(1)))
        return out if torch.compiler.is_compiling() else out + 3
'''


def start(*words: str, path: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
    """`python src/train.py -m words`, with further folders that modules are looked for in."""
    where = os.pathsep.join(map(str, (ROOT / "tests/plugins", *path)))
    return subprocess.Popen(
        [sys.executable, "src/train.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def done(*words: str, path: tuple[Path, ...] = ()) -> tuple[int, str]:
    process = start(*words, path=path)
    said = process.communicate(timeout=900)[0]
    return process.returncode, said


def record(folder: Path, name: str = "run.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text("utf-8"))


def test_a_run_that_fails_in_another_process_fails_the_sweep(tmp_path: Path) -> None:
    words = ("-m", "hydra/launcher=apart", "hydra.launcher.num=1", "loss.class_weights=null,[1,2]", *QUICK)
    code, said = done(*words, f"hydra.sweep.dir={tmp_path}")
    assert code == 1
    assert "error: loss: class_weights has 2 numbers for 10 classes" in said
    assert "1 of 2 runs failed" in said
    assert "1_mlp_digits" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert record(tmp_path / "0_mlp_digits")["status"] == "finished"
    assert record(tmp_path / "1_mlp_digits")["status"] == "failed"
    assert "python src/train.py -m" in record(tmp_path / "0_mlp_digits")["command"]
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("launcher", ["basic", "apart"])
def test_a_sweeper_gets_the_monitored_value_of_the_best_checkpoint(launcher: str, tmp_path: Path) -> None:
    words = ("-m", f"hydra/launcher={launcher}", "hydra/sweeper=ends", "optimizer.lr=interval(0.001,0.05)")
    code, said = done(*words, *QUICK, f"hydra.sweep.dir={tmp_path}")
    assert code == 0, said
    runs = [record(tmp_path / f"{num}_mlp_digits", "metrics.json") for num in (0, 1)]
    assert record(tmp_path, "ends.json") == [run["val/loss"] for run in runs]
    assert runs[0] != runs[1]


def test_a_sweeper_gets_the_best_value_of_a_metric_that_only_training_has(tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=ends", "monitor=train/loss", "optimizer.lr=interval(0.001,0.05)", *QUICK)
    code, said = done(*words, "trainer.max_epochs=3", "logger=csv", f"hydra.sweep.dir={tmp_path}")
    assert code == 0, said
    for value, num in zip(record(tmp_path, "ends.json"), (0, 1), strict=True):
        lines = (tmp_path / f"{num}_mlp_digits/metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("train/loss")
        drawn = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
        assert value == pytest.approx(min(drawn))


def test_a_sweeper_is_told_of_a_run_that_failed(tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=ends", "optimizer.lr=interval(-1,0.01)", *QUICK, f"hydra.sweep.dir={tmp_path}")
    code, said = done(*words)
    assert code == 1
    failed, value = json.loads((tmp_path / "ends.json").read_text())
    assert failed.startswith("RunFailed")
    assert value == record(tmp_path / "1_mlp_digits", "metrics.json")["val/loss"]
    assert "1 of 2 runs failed" in said


def test_a_run_that_failed_does_not_keep_the_next_batch_of_runs_from_being_made(tmp_path: Path) -> None:
    words = ("-m", "hydra.sweeper.max_batch_size=1", "optimizer.lr=-1,0.01", *QUICK, f"hydra.sweep.dir={tmp_path}")
    code, _ = done(*words)
    assert code == 1
    assert [record(tmp_path / f"{num}_mlp_digits")["status"] for num in (0, 1)] == ["failed", "finished"]


def test_a_compiled_run_of_a_sweep_is_the_run_alone(tmp_path: Path) -> None:
    (tmp_path / "shaped.py").write_text(MODEL)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/shaped.yaml").write_text("_target_: shaped.Shaped\n_partial_: true\nwidth: 4\n")
    words = ("--config-dir", str(tmp_path / "conf"), "model=shaped", "compile=true", *QUICK)
    code, said = done("-m", *words, "model.width=5,6,7", f"hydra.sweep.dir={tmp_path / 'all'}", path=(tmp_path,))
    assert code == 0, said
    code, said = done(*words, "model.width=7", f"hydra.run.dir={tmp_path / 'one'}", path=(tmp_path,))
    assert code == 0, said
    alone = record(tmp_path / "one", "metrics.json")
    assert record(tmp_path / "all/2_shaped_digits", "metrics.json") == alone


def begun(*words: str, folder: Path) -> subprocess.Popen[str]:
    """A sweep whose first run has saved a checkpoint, and would train for ever."""
    process = start(
        "-m",
        "seed=1,2",
        *QUICK,
        "trainer.max_epochs=100000",
        "callbacks.early_stopping=null",
        f"hydra.sweep.dir={folder}",
        *words,
    )
    while not list(folder.glob("0_*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_sweep_and_its_run_is_saved(number: signal.Signals, tmp_path: Path) -> None:
    process = begun(folder=tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said
    assert record(tmp_path / "0_mlp_digits")["status"] == "stopped"
    assert not (tmp_path / "1_mlp_digits/run.json").exists()


def test_a_run_ends_with_the_sweep_it_belongs_to(tmp_path: Path) -> None:
    process = begun(folder=tmp_path)
    process.kill()
    process.communicate(timeout=60)  # ends when the run does, which has the same output
    assert record(tmp_path / "0_mlp_digits")["status"] == "stopped"

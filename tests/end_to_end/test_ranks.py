"""One run in several processes, whatever starts them: one folder, one result, one error, and nothing left over."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from end_to_end.test_lasting import LEAVES_S, SEED, assert_alone, assert_same_run
from end_to_end.test_resume import last

pytestmark = pytest.mark.slow

WORDS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.enable_progress_bar=false")
PYTHON = (sys.executable,)
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node=2", "--standalone")
SRUN = ("srun", "-N2", "--ntasks-per-node=1", sys.executable)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}

# A command of which one process fails, at its third call of a function.
FAULTY = """
import os, signal
from research.engine.launch import launch

def fail():
    {what}

rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
if rank == "{rank}" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    import {module} as module
    from research.engine.errors import UserError
    owner, name = {owner}, "{name}"
    real, calls = getattr(owner, name), []

    def call(*given, **named):
        calls.append(1)
        if len(calls) == {at}:
            fail()
        return real(*given, **named)

    setattr(owner, name, call)

if __name__ == "__main__":
    launch("train")
"""
PLACES = {
    "build": {"module": "research.engine.fit", "owner": "module", "name": "build", "at": 1},
    "step": {"module": "research.tasks.supervised", "owner": "module.Supervised", "name": "training_step", "at": 23},
    "test": {"module": "research.tasks.supervised", "owner": "module.Supervised", "name": "test_step", "at": 2},
}
ERROR, MISTAKE = 'raise ValueError("first of all")', 'raise UserError("row 7 is bad.")'
KILL, TERM = "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"


def command(start: tuple[str, ...], script: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [*start, str(script), *words]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    done.stdout += done.stderr
    return done


def record(run: Path) -> dict[str, str]:
    return json.loads((run / "run.json").read_text())


def faulty(folder: Path, place: str, what: str, rank: int = 1) -> Path:
    script = folder / "faulty.py"
    script.write_text(FAULTY.format(what=what, rank=rank, **PLACES[place]))
    return script


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes of which the first has started the other."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command(PYTHON, "src/train.py", *WORDS, f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    return run


def test_torchrun_makes_one_folder_and_the_same_run(tmp_path: Path, whole: Path) -> None:
    logs = tmp_path / "logs"
    done = command(TORCHRUN, "src/train.py", *WORDS, f"hydra.run.dir={logs}/${{now:%H-%M-%S-%f}}")
    assert done.returncode == 0, done.stdout
    (run,) = logs.iterdir()
    assert_same_run(whole, run)
    assert done.stdout.count("curves ") == 1


def test_torchrun_counts_the_processes(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    words = (*WORDS[1:], "trainer.max_steps=3", f"hydra.run.dir={run}")
    start = (TORCHRUN[0], "--nproc_per_node=1", "--standalone")
    done = command(start, "src/train.py", "trainer=ddp", *words)  # whose own count is two
    assert done.returncode == 0, done.stdout
    assert "devices: 1" in (run / "config.yaml").read_text()


def test_what_torchrun_starts_again_goes_on(tmp_path: Path, whole: Path) -> None:
    run, script = tmp_path / "run", faulty(tmp_path, "step", ERROR)
    done = command((*TORCHRUN, "--max_restarts=1"), script, *WORDS, f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    assert "it was failed" in done.stdout
    assert_same_run(whole, run)


def test_a_sweep_is_refused_where_processes_are_there_for_one_run(tmp_path: Path) -> None:
    done = command(TORCHRUN, "src/train.py", "-m", "seed=42,43", *WORDS, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode
    assert done.stdout.count("error: -m gives each run processes of its own, and torchrun has started 2 for one") == 1
    assert not (tmp_path / "sweep").exists()


def test_each_run_of_a_sweep_has_its_processes(tmp_path: Path, whole: Path) -> None:
    done = command(PYTHON, "src/train.py", "-m", "seed=42,43", *WORDS, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    first, second = sorted(path.parent for path in tmp_path.glob("*/run.json"))
    assert_same_run(whole, first)
    assert record(second)["status"] == "finished"


def test_a_mistake_in_the_words_is_told_once() -> None:
    done = command(TORCHRUN, "src/train.py", "trainer=ddp", "trainer.devices=3", "model.widht=3")
    assert done.returncode
    assert done.stdout.count("error: 2 mistakes") == 1
    assert done.stdout.count("trainer.devices=3: torchrun started 2") == 1


@pytest.mark.parametrize(
    ("start", "place", "what", "rank", "error"),
    [
        (PYTHON, "step", ERROR, 1, "rank 1: ValueError: first of all"),
        (PYTHON, "build", MISTAKE, 1, "UserError: rank 1: row 7 is bad."),
        (PYTHON, "build", KILL, 1, "rank 1: its process was killed by SIGKILL"),
        (PYTHON, "step", KILL, 1, "rank 1: its process was killed by SIGKILL"),
        (PYTHON, "test", TERM, 1, "stopped by SIGTERM"),
        (TORCHRUN, "step", MISTAKE, 1, "UserError: rank 1: row 7 is bad."),
        (TORCHRUN, "build", ERROR, 0, "ValueError: first of all"),
    ],
)
def test_the_first_error_of_any_process_is_that_of_the_run(
    tmp_path: Path, start: tuple[str, ...], place: str, what: str, rank: int, error: str
) -> None:
    run = tmp_path / "run"
    done = command(start, faulty(tmp_path, place, what, rank), *WORDS, f"hydra.run.dir={run}")
    assert done.returncode == (143 if start is PYTHON and what is TERM else 1), done.stdout
    assert record(run)["status"] == ("stopped" if what is TERM else "failed")
    assert record(run)["error"] == error
    log = (run / "train.log").read_text()
    assert error.removeprefix("UserError: ") in log
    assert "raise ValueError" in log or what is not ERROR
    if what is MISTAKE:
        assert re.findall("^error: .*", done.stdout, re.M) == ["error: rank 1: row 7 is bad."]
        assert "Traceback" not in done.stdout.split("torch/distributed/elastic")[0]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGKILL"])
def test_two_processes_leave_at_any_moment(tmp_path: Path, name: str) -> None:
    run, draw, number = tmp_path / "run", random.Random(f"{SEED} {name}"), signal.Signals[name]
    print(f"KILL_SEED={SEED}")
    words = (*PYTHON, "src/train.py", *WORDS, f"hydra.run.dir={run}")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    while not (run / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 20))
    with suppress(ProcessLookupError):
        draw.choice([os.kill, os.killpg])(process.pid, number)
    code = process.wait(LEAVES_S)
    assert_alone(process.pid)
    told = (tmp_path / "out").read_text()
    assert code in (0, -9 if name == "SIGKILL" else 128 + number), told
    assert record(run)["status"] == ("finished" if code == 0 else "running" if code < 0 else "stopped"), told


def test_the_run_before_it_ends_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = (*PYTHON, "src/train.py", "experiment=pretrain_then_finetune", f"hydra.run.dir={run}")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    while not (run / "pretrain/run.json").exists():
        assert process.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert_alone(process.pid)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two nodes."""
    with suppress(FileNotFoundError):
        found = subprocess.run(["sinfo", "-h", "-o", "%D"], capture_output=True, text=True, check=False)
        if found.stdout.split() >= ["2"]:
            monkeypatch.setitem(ENVIRONMENT, "MASTER_ADDR", os.environ.get("MASTER_ADDR", "127.0.0.1"))
            return
        pytest.skip(f"sinfo finds no two nodes: {(found.stdout + found.stderr).strip() or 'none'}")
    pytest.skip("sinfo is not installed")


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_srun_on_two_nodes_makes_one_folder_and_the_same_run(tmp_path: Path, whole: Path) -> None:
    done = command(SRUN, "src/train.py", *WORDS, f"hydra.run.dir={tmp_path}/${{now:%H-%M-%S-%f}}")
    assert done.returncode == 0, done.stdout
    (run,) = tmp_path.iterdir()
    assert_same_run(whole, run)
    assert "num_nodes: 2" in (run / "config.yaml").read_text()


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_a_signal_of_slurm_stops_all_and_the_run_goes_on(tmp_path: Path, whole: Path) -> None:
    run, script = tmp_path / "run", faulty(tmp_path, "step", "os.system('scancel --signal=USR2 $SLURM_JOB_ID')")
    done = command(SRUN, script, *WORDS, f"hydra.run.dir={run}")
    assert done.returncode == 128 + signal.SIGUSR2, done.stdout
    assert done.stdout.count("Exited with exit code 140") == 2
    assert record(run)["status"] == "stopped"
    assert 20 < last(run)["global_step"] < 40
    done = command(SRUN, "src/train.py", f"resume={run}")
    assert done.returncode == 0, done.stdout
    assert_same_run(whole, run)


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(("place", "rank"), [("step", 1), ("build", 0)])
def test_a_failure_on_a_node_is_that_of_the_run(tmp_path: Path, place: str, rank: int) -> None:
    run = tmp_path / "run"
    done = command(SRUN, faulty(tmp_path, place, MISTAKE, rank), *WORDS, f"hydra.run.dir={run}")
    told = "rank 1: row 7 is bad." if rank else "row 7 is bad."
    assert re.findall("^error: .*", done.stdout, re.M) == [f"error: {told}"]
    assert done.stdout.count("Exited with exit code 1") == 2
    assert record(run)["error"] == f"UserError: {told}"


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_a_batch_that_asks_for_two_tasks_and_starts_one_is_one_process(tmp_path: Path) -> None:
    words = ("trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.enable_progress_bar=false")
    line = f"cd {ROOT} && {sys.executable} src/train.py {' '.join(words)} hydra.run.dir={tmp_path}/run"
    batch = ["sbatch", "-W", "-N1", "-n2", "-o", str(tmp_path / "out"), "--wrap", line]
    subprocess.run(batch, check=False, timeout=200, env=ENVIRONMENT)
    assert record(tmp_path / "run")["status"] == "finished", (tmp_path / "out").read_text()

"""Which process of a run this is, and what ended the first to end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from research.engine import ranks
from research.engine.errors import OtherRank, UserError, said
from research.engine.ranks import Place, claim, exception, place, together
from research.engine.stop import Stopped

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (TORCHRUN, Place("torchrun", 3, 4, 2, 0)),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, Place("torchrun", 3, 4, 2, 2)),
        ({**STEP, **TORCHRUN}, Place("torchrun", 3, 4, 2, 0)),  # which srun has started on each node
        (STEP, Place("srun", 1, 4, 2, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch, whose script is one process
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**TORCHRUN, ranks.FOLDER: "logs/run"}, None),  # which has joined it
    ],
)
def test_the_place_of_a_process(env: dict[str, str], expected: Place | None) -> None:
    assert place(env) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer=ddp"], []),
        (["trainer.devices=2", "trainer.num_nodes=2"], []),
        (["trainer.devices=auto"], []),
        (["trainer.devices=-1"], []),
        (["trainer.devices=[0,1]"], []),
        (["trainer.devices=4"], ["trainer.devices=4: torchrun started 2; leave it out, or start as many."]),
        (["trainer.num_nodes=1"], ["trainer.num_nodes=1: torchrun started 2; leave it out, or start as many."]),
    ],
    ids=str,
)
def test_words_that_do_not_fit_the_processes_there_are(words: list[str], expected: list[str]) -> None:
    assert list(Place("torchrun", 0, 4, 2, 0).problems("train", words)) == expected


def test_commands_of_one_process_are_refused_several() -> None:
    (told,) = Place("srun", 0, 2, 1, 0).problems("evaluate", [])
    assert told == "src/evaluate.py works in one process, and srun started 2; start it alone."


def test_a_process_that_stands_alone_knows_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, **STEP, "LOCAL_RANK": "1", "MASTER_ADDR": "a", "KEPT": "b"}.items():
        monkeypatch.setenv(name, value)
    left = ranks.alone()
    assert place(left) is None
    assert "LOCAL_RANK" not in left
    assert left["KEPT"] == "b"


def test_the_first_to_end_says_why(tmp_path: Path) -> None:
    cause = {"problems": None, "signal": None, "trace": ""}
    assert claim(tmp_path, 1, error="first", **cause)["error"] == "first"
    assert claim(tmp_path, 0, error="second", **cause)["error"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == [ranks.CAUSE]


@pytest.mark.parametrize(
    ("error", "expected", "line"),
    [
        (ValueError("bad"), OtherRank, "rank 1: ValueError: bad"),
        (UserError("row 7 is bad."), UserError, "UserError: rank 1: row 7 is bad."),
        (Stopped(15), Stopped, "Stopped: stopped by SIGTERM"),
    ],
    ids=str,
)
def test_a_process_fails_with_the_error_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException], line: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(type(error)), together(tmp_path, print):
        raise error
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(expected) as caught, together(tmp_path, print):
        raise RuntimeError("Connection closed by peer")
    assert said(caught.value) == line
    trace = json.loads((tmp_path / ranks.CAUSE).read_text())["trace"]
    assert "raise error" in trace


def test_one_process_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="own"), together(tmp_path, print):
        raise ValueError("own")
    assert not list(tmp_path.iterdir())


WAITS = """
import os, sys, time
from pathlib import Path
from research.engine import ranks
ranks.GRACE_S = 0.5
with ranks.together(Path(sys.argv[1]), lambda error: print(error, flush=True)):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_process_that_waits_for_one_that_failed_is_ended(tmp_path: Path) -> None:
    waits = [sys.executable, "-c", WAITS, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LOCAL_RANK": "0"}
    with subprocess.Popen(waits, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        claim(tmp_path, 1, error="ValueError: bad", problems=None, signal=None, trace="")
        assert process.wait(20) == 1
        assert process.stdout.read() == "rank 1: ValueError: bad\n"


FOLLOWS = """
import os, subprocess, sys, time
if sys.argv[1:]:
    from research.engine.stop import follow
    follow(int(sys.argv[1]), lambda: os._exit(0))
    print(os.getpid(), flush=True)
else:
    subprocess.Popen([sys.executable, __file__, str(os.getpid())])
time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_it_serves_however_that_ends(tmp_path: Path) -> None:
    script = tmp_path / "follows.py"
    script.write_text(FOLLOWS)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env) as first:
        assert first.stdout is not None
        second = int(first.stdout.readline())
        first.kill()
        first.wait()
    end = time.monotonic() + 20
    while _lives(second):
        assert time.monotonic() < end
        time.sleep(0.05)


def _lives(pid: int) -> Any:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


def test_exception_of_a_cause_without_a_word() -> None:
    error = exception(
        {"rank": 1, "error": "its process was killed by SIGKILL", "problems": None, "signal": None, "trace": ""}
    )
    assert said(error) == "rank 1: its process was killed by SIGKILL"

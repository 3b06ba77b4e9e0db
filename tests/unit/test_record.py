"""What a run leaves on record: a resume that never began, and what two runs differ in."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from research.engine.loggers import Csv
from research.engine.record import recorded
from research.engine.reproduce import _differences, _moved
from research.engine.stop import Stopped

LIKE: dict[str, Any] = {"choices": {}, "overrides": []}


def a_run(folder: Path) -> dict[str, Any]:
    with recorded(folder, OmegaConf.create({"seed": 1, "lr": 1}), None, {}, LIKE):
        pass
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), Stopped(15), ValueError("no")], ids=repr)
@pytest.mark.parametrize("begun", [False, True])
def test_a_resume_that_ends_before_training_leaves_the_run_as_it_was(
    tmp_path: Path, error: BaseException, begun: bool
) -> None:
    earlier = a_run(tmp_path)
    assert earlier["status"] == "finished"
    before = {name: (tmp_path / name).read_bytes() for name in ("run.json", "config.yaml")}
    changed = OmegaConf.create({"seed": 1, "lr": 2})

    def resumed() -> None:
        with recorded(tmp_path, changed, earlier, {"lr": (1, 2)}, LIKE) as record:
            record.begun = begun
            raise error

    with pytest.raises(type(error)):
        resumed()
    after = {name: (tmp_path / name).read_bytes() for name in before}
    assert (after == before) == (not begun)
    if begun:
        status = "stopped" if isinstance(error, Stopped) else "failed"
        assert json.loads(after["run.json"])["status"] == status


def test_what_differs_between_two_runs_is_told(tmp_path: Path) -> None:
    before = {**a_run(tmp_path), "data": {"fingerprint": "a"}, "resumed": []}
    assert list(_differences(before, deepcopy(before))) == []
    after = deepcopy(before)
    after["git"] = {"commit": "other", "diff": "changed"}
    after["python"], after["packages"]["torch"] = "3.99", "0.1"
    after["hardware"]["cpus"], after["data"]["fingerprint"] = 1000, "b"
    found = " | ".join(_differences(before, after))
    for ingredient in ("code: commit", "code: changes", "data: its content", "python:", "package torch:", "cpus:"):
        assert ingredient in found
    assert _moved({"val/acc": 0.5, "val/f1": float("nan")}, {"val/acc": 0.75, "val/f1": float("nan")}) == [
        "val/acc 0.5 -> 0.75 (+0.25)"
    ]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_table_of_curves_survives_a_kill_while_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Csv(tmp_path)
    for step in range(5):
        first.log_metrics({"val/loss": step / 10}, step)
    first.save()
    second = Csv(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Csv, "save", lambda logger: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            second.restart(3)
    third = Csv(tmp_path)
    third.restart(3)
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert not (tmp_path / "metrics.before").exists()

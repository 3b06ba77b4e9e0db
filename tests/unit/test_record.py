"""What a run leaves on record: a resume that never began, and what two runs differ in."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from research.engine.loggers import Csv, restart
from research.engine.record import recorded, write_json
from research.engine.reproduce import _differences, _moved
from research.engine.stop import Stopped
from research.engine.sweep import summarize

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


def test_metrics_that_moved_are_told_with_those_that_have_no_number() -> None:
    before = {"val/acc": 0.5, "val/f1": None, "val/auroc": None, "val/loss": 1.5, "val/ece": 0.25, "val/old": 1.0}
    after = {"val/acc": 0.75, "val/f1": None, "val/auroc": 0.5, "val/loss": None, "val/ece": 0.25, "val/new": 2.0}
    assert list(_moved(before, after)) == [
        "val/acc 0.5 -> 0.75 (+0.25)",
        "val/auroc no number -> 0.5",
        "val/loss 1.5 -> no number",
        "val/old 1 -> no number",
        "val/new no number -> 2",
    ]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(PLAIN)
@settings(deadline=None)
def test_what_is_written_is_json_of_the_standard(content: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        write_json(path, {"a": content, "when": datetime(2026, 1, 2, tzinfo=UTC)})
        read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["when"].startswith("2026-01-02")
    assert read["a"] == without_endless(content)


def without_endless(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: without_endless(inner) for key, inner in value.items()}
    return [without_endless(inner) for inner in value] if isinstance(value, list | tuple) else value


# a sweep


def a_job(folder: Path, words: list[str], metrics: str) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"overrides": words}))
    (folder / "metrics.json").write_text(metrics)
    return folder


def test_a_sweep_shows_the_metrics_of_all_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        a_job(tmp_path / "0", ["data=digits", "seed=0"], '{"val/acc": 0.1, "test/loss": 1, "test/acc": 0.5}'),
        a_job(tmp_path / "1", ["data=digits", "seed=1"], '{"val/acc": 0.1, "test/loss": 2, "test/acc": null}'),
        a_job(tmp_path / "2", ["data=digits", "seed=2"], '{"val/acc": 0.1, "test/loss": 3, "test/acc": NaN}'),
        a_job(tmp_path / "3", ["data=digits", "seed=3"], '{"val/acc": 0.1, "test/loss": 4, "test/acc": 0.7}'),
        a_job(tmp_path / "4", ["data=diabetes"], '{"val/mae": 9, "test/loss": null, "test/mae": 40}'),
    ]
    long = [f"test/a_long_name_{i}" for i in range(12)]
    jobs.append(a_job(tmp_path / "5", ["data=other"], json.dumps(dict.fromkeys(long, 1.0))))
    summarize([*jobs, tmp_path / "failed"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["runs", "test/loss", "test/acc", "test/mae", *long]
    assert " ".join(lines[2]) == "data=digits 4 2.500 ± 1.291 0.600 ± 0.141 (2 of 4)"
    assert " ".join(lines[3]) == "data=diabetes 1 no number 40.000"


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
            restart([second], 3)
    third = Csv(tmp_path)
    restart([third], 3)
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert not (tmp_path / "metrics.before").exists()

"""The README, word for word: its commands, its model, its dataset; and each experiment's own promise."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, Command, in_cache
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertConfig

pytestmark = pytest.mark.slow
README, DATA_PAGE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "conf/data/README.md"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))


def call(place: Path, line: str, *more: str) -> str:
    words = [sys.executable if word == "python" else word for word in shlex.split(line, comments=True)]
    done = subprocess.run([*words, *more], cwd=place, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def metrics(place: Path, name: str = "metrics.json") -> dict[str, float]:
    """Of the newest run in `logs/`."""
    return json.loads(max(place.glob(f"logs/**/{name}"), key=os.path.getmtime).read_text())


@pytest.fixture
def tensorboard(clone: Path) -> Iterator[str]:
    """The address of a TensorBoard over `logs/`."""
    words = [
        str(Path(sys.executable).with_name("tensorboard")),
        "--logdir",
        "logs",
        "--port",
        "0",
        "--load_fast",
        "false",
    ]
    process = subprocess.Popen(words, cwd=clone, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        yield next(found[0] for line in process.stderr if (found := re.findall(r"http://localhost:\d+", line)))
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def check_data_of(run: Path) -> None:
    """What a run on digits keeps of its data: which rows each split has, the page, the figure in TensorBoard."""
    with np.load(run / "splits.npz") as ids:
        sizes = {name: len(ids[name]) for name in ids}
        assert sorted(np.concatenate(list(ids.values())).tolist()) == list(range(1797))
    assert sizes == {"train": 1257, "val": 270, "test": 270}
    page = (run / "data.html").read_text("utf-8")
    assert "<td>1,257</td><td>69.9%</td>" in page
    assert "data:image/png;base64," in page
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    (figure,) = events.Images("data")
    assert (figure.step, min(figure.width, figure.height) > 100) == (0, True)


def test_commands_and_what_tensorboard_shows_of_them(clone: Path, request: pytest.FixtureRequest) -> None:
    block = README.split("## Commands")[1].split("```")[1]
    expected = {"python src/train.py": 0.97, "model=cnn": 0.985}
    for line in filter(None, block.splitlines()):
        if "tensorboard" in line:
            continue
        finished = [p for p in clone.glob("logs/*/metrics.json") if "_mlp_digits_" in p.parent.name]
        newest = max(finished, key=os.path.getmtime).parent.name if finished else ""
        call(clone, line.replace("RUN", newest))
        for start, number in expected.items():
            if line.split("#")[0].strip() == start or (start in line and "optimizer=sgd" in line):
                assert metrics(clone)["test/acc"] >= number
    runs = list(clone.glob("logs/**/run.json"))
    assert len(runs) == 6 + 8 + 1  # single, swept, and one again
    check_data_of(max(clone.glob("logs/*_cnn_digits_*/splits.npz"), key=os.path.getmtime).parent)
    address = request.getfixturevalue("tensorboard")
    rows: list[object] = []
    for _ in range(60):  # it reads in the background
        body = json.dumps({"startIndex": 0, "sliceSize": 100, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"]})
        ask = urllib.request.Request(f"{address}/data/plugin/hparams/session_groups", body.encode())
        ask.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(ask, timeout=30) as answer:
            rows = json.load(answer).get("sessionGroups", [])
        if len(rows) == len(runs):
            break
        time.sleep(1)
    assert len(rows) == len(runs)
    assert all("test/loss" in json.dumps(row) and "optimizer.lr" in json.dumps(row) for row in rows)


def test_adding_a_model_and_a_dataset_touches_two_files_each(clone: Path) -> None:
    blocks = re.findall(
        r"`((?:src|conf)/[\w/]+\.(?:py|yaml))`[^\n]*\n\n```\w+\n(.*?)```", README + DATA_PAGE, re.DOTALL
    )
    assert {Path(name).stem for name, _ in blocks} == {"gru", "wine"}
    assert len(blocks) == 4
    for name, text in blocks:
        (clone / name).write_text(text)
    call(clone, "python src/train.py model=gru")
    assert metrics(clone)["test/acc"] > 0.9
    call(clone, "python src/train.py data=wine")
    assert metrics(clone)["test/acc"] > 0.9
    said = call(clone, "python -m pytest tests/unit/test_options.py -k 'gru or wine' -p no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", said)[0]) >= 2


def header(name: str) -> dict[str, str]:
    text = (ROOT / f"conf/experiment/{name}.yaml").read_text()
    said = dict(re.findall(r"^#\s+(command|expected|needs):\s+(.+)$", text, re.MULTILINE))
    assert said["command"] == f"python src/train.py experiment={name}"
    return said


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "needs" not in header(name)])
def test_experiment_keeps_its_promise(command: Command, name: str) -> None:
    metric, number = header(name)["expected"].split(" >= ")
    assert command("train", f"experiment={name}").json("metrics.json")[metric] >= float(number)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "needs" in header(name)])
def test_experiment_on_weights_from_a_cache(
    command: Command, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = header(name)["needs"].split(",")[0]
    in_cache(tmp_path, needed, BertConfig())  # random weights of the real shape
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    run = command(
        "train", f"experiment={name}", "trainer.max_epochs=5", f"cache.folder={tmp_path / 'features'}", fresh=True
    )
    assert "3,843 learn" in run.out  # a norm and three labels
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (config["optimizer"]["_target_"], config["optimizer"]["lr"]) == ("torch.optim.Adam", 2e-5)
    again = command("evaluate", f"run={run.folder}", f"cache.folder={tmp_path / 'features'}", fresh=True)
    assert "frozen base read" in again.out
    assert run.json("evaluate.json") == run.json("metrics.json")

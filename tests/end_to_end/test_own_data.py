"""The page "Bring your data", word for word, on files of the libraries and of this test, in a folder of their own."""

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT
from datasets import ClassLabel, DatasetInfo, Features, SplitDict, Value
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitInfo
from omegaconf import OmegaConf
from PIL import Image
from sklearn import datasets as bundled

pytestmark = pytest.mark.slow
PAGE = (ROOT / "conf/data/README.md").read_text("utf-8")
COMMANDS = re.findall(r"^(?:python|cat) .*", PAGE, re.MULTILINE)
# what makes a command on texts short, and its weights small
SMALL = "model.pretrained=null data.max_length=16 trainer.max_epochs=5 optimizer.lr=2e-3"
SHORT = {"model=bert": SMALL, "model=cnn": "data.size=16", "model=vision": "model.image_size=32 data.size=16"}
IMAGES = "cnn_images"
RUNS = {
    "new.csv": "mlp_table",
    "photos/": IMAGES,
    "calibrate=": IMAGES,
    "format=onnx": IMAGES,
}  # what reads a run is on the files of the newest such
WORDS = {"good": ["fine", "great", "lovely", "charming", "bright"], "bad": ["dull", "awful", "poor", "tedious", "grim"]}


def texts(num: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    labels = [draw.choice(["good", "bad"]) for _ in range(num)]
    return [(f"{' '.join(draw.choices(WORDS[label], k=4))} {i} {seed}", label) for i, label in enumerate(labels)]


@pytest.fixture(scope="module")
def place(clone: Path) -> Path:
    """A clone, with the files that the page speaks of."""
    load: Any = bundled.load_diabetes
    houses = load(as_frame=True).frame.rename(columns={"target": "price"})
    houses.iloc[:400].to_csv(clone / "houses.csv", index=False)
    houses.iloc[400:].to_csv(clone / "new.csv", index=False)
    load = bundled.load_breast_cancer
    churn = load(as_frame=True).frame.rename(columns={"target": "churned"})
    churn.assign(customer_id=[f"c{i // 3}" for i in range(len(churn))]).to_parquet(clone / "churn.parquet")
    rows = [json.dumps({"body": text, "stars": 5 if label == "good" else 1}) for text, label in texts(300, 0)]
    (clone / "reviews.jsonl").write_text("\n".join(rows))
    for name, num, seed in (("train", 200, 1), ("test", 60, 2)):
        with open(clone / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *texts(num, seed)])
    digits: Any = bundled.load_digits()
    for index, (image, label) in enumerate(zip(digits.images[:600], digits.target, strict=False)):
        folder = clone / "photos" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{index:04}.png")
    listed = [("file", "kind"), *((path.relative_to(clone), path.parent.name) for path in clone.glob("photos/*/*.png"))]
    (clone / "shots.csv").write_text("\n".join(f"{path},{kind}" for path, kind in listed))
    flats = [(30 + i * 37 % 90, f"{i % 28 + 1:02}.{i % 12 + 1:02}.2020", ("Süd", "Nord")[i % 2]) for i in range(300)]
    lines = [
        f"{size},5 m²;{day};{side};{10 * size + 150 * (side == 'Süd') + 3 * (size % 7)},50 €"
        for size, day, side in flats
    ]
    (clone / "wohnungen.csv").write_bytes("\n".join(["fläche;einzug;lage;miete", *lines]).encode("cp1252"))
    numbers = ((i, i * 31 % 97, 3.5 * (i * 31 % 97) - i) for i in range(300))
    (clone / "readings.txt").write_text("\n".join("\t".join(map(str, row)) for row in numbers))
    return clone


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the hub, as `datasets` fills it, with a small ag_news."""
    home = tmp_path_factory.mktemp("hub")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    into = home / "datasets/ag_news/default/0.0.0/0123456789abcdef"
    into.mkdir(parents=True)
    splits = SplitDict(dataset_name="ag_news")
    for name, num, seed in (("train", 200, 3), ("test", 60, 4)):
        writer: Any = ArrowWriter(features=features, path=str(into / f"ag_news-{name}.arrow"))
        for text, label in texts(num, seed):
            writer.write({"text": text, "label": label})
        count, size = writer.finalize()
        splits.add(SplitInfo(name, num_bytes=size, num_examples=count, dataset_name="ag_news"))
    names: Any = {"builder_name": "parquet", "dataset_name": "ag_news", "config_name": "default"}
    DatasetInfo(features=features, splits=splits, version="0.0.0", **names).write_to_directory(str(into))
    return home


def call(place: Path, line: str, *more: str, stdin: bytes | None = None) -> str:
    words = [sys.executable if word == "python" else word for word in shlex.split(line, comments=True)]
    done = subprocess.run([*words, *more], cwd=place, capture_output=True, timeout=600, check=False, input=stdin)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, f"{line}\n{said}"
    return said


def newest(place: Path, option: str) -> Path:
    runs = [p.parent for p in place.glob("logs/**/metrics.json") if f"_{option}_" in f"{p.parent.name}_"]
    return max(runs, key=os.path.getmtime)


def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def test_commands_of_the_page(place: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(hub))
    assert len(COMMANDS) == 19
    for line in COMMANDS:
        for part, words in SHORT.items():
            line = f"{line} {words}" if part in line else line
        if "logs/RUN" in line:
            run = next(newest(place, option) for part, option in RUNS.items() if part in line)
            line = line.replace("logs/RUN", str(run.relative_to(place)))
        stdin = (place / "new.csv").read_bytes() if line.startswith("cat") else None
        said = call(place, line.removeprefix("cat new.csv | "), stdin=stdin)
        if "folds" in line:
            assert re.search(r"all\s+5\s+\d\.\d+ ± \d", said)
    regression = metrics(newest(place, "mlp_table"))
    assert "test/r2" in regression  # of the last fold: the task was seen in the target
    assert metrics(newest(place, "boosting_table"))["test/r2"] > 0
    linear = sorted(place.glob("logs/**/metrics.json"), key=os.path.getmtime)
    linear = [metrics(path.parent)["test/r2"] for path in linear if "_linear_table" in path.parent.name]
    assert min(linear) > 0.9
    assert len(linear) == 2
    assert metrics(newest(place, "cnn_images"))["test/acc"] > 0.8
    assert metrics(newest(place, "bert_text"))["test/acc"] > 0.9
    assert metrics(newest(place, "vision_images"))["test/acc"] > 0.3  # 600 tiny pictures, seen at 32 pixels
    cnn = newest(place, IMAGES)
    assert {"val/ece", "val/ece_calibrated"} <= json.loads((cnn / "evaluate.json").read_text()).keys()
    written = json.loads((cnn / "export/onnx/model.json").read_text())
    assert written["temperature"] == json.loads((cnn / "calibration.json").read_text())["best"]["temperature"]
    picture = next((place / "photos/7").iterdir())
    said = subprocess.run(
        [sys.executable, cnn / "export/onnx/example.py", picture], capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout)["prediction"] in written["classes"]
    found = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 600
    assert np.mean([row["prediction"] == row["file"].split("/")[0] for row in found]) > 0.8
    for name in ("predictions.csv", "predictions.parquet"):
        assert (place / name).is_file()


def test_predictions_are_those_of_the_network(place: Path) -> None:
    call(place, "python src/train.py data=table data.path=houses.csv data.target=price hydra.run.dir=logs/houses")
    run = "run=logs/houses"
    lines = [line.replace("logs/RUN", "logs/houses") for line in COMMANDS if "new.csv" in line]
    for line in lines:
        stdin = (place / "new.csv").read_bytes() if line.startswith("cat") else None
        call(place, line.removeprefix("cat new.csv | "), stdin=stdin)
    with open(place / "predictions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    with open(place / "new.csv", newline="") as file:
        given = list(csv.DictReader(file))
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in found] == given
    streamed = pyarrow.parquet.read_table(place / "predictions.parquet").column("prediction").to_pylist()
    assert [float(row["prediction"]) for row in found] == pytest.approx(streamed)

    call(place, f"python src/export.py {run} format=state_dict")
    predicted = np.array([float(row["prediction"]) for row in found])
    prices = np.array([float(row["price"]) for row in found])
    scores = json.loads((place / "logs/houses/evaluate.json").read_text())
    assert scores["test/mae"] == pytest.approx(np.abs(predicted - prices).mean(), rel=1e-4)

    from research.engine.opened import opened  # the network itself, on cells read by another reader
    from research.engine.reopen import saved_config

    folder = place / "logs/houses"
    cfg = OmegaConf.create(saved_config(folder) | {"checkpoint": "best"})
    task = opened(cfg, folder, cached=False, read=False).task.cpu().eval()
    names = [column.name for column in task.spec.columns]
    x = torch.tensor([[float(row[name]) for name in names] for row in given])
    with torch.inference_mode():
        assert predicted == pytest.approx(task(x).squeeze(1).numpy(), rel=1e-5)


def test_a_run_needs_nothing_but_its_folder_to_predict(place: Path, tmp_path: Path) -> None:
    call(place, "python src/train.py data=images data.path=photos data.size=8 model=cnn hydra.run.dir=logs/photos")
    (place / "logs/photos").rename(tmp_path / "moved")
    (place / "photos").rename(tmp_path / "pictures")
    (tmp_path / "pictures/3/broken.png").write_bytes(b"no picture")
    said = call(
        place, f"python src/predict.py run={tmp_path}/moved input={tmp_path}/pictures output={tmp_path}/out.csv"
    )
    (tmp_path / "pictures/3/broken.png").unlink()
    (tmp_path / "pictures").rename(place / "photos")
    assert "predicted  600 of 601 rows" in said
    assert "cannot be read" in said
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    right = [row["prediction"] == row["file"].split("/")[0] for row in rows if row["prediction"]]
    assert sum(right) > 0.8 * len(right)


def test_an_interrupted_predict_leaves_no_file_that_looks_whole(place: Path, tmp_path: Path) -> None:
    call(place, "python src/train.py data=table data.path=houses.csv data.target=price hydra.run.dir=logs/stopped")
    header, *lines = (place / "houses.csv").read_bytes().splitlines(keepends=True)
    for number, form in ((signal.SIGTERM, "csv"), (signal.SIGINT, "jsonl"), (signal.SIGKILL, "parquet")):
        out, part = tmp_path / f"out.{form}", tmp_path / f".out.{form}.part"
        words = [sys.executable, "src/predict.py", "run=logs/stopped", "input=-", f"output={out}"]
        with subprocess.Popen(words, cwd=place, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stderr
            process.stdin.write(header + b"".join(lines * 300))  # several blocks; more could follow, so it waits
            process.stdin.flush()
            until = time.monotonic() + 120
            while not (part.is_file() and part.stat().st_size) and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(number)
            code = process.wait(timeout=60)
            said = process.stderr.read().decode()
        assert not out.exists()
        if number == signal.SIGKILL:
            assert code == -number
            with pytest.raises(pa.ArrowInvalid):
                pyarrow.parquet.read_table(part)
        else:
            assert code == 128 + number, said
            assert f"stopped by {number.name}" in said
            assert not part.exists()


def test_wine_and_iris_in_two_forms(place: Path, tmp_path: Path) -> None:
    for name, load, form, other in (
        ("wine", bundled.load_wine, "csv", "parquet"),
        ("iris", bundled.load_iris, "parquet", "csv"),
    ):
        made: Any = load(as_frame=True)
        frame = made.frame.assign(target=made.target_names[made.target]).sample(frac=1, random_state=0)
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
        words = f"data.path={tmp_path}/{name}.{form} data.target=target data.batch_size=8 hydra.run.dir=logs/{name}"
        call(place, f"python src/train.py data=table {words}")
        out = tmp_path / f"{name}_out.{form}"
        call(place, f"python src/predict.py run=logs/{name} input={tmp_path}/{name}.{other} output={out}")
        found: Any = pd.read_csv(out) if form == "csv" else pd.read_parquet(out)
        if form == "csv":
            pd.testing.assert_frame_equal(found[frame.columns], frame.reset_index(drop=True), check_dtype=False)
        else:  # of a CSV, whose cells stay texts
            assert found[frame.columns].to_csv(index=False, quoting=csv.QUOTE_ALL) == pd.read_csv(
                tmp_path / f"{name}.csv", dtype=str
            ).to_csv(index=False, quoting=csv.QUOTE_ALL)
        assert (found["prediction"] == found["target"]).mean() > 0.9
        assert metrics(place / f"logs/{name}")["test/acc"] > 0.85
        shares = found[[f"probability_{label}" for label in made.target_names]]
        assert shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(len(found)), abs=1e-5)

"""Predictions are what the network says of each row, in the order of the rows, whatever file they are from or go to."""

import csv
import errno
import json
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from composing import quick
from making import TABLE, I, T, X, at, both, data_of, of_table, of_text, photos, table, text, two
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from research.data import files
from research.engine import predict as job
from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.engine.evaluate import evaluate
from research.engine.pretrained import PACKAGED, tokenizer
from research.engine.record import write_config, write_json


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in words and messages are those of a folder of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Words(nn.Module):
    """Says of a text what the sum of its words does."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return (self.words(x["input_ids"]) * x["attention_mask"].unsqueeze(-1)).sum(1)  # (B, 2)


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Parts]:
    """A run with random weights on right files, which predict then opens."""

    def made(words: str, *more: str) -> Parts:
        spec = data_of(words).spec
        if spec.kind == "text":
            more = ("model=bert", "model.pretrained=null", *more)
        cfg = quick(*words.split(), "cache=null", *more)
        parts = build(cfg, place, fitted=spec, read=False)
        if spec.kind == "text":
            parts.task.net = Words(spec.shape[0])
        parts.task.eval()
        monkeypatch.setattr("research.engine.opened.opened", lambda *_, **__: parts)
        return parts

    return made


def predicted(given: str, out: str) -> list[dict[str, Any]]:
    job.predict(OmegaConf.create({"input": given, "output": out}), Path())
    return pyarrow.dataset.dataset(out, format=Path(out).suffix[1:].replace("jsonl", "json")).to_table().to_pylist()


def shares(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> list[list[float]]:
    """Of each row; the prediction is the class that has the largest."""
    found = [[row[f"probability_{name}"] for name in classes] for row in rows]
    assert [row["prediction"] for row in rows] == [classes[int(np.argmax(of))] for of in found]
    return found


@torch.inference_mode()
def said(task: Any, x: Any) -> Any:
    """(N, C) probabilities, by the network itself."""
    return task(x).softmax(1).numpy()


# what is predicted

NEW = of_table(
    colour=lambda i: ("red", "", "blue", "lime", "sea")[i % 5],
    size=lambda i: "" if i % 7 == 3 else (i * 37) % 1009 / 2,
    note=lambda i: f"row {i}",
)


@pytest.mark.parametrize("model", ["mlp", "linear", "boosting"])
def test_a_table_with_missing_cells_and_categories(place: Path, run: Any, model: str) -> None:
    table(of_table(**{name: NEW[name] for name in ("size", "colour")}), 100)(place)
    parts = run(T, f"model={model}")
    task, columns = parts.task, parts.task.spec.columns
    assert {column.kind for column in columns if column.missing} == {"numeric", "categorical"}
    if model != "mlp":
        train = data_of(T).rows["train"]
        x, y = train[torch.arange(len(train))]
        task.net.fit((task.scale_x(x), y, None), None, seed=0)
    table(NEW, 50, "new.csv", first=700)(place)
    found = predicted("new.csv", "out.csv")
    with open("new.csv", newline="") as file:
        given = list(csv.DictReader(file))

    def code(column: Any, cell: str) -> float:
        if cell == "":
            return float("nan")
        names = column.categories
        return float(cell) if not names else float(names.index(cell)) if cell in names else -1.0

    x = torch.tensor([[code(column, row[column.name]) for column in columns] for row in given])
    expected = said(task, x)
    assert len({tuple(row) for row in expected.tolist()}) > 10
    assert shares(found, task.spec.classes) == pytest.approx(expected, rel=1e-5)
    assert [row["note"] for row in found] == [f"row {i}" for i in range(700, 750)]


def test_pictures_of_a_folder(place: Path, run: Any) -> None:
    photos(num=40)(place)
    task = run(I, "model=cnn").task
    photos("new", 70, ("any",), seed=5)(place)
    found = predicted("new", "out.parquet")
    names = sorted(path.name for path in Path("new/any").iterdir())
    assert [row["file"] for row in found] == [f"any/{name}" for name in names]
    pictures = []
    for name in names:  # 7 x 9, of which the middle 7 x 7 is scaled to 8 x 8
        with Image.open(f"new/any/{name}") as picture:
            square = picture.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR, box=(0, 1, 7, 8))
            pictures.append(np.asarray(square).transpose(2, 0, 1))
    expected = said(task, torch.from_numpy(np.stack(pictures)).float() / 255)
    assert shares(found, task.spec.classes) == pytest.approx(expected, rel=1e-4)


def test_texts_of_all_lengths_keep_their_order(place: Path, run: Any) -> None:
    text()(place)
    task = run(X).task
    wordy = of_text(text=lambda i: " ".join(["word", str(i), "more"] * (1 + i * 7 % 13)), label=None)
    table(wordy, 150, "new.csv")(place)
    found = predicted("new.csv", "out.jsonl")
    made, expected = tokenizer(PACKAGED), []
    for i in range(150):  # one at a time, so that nothing is padded or sorted
        ids = torch.tensor([made(wordy["text"](i), truncation=True, max_length=16)["input_ids"]])
        expected.append(said(task, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0])
    assert shares(found, task.spec.classes) == pytest.approx(np.stack(expected), rel=1e-4)


def test_values_are_in_the_units_of_the_file(place: Path, run: Any) -> None:
    made: Any = of_table(good=lambda i: 1000 + i * i * 37 % 1009)
    table(made)(place)
    task = run(T).task
    table(made, 20, "new.csv", first=90)(place)
    found = [row["prediction"] for row in predicted("new.csv", "out.jsonl")]
    columns = {column.name: column for column in task.spec.columns}
    rows = [{name: column(i) for name, column in made.items()} for i in range(90, 110)]
    x = [[c.categories.index(row[n]) if c.categories else float(row[n]) for n, c in columns.items()] for row in rows]
    with torch.inference_mode():
        assert found == pytest.approx(task(torch.tensor(x)).squeeze(1).numpy(), rel=1e-5)
    assert np.mean(found) == pytest.approx(1500, abs=500)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_rows_are_predicted_in_the_precision_of_the_run(place: Path, run: Any, precision: str) -> None:
    table()(place)
    parts = run(T, f"trainer.precision={precision}")
    seen = []
    parts.task.net.register_forward_hook(lambda net, x, out: seen.append(out.dtype))
    table(num=20, name="new.csv", first=90)(place)
    found = shares(predicted("new.csv", "out.csv"), parts.task.spec.classes)
    assert set(seen) == {torch.bfloat16}
    assert np.sum(found, 1) == pytest.approx(np.ones(20), abs=1e-5)  # the shares are of 32 bits


def test_a_run_that_predicts_hidden_words_is_told(place: Path, run: Any) -> None:
    text()(place)
    parts = run(X)
    parts.task.spec = type(parts.task.spec)("text", (9, 9), "class")
    with pytest.raises(UserError, match="predicts hidden words, no classes"):
        predicted("t.csv", "out.csv")


# the column of texts


def test_the_column_of_texts_is_the_one_that_the_run_had(place: Path, run: Any) -> None:
    table(of_text(text=None, body=lambda i: f"text number {i}"))(place)
    parts = run(X)
    assert parts.data.spec.text == "body"
    assert type(parts.data.spec).read(json.loads(json.dumps(parts.data.spec.plain()))) == parts.data.spec
    table({"id": lambda i: i}, 20, "new.csv")(place)
    with pytest.raises(UserError, match=r"'new\.csv' lacks the column of texts: no column 'body'\. Allowed: id"):
        predicted("new.csv", "out.csv")
    table(of_text(text=lambda i: "x", body=lambda i: f"text number {i}"), 20, "new.csv")(place)
    told = shares(predicted("new.csv", "out.csv"), parts.data.spec.classes)
    assert len({row[0] for row in told}) > 10  # not of `text`, which is always the same
    table(of_text(), 20, "new.csv")(place)
    with pytest.raises(UserError, match=r"'new\.csv': data\.text: no column 'body'"):
        data_of(X.replace("t.csv", "new.csv"), fitted=parts.data.spec)


def test_the_files_of_one_run_have_one_column_of_texts(place: Path) -> None:
    both(text(text=None, body=lambda i: f"text number {i}"), table(of_text(), 20, "test.csv", first=90))(place)
    with pytest.raises(UserError, match=r"'test\.csv': data\.text: no column 'body'"):
        data_of("data=text data.train=t.csv data.test=test.csv")


def test_other_texts_are_scored_without_the_columns_that_split_the_first(place: Path) -> None:
    whose: Any = of_text(who=lambda i: f"c{i % 30}", day=lambda i: i)
    both(table(whose), table(of_text(), 20, "new.csv", first=90))(place)
    for column in ("data.group=who", "data.time=day"):
        spec = data_of(f"{X} {column}").spec
        assert data_of(f"{X.replace('t.csv', 'new.csv')} {column}", fitted=spec).num_rows == {"test": 20}


# what is written


def test_json_has_null_for_what_is_no_number(place: Path, run: Any) -> None:
    table(of_table(), 60, "t.parquet")(place)
    run(f"{TABLE} data.path=t.parquet")
    odd: Any = of_table(odd=lambda i: (float("nan"), float("inf"), 0.5)[i % 3], tags=lambda i: [float("nan"), i])
    table(odd, 30, "new.parquet", first=90)(place)
    job.predict(OmegaConf.create({"input": "new.parquet", "output": "out.jsonl"}), place)

    def strict(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    found = [json.loads(line, parse_constant=strict) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["odd"] for row in found] == [None, None, 0.5] * 10
    assert [row["tags"] for row in found] == [[None, i] for i in range(90, 120)]
    again = predicted("new.parquet", "out.parquet")
    assert [row["probability_yes"] for row in found] == pytest.approx([row["probability_yes"] for row in again])
    assert [row["size"] for row in found] == [row["size"] for row in again]


def test_a_column_of_lists_is_told_before_it_is_written_as_csv(place: Path, run: Any) -> None:
    table(of_table(), 60, "t.parquet")(place)
    run(f"{TABLE} data.path=t.parquet")
    table(of_table(tags=lambda i: [i]), 30, "new.parquet", first=90)(place)
    with pytest.raises(UserError, match=r"column 'tags' is list<.*>, which a \.csv file cannot hold; remove it, or"):
        predicted("new.parquet", "out.csv")
    assert list(place.glob("*out*")) == []
    assert predicted("new.parquet", "out.parquet")[5]["tags"] == [95]


# what cannot be read


def test_an_input_that_looks_like_a_number(place: Path, run: Any) -> None:
    table()(place)
    run(T)
    with pytest.raises(UserError, match="input=2024: there is no such file"):
        job.predict(OmegaConf.create({"input": 2024, "output": "out.csv"}), place)
    table(num=20, name="new/a.csv", first=90)(place)
    Path("new").rename("2024")
    job.predict(OmegaConf.create({"input": 2024, "output": "out.csv"}), place)
    assert len(Path("out.csv").read_text().splitlines()) == 21


def test_an_input_that_may_not_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Any, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(job.os, "stat", refused)
    with pytest.raises(UserError, match=r"input=new\.csv cannot be read: Permission denied\."):
        job.predict(OmegaConf.create({"input": "new.csv", "output": "out.csv"}), place)


def test_the_first_rows_that_cannot_be_read_are_told_with_their_places(
    place: Path, run: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table()(place)
    run(T)
    table(of_table(price=lambda i: "abc" if i % 2 else 1), 100, "new.csv", lines={5: ""})(place)
    with caplog.at_level(logging.INFO):
        predicted("new.csv", "out.csv")
    told = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert len(told) == 20
    assert told[0].startswith("row 2 cannot be read and has no prediction: new.csv, line 3: column 'price': 'abc' is")
    assert told[2].startswith("row 7 cannot be read and has no prediction: new.csv, line 9: column 'price': 'abc' is")
    assert "... and 29 more" in caplog.text
    assert "predicted  50 of 99 rows" in caplog.text
    caplog.clear()
    monkeypatch.setattr(job, "LOCATED_BYTES", 10)  # a large file is not read again for each
    with caplog.at_level(logging.INFO):
        predicted("new.csv", "out.csv")
    assert "row 2 cannot be read and has no prediction: column 'price': 'abc' is" in caplog.text


def test_memory_does_not_grow_with_the_rows(place: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    table()(place)
    parts = run(T)
    real, alive, most = parts.data.inputs, weakref.WeakSet(), []
    held: list[tuple[int, int]] = []  # when each batch is done with: batches, and bytes of Arrow

    def inputs(path: str) -> Iterator[Any]:
        for made in real(path):
            alive.add(made.x)
            yield made
            held.append((len(alive), pa.total_allocated_bytes()))

    monkeypatch.setattr(parts.data, "inputs", inputs)
    for num in (10_000, 60_000):
        table(of_table(price=lambda i: "abc" if i % 3 else 1), num, "new.csv")(place)
        predicted("new.csv", "out.csv")
        most.append((len(held), *np.max(held, 0)))
        held.clear()
    assert most[1][0] > 5 * most[0][0]
    assert most[1][1] == most[0][1] <= 2
    assert most[1][2] < 1.5 * most[0][2]


class Asked(BaseException):
    pass


def test_a_signal_is_heard_while_standard_input_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Asked

    source, sink = os.pipe()
    os.write(sink, b"size,colour,price\n1,red,3\n")
    monkeypatch.setattr(files.sys, "stdin", SimpleNamespace(fileno=lambda: source))
    before, others = signal.signal(signal.SIGUSR2, stop), set(threading.enumerate())
    threads = [
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)),
        threading.Timer(5, os.close, (sink,)),  # so that a process that hears nothing ends, too
    ]
    try:
        for thread in threads:
            thread.start()
        with pytest.raises(Asked):
            list(files.batches("-"))
        assert threads[1].is_alive()
    finally:
        signal.signal(signal.SIGUSR2, before)
        threads[1].cancel()
        for thread in threads:
            thread.join()
    assert set(threading.enumerate()) <= others  # nobody waits for input any longer
    os.close(sink)
    os.close(source)


def test_standard_input_is_read_to_its_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(num=5_000)(place)
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    with open("t.csv") as file:
        monkeypatch.setattr(files.sys, "stdin", file)
        found = pa.Table.from_batches(files.batches("-"))
    assert found == pa.Table.from_batches(files.batches("t.csv"))


# runs that are opened on what they were not made with


@pytest.fixture
def finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the folder of a run with random weights; gives its config, as evaluate is called with it."""

    def made(*words: str) -> Any:
        cfg = quick(*words, "cache=null")
        folder = place / "run"
        folder.mkdir()
        parts = build(cfg, folder)
        write_config(folder, cfg)
        data = {"fingerprint": parts.data.fingerprint, "spec": parts.data.spec.plain()}
        write_json(folder / "run.json", {"data": data})
        ids: dict[str, Any] = {name: part.numpy() for name, part in parts.data.ids.items()}
        np.savez_compressed(folder / "splits.npz", **ids)
        state = {"state_dict": parts.task.state_dict()}
        monkeypatch.setattr("research.engine.opened.load", lambda path: state)
        cfg.checkpoint = "best"
        return cfg

    return made


@pytest.mark.parametrize("column", [{"price": lambda i: 5 + i * 53 % 211}, {"colour": lambda i: "abcdef"[i % 6]}])
def test_a_run_is_not_scored_on_its_own_files_with_other_content(place: Path, finished: Any, column: Any) -> None:
    table()(place)
    cfg = finished(*T.split())
    evaluate(cfg.copy(), place / "run")
    table(of_table(**column))(place)
    told = r"not what 'run' was made with: its content has changed.* or name rows to be scored, data\.path=FILE"
    with pytest.raises(UserError, match=told):
        evaluate(cfg, place / "run")


def test_a_change_that_cannot_be_split_is_told_as_a_change(place: Path, finished: Any) -> None:
    table()(place)
    cfg = finished(*T.split())
    table(of_table(**at("perhaps", "good")))(place)
    with pytest.raises(UserError, match=r"'perhaps' \(1\) in each part(.|\n)*have changed since, put them back"):
        evaluate(cfg, place / "run")


def test_a_run_is_not_scored_on_another_split(place: Path, finished: Any) -> None:
    table()(place)
    cfg = finished(*T.split())
    cfg.data.split_seed = 5
    with pytest.raises(UserError, match=r"data\.split_seed=5 makes it other data, so that rows it was trained on"):
        evaluate(cfg, place / "run")


def test_a_run_is_scored_on_the_rows_of_another_file(place: Path, finished: Any) -> None:
    two(of_table(colour=lambda i: "abcdef"[i % 6]))(place)
    cfg = finished(*T.split())
    cfg.data.path = "test.csv"
    evaluate(cfg, place / "run")
    scores = json.loads((place / "run/evaluate.json").read_text())
    assert set(scores) >= {"test/loss", "test/acc"}
    assert not any(name.startswith("val/") for name in scores)


def test_a_run_that_ended_before_its_data_is_told(place: Path, finished: Any) -> None:
    table()(place)
    cfg = finished(*T.split())
    write_json(place / "run/run.json", {"status": "failed"})
    with pytest.raises(UserError, match="'run' ended before its data was read"):
        evaluate(cfg, place / "run")


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ({"path": None, "test": None}, "no path is given: name the rows to be scored by one path"),
        ({"path": None, "train": "t.csv", "test": "test.csv"}, "data.train=t.csv, data.test=test.csv: name the rows"),
    ],
)
def test_rows_to_be_scored_have_one_path(place: Path, paths: Any, told: str) -> None:
    two()(place)
    spec = data_of(T).spec
    words = " ".join(f"data.{name}={path or 'null'}" for name, path in paths.items())
    with pytest.raises(UserError, match=told):
        data_of(f"{TABLE} {words}", fitted=spec)

"""Rows to predict that are not as those of the run: told, or left without a prediction, with the others predicted."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.dataset
import pytest
import torch
from lightning import Trainer
from making import TABLE, I, Make, T, X, at, both, bytes_, cut, data_of, of_table, of_text, photos, table, text
from omegaconf import OmegaConf
from torch import Tensor, nn

from research.data import files
from research.engine.errors import UserError
from research.engine.predict import predict


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in words and messages are those of a folder of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Task(nn.Module):
    """A network that says the first class of everything."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    def answer(self, batch: Any, batch_idx: int) -> tuple[Tensor, Any]:
        x, y = batch
        size = len(x["input_ids"] if isinstance(x, dict) else x)
        return torch.eye(self.spec.num_outputs)[:1].expand(size, -1), y

    def predicted(self, raw: Tensor) -> Tensor:
        return raw


NEW = table(num=20, name="new.csv", first=700)
NEW_PHOTOS = photos("new", 2, ("any",), seed=5)
TO_PREDICT: list[tuple[str, Make, str, str, tuple[str, ...]]] = [
    ("no such input", NEW, T, "nwe.csv out.csv", ("input=nwe.csv: there is no such file",)),
    ("another form of output", NEW, T, "new.csv out.xlsx", ("output=out.xlsx: no form '.xlsx'", ".parquet")),
    ("an output without a form", NEW, T, "new.csv out", ("output=out: ", ".csv, .jsonl, .parquet")),
    ("the output is the input", NEW, T, "new.csv ./new.csv", ("new.csv is the input",)),
    ("the output is below a file", NEW, T, "new.csv new.csv/out.csv", ("output=new.csv/out.csv cannot be written",)),
    ("no such column", table(of_table(price=None), 20, "new.csv"), T, "new.csv out.csv",
     ("'new.csv' lacks the column price. It has: size, colour, good",)),
    ("a column of predictions", table(of_table(prediction=lambda i: i), 20, "new.csv"), T, "new.csv out.csv",
     ("a column 'prediction' already",)),
    ("no row that can be read", table(of_table(price=lambda i: "abc"), 20, "new.csv"), T, "new.csv out.csv",
     ("none of the 20 rows can be read", "column 'price': 'abc'")),
    ("an empty file", bytes_("new.csv", b""), T, "new.csv out.csv", ("'new.csv' is empty",)),
    ("a header alone", table(num=0, name="new.csv"), T, "new.csv out.csv", ("new.csv: it has a header and no rows",)),
    ("a ragged row", table(name="new.csv", lines={18: "1"}), T, "new.csv out.csv",
     ("new.csv: line 18: it has 1 cell",)),
    ("a column of lists", table(of_table(price=lambda i: [i]), 20, "new.jsonl"), T, "new.jsonl out.csv",
     ("column 'price' holds list",)),
    ("no column of texts", table(of_table(), 20, "new.csv"), X, "new.csv out.csv",
     ("'new.csv' lacks the column of texts: no column 'text'",)),
    ("a folder without pictures", lambda folder: (folder / "d").mkdir(), I, "d out.csv", ("'d' holds no picture",)),
    ("rows for pictures", NEW, I, "new.csv out.csv", ("'new.csv' has the columns", "which is it? data.image=")),
    ("a run without files", NEW, "data=diabetes", "new.csv out.csv", ("cannot read files; train with data=table",)),
]  # fmt: skip


def predicted(words: str, paths: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows that the command would write, of a run on right files."""
    {T: table(), X: text(), I: photos()}.get(words, both())(place)
    spec = data_of(words).spec
    parts = SimpleNamespace(data=data_of(words, fitted=spec, read=False), task=Task(spec))
    parts.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr("research.engine.opened.opened", lambda *_, **__: parts)
    given, out = paths.split()
    predict(OmegaConf.create({"input": given, "output": out}), place)
    return pyarrow.dataset.dataset(out, format=Path(out).suffix[1:]).to_table().to_pylist()


@pytest.mark.parametrize(
    ("make", "words", "paths", "told"), [pytest.param(*case, id=name) for name, *case in TO_PREDICT]
)
def test_what_cannot_be_predicted_is_told_and_nothing_is_left(
    make: Make, words: str, paths: str, told: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place)
    with pytest.raises(UserError) as error:
        predicted(words, paths, place, monkeypatch)
    assert [part for part in told if part not in str(error.value)] == [], str(error.value)
    assert list(place.rglob("*out*")) == []


UNREAD: list[tuple[str, Make, str, str, int | None, str]] = [
    ("a text for a number", table(of_table(**at("abc", "price")), 20, "new.csv"), T, "new.csv", 16, "'abc' is not"),
    ("an infinite number", table(of_table(**at("-inf", "price")), 20, "new.csv"), T, "new.csv", 16, "'-inf' is not"),
    ("more than float32", table(of_table(**at("1e39", "price")), 20, "new.csv"), T, "new.csv", 16, "'1e39' is not"),
    ("a missing number", table(of_table(**at("", "price")), 20, "new.csv"), T, "new.csv", None, ""),
    ("an unseen category", table(of_table(**at("grün", "colour")), 20, "new.csv"), T, "new.csv", None, ""),
    ("a table without the target", table(of_table(good=None), 20, "new.csv"), T, "new.csv", None, ""),
    ("numbers of another form", table(of_table(), 20, "new.parquet"), T, "new.parquet", None, ""),
    ("an empty text", table(of_text(**at(" ", "text", of_text())), 20, "new.csv"), X, "new.csv", 16, "'text' is empty"),
    ("a cut picture", cut(NEW_PHOTOS, "new/any/001.png"), I, "new", 1, "truncated"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words", "given", "row", "told"), [pytest.param(*case, id=name) for name, *case in UNREAD]
)
def test_a_row_that_cannot_be_read_has_no_prediction_and_the_others_have(
    make: Make,
    words: str,
    given: str,
    row: int | None,
    told: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(place)
    with caplog.at_level(logging.WARNING):
        found = predicted(words, f"{given} out.csv", place, monkeypatch)
    assert [index for index, line in enumerate(found) if not line["prediction"]] == ([] if row is None else [row])
    assert len(found) == (2 if words == I else 20)
    assert told in caplog.text
    assert f"row {row + 1} cannot be read" in caplog.text if row is not None else "cannot be read" not in caplog.text


def test_an_unseen_category_is_told_apart_from_a_missing_one(place: Path) -> None:
    table()(place)
    spec = data_of(T).spec
    table(lines={3: "1,lime,3,yes", 4: "1,,3,yes"}, num=5, name="new.csv")(place)
    (inputs,) = data_of(T, fitted=spec, read=False).inputs("new.csv")
    assert inputs.x[1, 1] == -1
    assert inputs.x[2, 1].isnan()
    assert inputs.wrong == []


@pytest.mark.parametrize("job", ["predict", "evaluate"])
def test_categories_that_were_not_seen_are_counted_and_told(
    job: str, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table()(place)
    spec = data_of(T).spec
    colours = ("lime", "red", "pink", "", "grey", "lime", "tan", "lime")
    table(of_table(colour=lambda i: colours[i % 8]), 40, "new.csv", first=800)(place)
    if job == "predict":
        predicted(T, "new.csv out.csv", place, monkeypatch)
    else:
        data_of(f"{TABLE} data.path=new.csv", fitted=spec)
    told = "column 'colour': 30 cell(s) have a category that the network does not know (lime, pink, grey, ...)"
    assert told in caplog.text


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_columns_that_begin_with_nothing_are_written_as_what_comes_later(
    form: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note: Any = of_table(note=lambda i: None if i < 740 else "late", num=lambda i: i if i < 740 else i + 0.5)
    table(note, 60, "new.jsonl", first=700)(place)
    monkeypatch.setattr(files, "BLOCK_ROWS", 16)
    table()(place)
    found = predicted(T, f"new.jsonl out.{form}", place, monkeypatch)
    assert [row["note"] or None for row in found] == [None] * 40 + ["late"] * 20
    assert [row["num"] for row in found] == [*range(700, 740), *(i + 0.5 for i in range(740, 760))]


def test_what_a_form_cannot_hold_is_told_with_its_column(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: Any = of_table(note=lambda i: [i] if i < 732 else ["late"])
    table(mixed, 60, "new.jsonl", first=700)(place)
    monkeypatch.setattr(files, "BLOCK_ROWS", 16)
    table()(place)
    with pytest.raises(UserError, match=r"column 'note' is list.* in some rows and list.* output=\.\.\.\.jsonl"):
        predicted(T, "new.jsonl out.parquet", place, monkeypatch)
    assert list(place.glob("*out*")) == []


def test_a_class_that_the_run_does_not_know_is_told_with_its_place(place: Path) -> None:
    for words, make in {T: table(of_table(**at("maybe", "good"))), X: text(**at("z", "label", of_text()))}.items():
        {T: table(), X: text()}[words](place)
        spec = data_of(words).spec
        make(place)
        with pytest.raises(UserError, match=r"t\.csv, line 18.*'(maybe|z)' is not one of the (run's )?classes"):
            data_of(words, fitted=spec)

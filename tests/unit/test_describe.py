"""What `describe` and the start of a run say of data: the numbers, held against those of the rows themselves."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from making import TABLE, I, T, X, data_of, of_table, photos, table, text

from research.engine import describe
from research.engine.build import read_data
from research.engine.describe import figure, sections, tell, write_page


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(data: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    """The rows of each table by their first cell."""
    return {made.title: {name: tuple(cells) for name, *cells in made.rows} for made in sections(data)}


COLUMNS = of_table(
    age=lambda i: "" if i % 4 == 0 else i * 7 % 50,
    day=lambda i: f"2026-01-{1 + i % 28:02}T18:30:00Z",
    flag=lambda i: ("yes", "no", "")[i % 3],
)


def test_a_table_is_described_by_its_training_rows(place: Path) -> None:
    table(COLUMNS, 100)(place)
    data = data_of(T)
    train = data.ids["train"].tolist()
    said = of(data)
    assert said["Rows"] == {"train": ("69", "69.0%"), "val": ("16", "16.0%"), "test": ("15", "15.0%")}
    for name in ("yes", "no"):
        counts = [sum(COLUMNS["good"](i) == name for i in ids.tolist()) for ids in data.ids.values()]
        assert said["Classes"][name] == tuple(map(str, counts))
    columns = said["Columns, in training rows"]
    ages = [i * 7 % 50 for i in train if i % 4]
    missing = len(train) - len(ages)
    holds = f"{min(ages)} ... {np.median(ages):g} ... {max(ages)}"
    assert columns["age"] == ("numeric", f"{missing} ({missing / 69:.1%})", f"{len(set(ages))} values", holds)
    assert columns["colour"] == ("categorical", "", "3 categories", "blue, red, sea")
    assert columns["day"][::2] == ("date", f"{len({i % 28 for i in train})} values")
    rows = [train[i] for i in describe.spread(len(train), 5).tolist()]
    shown = said["Examples, of training rows"]
    assert shown["target"] == tuple(COLUMNS["good"](i) for i in rows)
    assert shown["age"] == tuple(str(COLUMNS["age"](i)) for i in rows)
    assert shown["colour"] == tuple(COLUMNS["colour"](i) for i in rows)
    assert shown["day"] == tuple(COLUMNS["day"](i)[:10] for i in rows)
    assert shown["flag"] == tuple(COLUMNS["flag"](i) for i in rows)


def test_a_sample_is_called_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "SAMPLE", 20)
    table(COLUMNS, 100)(place)
    assert "Columns, in 20 of 69 training rows" in of(data_of(T))


def test_numbers_to_predict_and_rare_categories_are_described(place: Path) -> None:
    columns = of_table(good=lambda i: i / 7, colour=lambda i: "abc"[min(i % 10, 2)])
    table(columns)(place)
    data = data_of(f"{T} data.max_categories=1")
    y = np.array([i / 7 for i in data.ids["train"].tolist()])
    numbers = (y.mean(), y.std(), y.min(), np.sort(y)[(len(y) - 1) // 2], y.max())
    assert [float(cell) for cell in of(data)["Target"]["train"]] == pytest.approx(numbers, rel=1e-3)
    rows = [data.ids["train"][i].item() for i in describe.spread(len(y), 5).tolist()]
    assert of(data)["Examples, of training rows"]["colour"] == tuple("c" if i % 10 > 1 else "(rare)" for i in rows)


def test_texts_and_pictures_are_described(place: Path) -> None:
    text(text=lambda i: " ".join(["word"] * (1 + i % 9)) + f" {i}")(place)
    data = data_of(X)
    lengths = sorted(map(len, data.rows["train"].ids))
    said = of(data)["Tokens of a text"]["train"]
    assert [int(said[i]) for i in (0, 2, 4)] == [lengths[0], np.median(lengths), lengths[-1]]
    photos()(place)
    said = of(data_of(I))["Pixels of a picture, as in its file"]
    assert said == {"width": ("7", "7", "7"), "height": ("9", "9", "9")}


@pytest.mark.parametrize("option", ["digits", "diabetes"])
def test_data_in_code_is_described(option: str) -> None:
    data: Any = read_data(composed(f"data={option}"))
    said = of(data)
    assert [int(cells[0].replace(",", "")) for cells in said["Rows"].values()] == list(data.num_rows.values())
    if option == "diabetes":
        ages = data.rows["train"].x[:, 0]
        assert said["Columns, in training rows"]["x0"][-1].startswith(f"{ages.min():g} ... ")
        assert said["Examples, of training rows"]["x0"][0] == f"{ages[0]:g}"


def test_a_run_begins_with_the_first_rows_of_each_table(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(COLUMNS, 100)(place)
    data = data_of(T)
    with caplog.at_level(logging.INFO):
        tell(data, 2)
    said = "\n".join(caplog.messages)
    assert all(section.title in said for section in sections(data))
    assert re.search(r"train +69 +69\.0%", said)
    assert re.search(r"no +\d+ +\d+ +\d+", said)
    assert "... and 1 more, see data.html" in said
    assert not re.search(r"test +15", said)  # the third row


def test_the_page_has_every_table_and_what_was_found(place: Path) -> None:
    table(of_table(colour=lambda i: ("<b>", "red")[i % 2], one=lambda i: 1))(place)
    data = data_of(T)
    picture = figure(data)
    assert [ax.get_title() for ax in picture.axes[:4]] == ["training rows of each class", "size", "colour", "price"]
    bars = [round(bar.get_height()) for bar in picture.axes[0].patches]
    assert bars == torch.bincount(data.rows["train"].labels).tolist()
    write_page(data, place, picture, sections(data))
    page = (place / "data.html").read_text()
    assert "column &#39;one&#39; has one value" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "data:image/png;base64," in page
    for section in sections(data):
        assert f"<h2>{section.title}</h2>" in page


def test_dates_of_any_year_are_shown(place: Path) -> None:
    table(of_table(day=lambda i: f"{(1, 1970, 9999)[i % 3]:04}-12-31"), name="t.csv")(place)
    days = set(of(data_of(f"{TABLE} data.path=t.csv"))["Examples, of training rows"]["day"])
    assert days <= {"0001-12-31", "1970-12-31", "9999-12-31"}
    assert len(days) > 1

"""Numbers and dates as people write them become the numbers and dates that they are."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from composing import told
from hypothesis import given, settings
from hypothesis import strategies as st
from making import data_of

from research.data.columns import encode, plain
from research.data.forms import Form, Forms
from research.data.spec import Spec
from research.engine.errors import UserError

T = "data=table data.path=t.csv data.target=y"
NUM = 120
VALUES = np.random.default_rng(0).permutation(NUM) * 37 + 1000  # all different, none below a thousand
START = datetime(2019, 12, 30)
fast = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(**columns: Any) -> None:
    rows = {"other": [f"{i % 5}" for i in range(NUM)], "y": [i * i % 11 for i in range(NUM)], **columns}
    pd.DataFrame(rows).to_csv("t.csv", index=False)


def cells_of(data: Any, name: str) -> np.ndarray[Any, Any]:
    """(N,) a column of the table in the order of the file, as float64 numbers."""
    index = [column.name for column in data.spec.columns].index(name)
    found = np.empty(NUM)
    for split, ids in data.ids.items():
        found[ids.numpy()] = data.rows[split][:][0][:, index].double() + data.spec.columns[index].offset
    return found


FORMS: dict[str, tuple[Callable[[int], str], Callable[[int], float], str]] = {
    "dollars": (lambda v: f"${v:,}", float, "'$' before"),
    "dollars in brackets": (lambda v: f"(${v:,})", lambda v: -v, "'$' before"),
    "euros": (lambda v: f"{v / 100:.2f} €".replace(".", ","), lambda v: v / 100, "'€' after"),
    "a code": (lambda v: f"USD {v}", float, "'USD' before"),
    "percent": (lambda v: f"{v / 100:g}%", lambda v: v / 100, "'%' after"),
    "decimal comma": (lambda v: f"{v / 10:.1f}".replace(".", ","), lambda v: v / 10, "comma for the point"),
    "spaces": (lambda v: f"{v:,}".replace(",", " "), float, "marks between thousands"),
    "narrow spaces": (lambda v: f"{v:,}".replace(",", "\u202f"), float, "marks between thousands"),
    "apostrophes": (lambda v: f"{v:,}".replace(",", "'"), float, "marks between thousands"),
    "brackets": (lambda v: f"({v})", lambda v: -v, "numbers"),
    "a real minus": (lambda v: f"\u2212{v}", lambda v: -v, "numbers"),
    "kilograms": (lambda v: f"{v} kg", float, "'kg' after"),
    "without a space": (lambda v: f"{v}km/h", float, "'km/h' after"),
    "degrees": (lambda v: f"{v / 10} °C", lambda v: v / 10, "'°C' after"),
    "trailing spaces": (lambda v: f"{v:,}  ", float, "marks between thousands"),
    "points for thousands": (lambda v: f"{v * 1000:,}".replace(",", "."), lambda v: v * 1000, "comma for the point"),
    "both marks": (lambda v: f"{v:,.2f}", float, "marks between thousands"),
    "both marks, swapped": (lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,")), float, "comma for the point"),
    "exponents": (lambda v: f"{v:.3e}".replace(".", ","), float, "comma for the point"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_number_is_read_however_it_is_written(name: str) -> None:
    write, value, told = FORMS[name]
    table(x=[write(int(v)) for v in VALUES])
    data = data_of(T)
    expected = [value(int(v)) for v in VALUES]
    np.testing.assert_allclose(cells_of(data, "x"), expected, rtol=1e-6)
    assert any(text.startswith("column 'x' is read as numbers") and told in text for text in data.findings)


@pytest.mark.parametrize("name", FORMS)
def test_a_target_is_read_however_it_is_written(name: str) -> None:
    write, value, _ = FORMS[name]
    table(y=[write(int(v)) for v in VALUES])
    data = data_of(T)
    assert data.spec.target == "value"
    found = np.empty(NUM)
    for split, ids in data.ids.items():
        found[ids.numpy()] = data.rows[split][:][1][:, 0].double() + data.spec.label.offset
    np.testing.assert_allclose(found, [value(int(v)) for v in VALUES], rtol=1e-6)


@given(st.lists(st.floats(-1e9, 1e9).map(lambda v: round(v, 2)), min_size=3, max_size=30), st.data())
@fast
def test_marks_of_any_two_kinds_give_the_number_back(numbers: list[float], draw: Any) -> None:
    thousands, point = draw.draw(st.sampled_from([",.", ".,", " ,", " .", "'.", "\u00a0,"]))
    before, after = draw.draw(st.sampled_from([("", ""), ("$", ""), ("€ ", ""), ("", " kg"), ("", "%")]))
    texts = [f"{abs(v):,.2f}".replace(",", "\0").replace(".", point).replace("\0", thousands) for v in numbers]
    texts = [f"{'-' if v < 0 else ''}{before}{text}{after}" for v, text in zip(numbers, texts, strict=True)]
    forms = Forms()
    forms.add(pa.array(texts))
    form = forms.number(point)
    assert form
    np.testing.assert_allclose(form.read(pa.array(texts)).to_numpy(zero_copy_only=False), numbers)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda i: f"{i} kg" if i % 2 else f"{i} lb", ("the units '", "'kg'", "'lb'", "data.categorical=[x]")),
        (lambda i: f"{i},5" if i % 2 else f"1,{i:03}.5", ("some with a comma and some with a point", "data.decimal")),
        (lambda i: "." if i % 6 else f"{i}", ()),
        (lambda i: f"{i}.5" if i % 6 else "unknown", ("20 of 120 cells 'unknown'", "data.missing=[unknown]")),
        (lambda i: f"{i}.5" if i % 6 else ("n.d.", "--")[i % 4 // 2], ("data.missing=[", "'--'", "'n.d.'")),
        (lambda i: f"{i}.5" if i % 6 else f"word {chr(97 + i // 6)}", ("20 of 120 cells", "...", "data.missing=[")),
        (lambda i: f"{i}.5" if i % 5 else f"<{i}", ("24 of 120 cells bounds: '<0'", "data.categorical=[x]")),
        (lambda i: f"~{i}.5" if i % 2 else f"{i}", ("60 of 120 cells bounds: '~1.5'",)),
    ],
)
def test_numbers_that_cannot_be_read_are_named_with_the_option(write: Callable[[int], str], told: tuple[str]) -> None:
    table(x=[write(i) for i in range(NUM)])
    if not told:
        assert "x" in {column.name for column in data_of(T).spec.columns}
        return
    with pytest.raises(UserError) as error:
        data_of(T)
    assert [part for part in told if part not in str(error.value)] == []


@pytest.mark.parametrize("mark", ["-", ".", "#N/A", "<NA>", "NaT", "na", "none", "nil", "None", "NULL", "?", "NA"])
def test_marks_that_everybody_uses_are_missing(mark: str) -> None:
    table(x=[f"{v}.5" if i % 6 else mark for i, v in enumerate(VALUES)])
    assert np.isnan(cells_of(data_of(T), "x")).sum() == NUM / 6


def test_marks_of_ones_own_come_beside_those() -> None:
    table(x=[f"{v}.5" if i % 6 else ("?", "unknown")[i % 4 // 2] for i, v in enumerate(VALUES)])
    assert np.isnan(cells_of(data_of(f"{T} data.missing=[unknown]"), "x")).sum() == NUM / 6


def test_none_is_a_label_where_it_is_one() -> None:
    table(y=[("None", "mild", "severe")[i % 3] for i in range(NUM)])
    assert data_of(T).spec.classes == ("None", "mild", "severe")
    table(y=[f"{v}.5" if i % 10 else "None" for i, v in enumerate(VALUES)])
    with pytest.raises(UserError, match=r"missing in 12 of 120 rows.*data.unlabelled=drop"):
        data_of(T)
    assert sum(data_of(f"{T} data.unlabelled=drop").num_rows.values()) == 108


DATES = ["%b %d %Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%b-%y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%B %d, %Y", "%Y-%m-%d",
         "%Y/%m/%d %H:%M", "%m/%d/%Y %I:%M %p", "%d %b %Y %H:%M:%S", "%Y-%m-%d %H:%M:%S",
         "%a %b %d %Y", "%A, %B %d, %Y", "%a, %d %b %Y %H:%M:%S"]  # fmt: skip


@pytest.mark.parametrize("form", DATES)
def test_a_date_is_read_however_it_is_written(form: str) -> None:
    days = [START + timedelta(days=int(v) % 997, hours=int(v) % 24) for v in VALUES]
    table(x=[day.strftime(form) for day in days])
    data = data_of(T)
    names = {column.name for column in data.spec.columns}
    assert {"x (days)", "x (year sin)", "x (year cos)", "x (week sin)", "x (week cos)"} <= names
    assert ("x (day sin)" in names) == ("%H" in form or "%I" in form)
    expected = [
        (datetime.strptime(day.strftime(form), form) - datetime(1970, 1, 1)) / timedelta(days=1) for day in days
    ]
    np.testing.assert_allclose(cells_of(data, "x (days)"), expected, atol=1e-4)
    weekdays = np.array([day.weekday() + (day.hour / 24 if "%H" in form or "%I" in form else 0) for day in days])
    np.testing.assert_allclose(cells_of(data, "x (week sin)"), np.sin(2 * np.pi * weekdays / 7), atol=1e-5)


def test_times_and_months_alone_are_dates_too() -> None:
    table(x=[f"{v % 24:02}:{v % 60:02}" for v in VALUES])
    data = data_of(T)
    assert [c.name for c in data.spec.columns if c.cell == "x"] == ["x (day sin)", "x (day cos)"]
    hours = VALUES % 24 + VALUES % 60 / 60
    np.testing.assert_allclose(cells_of(data, "x (day cos)"), np.cos(2 * np.pi * hours / 24), atol=1e-5)
    table(x=[f"{1990 + v % 40}-{v % 12 + 1:02}" for v in VALUES])
    assert [c.part for c in data_of(T).spec.columns if c.cell == "x"] == ["days", "year sin", "year cos"]


def test_a_day_that_could_be_the_month_is_told_and_can_be_set() -> None:
    table(x=[f"{v % 12 + 1}/{v % 11 + 1}/{2000 + i % 20}" for i, v in enumerate(VALUES)])
    month, day = data_of(T), data_of(f"{T} data.day_first=true")
    assert any("data.day_first=true" in text for text in month.findings)
    assert not any("data.day_first" in text for text in day.findings)
    first = next(column.date_format for column in day.spec.columns if column.cell == "x")
    assert (first, {c.date_format for c in month.spec.columns} - {""}) == ("%d/%m/%Y", {"%m/%d/%Y"})


@pytest.mark.parametrize("far", [1.76e9, 1.6e12, 1e15])
def test_numbers_far_from_zero_keep_what_they_differ_in(far: float) -> None:
    values = far + VALUES / 8
    table(x=[f"{v:.3f}" for v in values], y=[f"{v:.3f}" for v in values[::-1]])
    data = data_of(T)
    np.testing.assert_allclose(cells_of(data, "x") - far, VALUES / 8, atol=0.13)
    labels = np.empty(NUM)
    for split, ids in data.ids.items():
        labels[ids.numpy()] = data.rows[split][:][1][:, 0].double() + data.spec.label.offset
    np.testing.assert_allclose(labels - far, VALUES[::-1] / 8, atol=0.13)


def test_a_comma_that_could_be_either_is_what_it_is_in_the_rest_of_the_file() -> None:
    either = [f"{v % 900 + 1},{v % 899 + 100}" for v in VALUES]
    table(x=either)
    assert cells_of(data_of(T), "x").min() > 1000
    table(x=either, z=[f"{v},5" for v in VALUES])
    data = data_of(T)
    assert cells_of(data, "x").max() < 1000
    assert any("1,234 is 1.234, and data.decimal=. makes it 1234" in text for text in data.findings)
    assert cells_of(data_of(f"{T} data.decimal=. data.drop=[z]"), "x").min() > 1000


def test_new_rows_are_read_by_the_form_of_the_training_rows() -> None:
    table(x=[f"{v},5 kg" for v in VALUES], z=[(START + timedelta(days=i)).strftime("%d.%m.%Y") for i in range(NUM)])
    spec = Spec.read(data_of(T).spec.plain())
    cells = {
        "x": ["7,5 kg", "8,5", "9,5 lb", "9.5"],
        "z": ["31.12.2021", "2021-12-31", "", "01.02.2022"],
        "other": ["1"] * 4,
    }
    given = {name: plain(pa.array(texts), name, pa.array([""])) for name, texts in cells.items()}
    x, wrong = encode(spec.columns, given)
    index = [column.name for column in spec.columns].index("x")
    assert x[:2, index].tolist() == [7.5 - spec.columns[index].offset, 8.5 - spec.columns[index].offset]
    assert [row for row, _ in wrong] == [1, 2, 3]
    assert "'9,5 lb' is not as in training: numbers with 'kg' after them" in wrong[1][1]


def test_categories_that_are_cut_are_told() -> None:
    table(x=[f"c{i % 60 if i < 60 else 0}" for i in range(NUM)])
    data = data_of(f"{T} data.max_categories=5")
    assert any("column 'x': the 5 most frequent categories are kept" in text for text in data.findings)
    assert not any("are kept" in text for text in data_of(T).findings)


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_no_leak(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.zeros(200, dtype=int)
    y[rng.permutation(200)[:4]] = 1
    rows = {f"z{i}": rng.normal(size=200) for i in range(5)} | {"y": ["ab"[i] for i in y]}
    pd.DataFrame(rows).to_csv("t.csv", index=False)
    assert not any("alone predicts" in text for text in data_of(T).findings)


def test_a_form_is_nothing_where_cells_are_plain() -> None:
    assert not Form()
    table(x=[f"{v}" for v in VALUES])
    assert not any("is read as" in text for text in data_of(T).findings)


def test_new_rows_are_cut_as_the_training_rows_were(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{v};{i % 5};{i * i % 11}" for i, v in enumerate(VALUES)]
    Path("r.txt").write_text("\n".join(lines))
    words = "data=table data.path=r.txt data.target=column3 data.task=regression"
    data = data_of(words)
    assert data.spec.file == {
        "delimiter": ";", "encoding": "utf-8", "header": False, "columns": ["column1", "column2", "column3"],
    }  # fmt: skip
    assert any("r.txt is read with ';' between cells and no header" in text for text in data.findings)
    Path("new.txt").write_text("7;1;0")  # one row says little of how it is written
    other = data_of(words, fitted=Spec.read(data.spec.plain()))
    for path in ("new.txt", "-"):
        with open("new.txt") as stream:
            monkeypatch.setattr("sys.stdin", stream)
            (inputs,) = other.inputs(path)
        assert inputs.given.to_pylist() == [{"column1": "7", "column2": "1", "column3": "0"}]
        assert inputs.x.tolist() == [[7 - data.spec.columns[0].offset, 1]]


def test_a_delimiter_is_one_character() -> None:
    words = ("data=table", "data.path=t.csv", "data.target=y")
    assert ["a delimiter is one character" in text for text in told(*words, "data.delimiter=ab")] == [True]
    assert told(*words, "data.delimiter=tab") == told(*words, "data.delimiter='|'") == []

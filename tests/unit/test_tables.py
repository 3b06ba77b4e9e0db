"""Tables from a file to batches: what is read, as what, in which splits, and in how much memory."""

import gzip
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import TABLE, Columns, T, at, both, data_of, of_table, table

from research.data import files, measure
from research.data.batches import spread
from research.data.columns import plain
from research.data.measure import measured
from research.data.spec import Column
from research.data.stored import Stored, TableRows
from research.engine.errors import UserError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in words and messages are those of a folder of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kinds(data: Any) -> dict[str, str]:
    return {column.name: column.kind for column in data.spec.columns}


# files


def test_every_form_of_file_is_the_same_table(place: Path) -> None:
    table()(place)
    table(name="t.tsv", separator="\t")(place)
    table(name="t.jsonl")(place)
    table(name="t.parquet")(place)
    for name in ("t.csv", "t.jsonl"):
        (place / f"{name}.gz").write_bytes(gzip.compress((place / name).read_bytes()))
    both(table(num=20, name="d/a.csv"), table(num=40, name="d/b.csv", first=20))(place)
    expected = data_of(T)
    for name in ("t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.gz", "d"):
        data = data_of(f"{TABLE} data.path={name}")
        assert replace(data.spec, file=None) == replace(expected.spec, file=None)
        for split, rows in data.rows.items():
            for found, right in zip(rows[:], expected.rows[split][:], strict=True):
                assert torch.equal(found, right)


def test_a_mistake_behind_a_very_long_cell_is_found(place: Path) -> None:
    table(of_table(**at("r" * 200_000, "colour")), lines={30: "1,red"})(place)
    with pytest.raises(UserError, match=r"t\.csv: line 30: it has 2 cells"):
        data_of(T)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_may_hold_any_character_and_begin_with_a_mark(encoding: str, place: Path) -> None:
    table(of_table(colour=lambda i: ("\ufffd", "grün")[i % 2]), name="t.jsonl", encoding=encoding)(place)
    content = (place / "t.jsonl").read_bytes()
    assert b"\\ufffd" in content  # as it is put into words that need no UTF-8
    (place / "t.jsonl").write_bytes(content.replace(b"\\ufffd", "\ufffd".encode()))
    data = data_of(f"{TABLE} data.path=t.jsonl")
    assert next(column for column in data.spec.columns if column.name == "colour").categories == ("grün", "\ufffd")


def refused(error: OSError, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(method, refuse)


def test_a_path_that_may_not_be_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(PermissionError(13, "Permission denied"), "pathlib.Path.stat", monkeypatch)
    with pytest.raises(UserError, match=r"'d/t\.csv' may not be read; see the permissions of its folder"):
        files.listed(Path("d/t.csv"))


def test_a_folder_that_may_not_be_read_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(name="d/t.csv")(place)
    refused(PermissionError(13, "Permission denied", "d"), "os.scandir", monkeypatch)
    with pytest.raises(UserError, match=r"the folder 'd' cannot be read: Permission denied"):
        files.listed(Path("d"))


def test_a_name_that_no_file_can_have_is_told() -> None:
    with pytest.raises(UserError, match="there is no file or folder 'xx"):
        files.listed(Path("x" * 5000))


# memory


def test_a_table_larger_than_memory_opens(place: Path) -> None:
    info = '{"num_rows": %d, "columns": [%s], "label": {"name": "b", "kind": "numeric"}, "classes": [], "marks": [], '
    info += '"given": false}'
    column = '{"name": "a", "kind": "numeric", "categories": []}'
    most = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    num_rows = most // 16
    (place / "info.json").write_text(info % (num_rows, ", ".join([column] * 4)))
    for name, width in (("x", 16), ("y", 4), ("identity", 8)):
        with (place / name).open("wb") as file:
            file.truncate(width * num_rows)  # no block of it is there
    with (place / "x").open("r+b") as file:
        file.seek(16 * (num_rows - 1))
        file.write(np.arange(4, dtype=np.float32).tobytes())
    stored = Stored(place)
    rows = TableRows(stored.x, stored.listing.y, torch.tensor([5, num_rows - 1]), {})
    assert rows[torch.tensor([1, 0])][0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]


def test_reading_takes_the_same_memory_for_many_times_the_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def watched(*args: Any) -> pa.Array:
        held.append(pa.total_allocated_bytes())
        return plain(*args)

    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("research.data.table.plain", watched)
    peaks = []
    for num in (10_000, 60_000):
        table(num=num)(place)
        held, before = [], pa.total_allocated_bytes()
        data = data_of(f"{T} data.duplicates=keep")
        assert sum(data.num_rows.values()) == num
        assert len(held) > num / 1000  # in parts
        peaks.append(max(held) - before)
    assert 0 < peaks[1] < 1.5 * peaks[0]  # a few blocks are read ahead


@given(num=st.integers(1, 2**40), most=st.integers(1, 50))
def test_a_sample_is_spread_over_all_rows(num: int, most: int) -> None:
    found = spread(num, most).tolist()
    assert len(set(found)) == len(found) == min(num, most)
    assert found == sorted(found)
    assert found[0] == 0
    assert most == 1 or found[-1] == num - 1
    gaps = np.diff(found)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(
    st.lists(st.lists(st.floats(width=32, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 50),
)
@settings(deadline=None)
def test_medians_and_scales_are_those_of_the_training_rows(cells: list[list[float]], group: int, block: int) -> None:
    made, ids = np.array(cells, dtype=np.float32), np.arange(0, len(cells), 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "GROUP_CELLS", group)
        patch.setattr(measure, "BLOCK_ROWS", block)
        found = measured(made, ids, [Column(name, "numeric") for name in "abc"], 5)
    assert [column.name for column in found] == list("abc")
    for column, values in zip(found, made[ids].T, strict=True):
        there = values[~np.isnan(values)].astype(np.float64)
        assert column.missing == (len(there) < len(values))
        if len(there):
            assert column.median == np.median(there)
            np.testing.assert_allclose(column.mean, there.mean(), rtol=1e-9, atol=1e-9 * np.abs(there).max())
            np.testing.assert_allclose(column.std, there.std() or 1, rtol=1e-6)


def test_the_most_frequent_categories_are_kept() -> None:
    codes = np.array([[0], [2], [2], [1], [1], [1], [np.nan]], dtype=np.float32)
    kept = measured(codes, np.arange(7), [Column("a", "categorical", ("x", "y", "z", "never"))], 2)[0]
    assert kept == Column("a", "categorical", ("y", "z"), missing=True)


# kinds


def test_a_column_is_what_the_command_says(place: Path) -> None:
    columns = of_table(
        zip=lambda i: 100 + i % 7, flag=lambda i: i % 2, year=lambda i: 2000 + i % 9, code=lambda i: i % 5
    )
    table(columns, name="t.csv")(place)
    assert set(kinds(data_of(T)).values()) == {"numeric", "categorical"}
    days = table(columns | {"year": lambda i: f"20{10 + i % 9}-01-31"}, name="days.csv")
    days(place)
    words = "data.categorical=[zip,year] data.boolean=[] data.numeric=[code]"
    found = kinds(data_of(f"{TABLE} data.path=days.csv {words}"))
    assert found == {"size": "numeric", "colour": "categorical", "price": "numeric", "zip": "categorical",
                     "flag": "numeric", "year": "categorical", "code": "numeric"}  # fmt: skip
    data = data_of(f"{TABLE} data.path=days.csv data.categorical=[zip]")
    assert next(c for c in data.spec.columns if c.name == "zip").categories == tuple(str(100 + i) for i in range(7))


def test_few_dates_and_booleans_are_what_the_command_says(place: Path) -> None:
    """Half of the cells are of another kind, which alone would make categories of them."""
    columns = of_table(
        day=lambda i: f"2026-01-{1 + i % 28:02}" if i % 2 else "x", flag=lambda i: ("yes", "no", "x")[i % 3]
    )
    table(columns)(place)
    assert kinds(data_of(T))["day"] == "categorical"
    data = data_of(f"{T} data.date=[day] data.boolean=[flag] data.missing=[x]")
    assert {"day (days)": "date", "flag": "boolean"}.items() <= kinds(data).items()
    index = list(kinds(data)).index("day (days)")
    days = torch.cat([rows[:][0][:, index] for rows in data.rows.values()]).double() + data.spec.columns[index].offset
    assert days.isnan().sum() == 30
    assert days.nan_to_num(20_500).min() == 20_455  # 2026-01-02


def test_the_latest_rows_are_tested(place: Path) -> None:
    for zone in ("", "Z", "+02:00"):
        table(of_table(at=lambda i, zone=zone: f"2026-01-{1 + i * 7 % 28:02}T12:00:00{zone}"))(place)
        data = data_of(f"{T} data.time=at")
        days = {name: [i * 7 % 28 for i in ids.tolist()] for name, ids in data.ids.items()}
        assert max(days["train"]) < min(days["val"])
        assert max(days["val"]) < min(days["test"])
        assert "at" not in kinds(data)


def test_a_column_says_the_split(place: Path) -> None:
    parts = ("train", "train", "val", "train", "test")
    table(of_table(part=lambda i: parts[i % 5]))(place)
    data = data_of(f"{T} data.split=part")
    assert {name: {parts[i % 5] for i in ids.tolist()} for name, ids in data.ids.items()} == {n: {n} for n in data.ids}
    assert data.num_rows == {"train": 36, "val": 12, "test": 12}


def test_large_whole_numbers_stay_apart_and_are_the_same_in_every_form(place: Path) -> None:
    columns = of_table(account=lambda i: 2**60 + i % 4, small=lambda i: i % 3)
    expected = tuple(str(2**60 + i) for i in range(4))
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        table(columns, name=name)(place)
        data = data_of(f"{TABLE} data.path={name} data.categorical=[account,small]")
        found = {column.name: column.categories for column in data.spec.columns}
        assert (found["account"], found["small"]) == (expected, ("0", "1", "2"))


ID_COLUMNS: list[tuple[str, Columns, bool]] = [
    ("named, one row deleted", {"id": lambda i: i + (i > 30)}, True),
    ("the index of a data frame", {"__index_level_0__": lambda i: i}, True),
    ("shuffled ranks", {"rank": lambda i: (k := i * 37 % 60) + (k > 30)}, False),
    ("sorted years", {"year": lambda i: 1960 + i}, False),
    ("times", {"time": lambda i: 2 * i + i % 2}, False),
    ("drawn numbers, named", {"customer_id": lambda i: i * 7919 % 100_003}, True),
    ("drawn numbers, named in one word", {"PassengerId": lambda i: i * 7919 % 100_003}, True),
    ("drawn numbers", {"income": lambda i: i * 7919 % 100_003}, False),
    ("a name that ends alike", {"humid": lambda i: i * 7919 % 100_003}, False),
    ("an id that comes again", {"customer_id": lambda i: i // 2 * 7919 % 100_003}, False),
    ("sorted by a measurement", {"price": lambda i: 100 + 5 * i}, False),
    ("not whole", {"n": lambda i: i + 0.5}, False),
]


@pytest.mark.parametrize(("columns", "is_id"), [pytest.param(*case, id=name) for name, *case in ID_COLUMNS])
def test_a_column_that_names_rows_is_left_out_and_a_measurement_stays(
    columns: Columns, is_id: bool, place: Path
) -> None:
    table(of_table(**{"price": None, **columns}))(place)
    (name,) = columns
    data = data_of(T)
    counts_rows = name in ("rank", "year", "time")
    assert counts_rows == any(f"column '{name}' counts the rows" in text for text in data.findings)
    assert (name not in kinds(data)) == is_id
    assert any(f"column '{name}'" in text and f"data.numeric=[{name}]" in text for text in data.findings) == is_id
    assert name in kinds(data_of(f"{T} data.numeric=[{name}]"))


# the target


def test_balanced_draws_each_class_equally_often(place: Path) -> None:
    table(of_table(good=lambda i: "no" if i % 10 == 0 else "yes"), 300)(place)
    data = data_of(f"{T} data.balanced=true data.duplicates=keep")
    data.setup()
    drawn = Counter[int]()
    for epoch in range(10):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for _, y in loader:
            drawn.update(y.tolist())
    assert sum(drawn.values()) == 10 * data.num_rows["train"]
    assert drawn[0] / sum(drawn.values()) == pytest.approx(0.5, abs=0.03)  # three deviations of 2,100 draws
    plain = data_of(f"{T} data.duplicates=keep")
    assert torch.cat([y for _, y in plain.train_dataloader()]).bincount().tolist() == [21, 189]


def test_balanced_needs_classes(place: Path) -> None:
    table(of_table(good=lambda i: i / 7))(place)
    with pytest.raises(UserError, match=r"data\.balanced=true .* 'good' is a number; leave it out"):
        data_of(f"{T} data.balanced=true")


def test_a_run_is_scored_on_rows_without_the_columns_that_split_its_own(place: Path) -> None:
    table(of_table(who=lambda i: f"c{i % 20}", part=lambda i: ("train", "train", "val", "test")[i % 4]))(place)
    table(of_table(), 20, "new.csv", first=500)(place)
    for words in ("data.group=who data.drop=[part]", "data.split=part data.drop=[who]", "data.time=who"):
        if "time" in words:
            table(of_table(who=lambda i: i))(place)
        spec = data_of(f"{T} {words}").spec
        words = " ".join(word for word in words.split() if "drop" not in word)
        data = data_of(f"{TABLE} data.path=new.csv {words}", fitted=spec)
        assert data.num_rows == {"test": 20}


def good(i: int) -> str:
    return of_table()["good"](i)


LEAKS: list[tuple[str, Columns, int, str, bool]] = [
    ("classes, 120 rows", {"same": lambda i: "AB"[good(i) == "yes"]}, 120, "", True),
    ("classes, 40 rows", {"same": lambda i: "AB"[good(i) == "yes"]}, 40, "", True),
    ("classes as numbers", {"same": lambda i: 3 + 2 * (good(i) == "yes")}, 120, "", True),
    ("all but a few rows", {"same": lambda i: "AB"[(good(i) == "yes") != (i % 40 == 7)]}, 120, "", False),
    ("one row of a class", {"good": lambda i: "ab"[i in (3, 50, 70)], "same": lambda i: "xy"[i in (3, 50, 70)]}, 120,
     "data.stratify=false data.duplicates=keep", False),
    ("numbers", {"good": lambda i: i * i % 97 / 3, "same": lambda i: 32 + 1.8 * (i * i % 97)}, 60, "", True),
    ("numbers but for noise", {"good": lambda i: i * i % 97 / 3, "same": lambda i: i * i % 97 + i % 7 / 100}, 60, "",
     False),
    ("numbers but for one far away", {"good": lambda i: 1e9 if i == 3 else i * i % 97 / 3,
     "same": lambda i: 1e9 if i == 3 else i * 31 % 89 / 2}, 60, "", False),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "num", "words", "is_told"), [pytest.param(*c, id=name) for name, *c in LEAKS])
def test_a_column_that_is_the_target_is_refused_in_a_small_table_too(
    columns: Columns, num: int, words: str, is_told: bool, place: Path
) -> None:
    table(of_table(**columns), num)(place)
    if is_told:
        with pytest.raises(UserError, match=r"column 'same' is the target in other words; .*data\.drop=\[same\]"):
            data_of(f"{T} {words}")
    else:
        assert "same" in kinds(data_of(f"{T} {words}"))

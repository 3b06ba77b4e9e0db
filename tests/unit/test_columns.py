"""What columns.py makes of cells, and splits.py of rows, for whatever they are."""

from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from research.data.columns import MAX_DISTINCT, Scan, as_text, encode, plain
from research.data.spec import Column
from research.data.splits import SPLITS, Listing, Rules, assign
from research.engine.errors import UserError

MISSING = pa.array(["", "NA"])
EPOCH = datetime(1970, 1, 1)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
TEXTS = st.builds(lambda word: f"~{word.strip()}~", WORDS)  # no number, date, boolean, or missing cell
VALUES: dict[str, Any] = {
    "numeric": st.floats(-1e30, 1e30, allow_subnormal=False) | st.integers(-(2**53), 2**53),
    "boolean": st.booleans(),
    "date": st.datetimes(datetime(1600, 1, 1), datetime(2200, 1, 1)).map(lambda day: day.replace(microsecond=0)),
    "categorical": TEXTS,
}
KINDS = pytest.mark.parametrize("kind", VALUES)
fast = settings(max_examples=40, deadline=None)


def holes(kind: str) -> Any:
    """Cells of a kind, at least one of them there."""
    cells = st.lists(st.none() | VALUES[kind], max_size=20)
    return st.tuples(cells, VALUES[kind], cells).map(lambda parts: [*parts[0], parts[1], *parts[2]])


def written(cell: Any) -> str:
    """As a CSV holds it."""
    return "" if cell is None else cell.isoformat(" ") if isinstance(cell, datetime) else str(cell)


def native(kind: str, cells: list[Any]) -> pa.Array:
    kinds = {"numeric": pa.float64(), "boolean": pa.bool_(), "date": pa.timestamp("ms"), "categorical": pa.string()}
    return plain(pa.array(cells, kinds[kind]), "a", MISSING)


def texts(cells: list[Any]) -> pa.Array:
    return plain(pa.array([written(cell) for cell in cells], pa.string()), "a", MISSING)


def scanned(*parts: pa.Array) -> Scan:
    scan = Scan("a")
    for part in parts:
        scan.add(part)
    return scan


def expected(kind: str, cell: Any, categories: tuple[str, ...]) -> float:
    if cell is None:
        return np.nan
    if kind == "date":
        return (cell - EPOCH).total_seconds() / 86_400
    return categories.index(cell) if kind == "categorical" else float(cell)


def column(kind: Any, cells: list[Any]) -> Column:
    seen = {cell for cell in cells if cell is not None}
    return Column("a", kind, tuple(sorted(seen)) if kind == "categorical" else ())


@pytest.mark.parametrize(
    ("text", "cell", "category"),
    [
        ("700.0", 700.0, "700"),
        ("-3", -3.0, "-3"),
        ("False", False, "false"),
        ("TRUE", True, "true"),
        ("3.5", 3.5, "3.5"),
    ],
)
def test_a_category_is_one_whatever_file_it_is_from(text: str, cell: Any, category: str) -> None:
    assert as_text(pa.array([text])).to_pylist() == as_text(pa.array([cell])).to_pylist() == [category]


@pytest.mark.parametrize("code", ["007", "007.0", "1.0.0", "1e3", "1.50", "Truely", ".0"])
def test_a_code_stays_as_it_is(code: str) -> None:
    assert as_text(pa.array([code])).to_pylist() == [code]


@KINDS
@given(data=st.data())
@fast
def test_the_kind_of_a_column_is_that_of_its_cells(kind: str, data: Any) -> None:
    cells = data.draw(holes(kind))
    for made in (native(kind, cells), texts(cells)):
        scan = scanned(made)
        assert scan.kind == kind
        assert (scan.num_rows, scan.num_missing) == (len(cells), cells.count(None))
        assert kind not in scan.first_not


@KINDS
@given(data=st.data())
@fast
def test_cells_are_given_back_from_their_own_types_and_from_csv_alike(kind: str, data: Any) -> None:
    cells = data.draw(holes(kind))
    made = column(kind, cells)
    right = np.array([expected(kind, cell, made.categories) for cell in cells])
    for array in (native(kind, cells), texts(cells)):
        x, wrong = encode([made], {"a": array})
        assert wrong == []
        np.testing.assert_allclose(x[:, 0], right, rtol=1e-15, atol=1e-9)


@KINDS
@given(data=st.data())
@fast
def test_a_column_is_the_same_in_one_batch_and_in_many(kind: str, data: Any) -> None:
    cells = data.draw(holes(kind))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(cells)), max_size=3)))
    parts = [part for start, end in zip([0, *cuts], [*cuts, len(cells)], strict=True) if (part := cells[start:end])]
    for make in (lambda part: native(kind, part), texts):
        whole, many = scanned(make(cells)), scanned(*map(make, parts))
        assert many == whole
        assert pa.concat_arrays([as_text(make(part)) for part in parts]).equals(as_text(make(cells)))


@given(seen=st.sets(TEXTS, min_size=1, max_size=5), cells=st.lists(st.none() | TEXTS, min_size=1, max_size=20))
@fast
def test_a_category_that_was_not_seen_is_unknown_and_no_mistake(seen: set[str], cells: list[str | None]) -> None:
    made = Column("a", "categorical", tuple(sorted(seen)))
    x, wrong = encode([made], {"a": texts(cells)})
    right = [np.nan if c is None else made.categories.index(c) if c in seen else -1 for c in cells]
    assert_array_equal(x[:, 0], right)
    assert wrong == []


@given(cells=st.lists(VALUES["numeric"], min_size=20, max_size=40), bad=TEXTS | st.just("inf"), data=st.data())
@fast
def test_one_strange_cell_among_numbers_is_found(cells: list[float], bad: str, data: Any) -> None:
    row = data.draw(st.integers(0, len(cells) - 1))
    array = texts([*cells[:row], bad, *cells[row:]])
    scan = scanned(array)
    assert scan.kind == "numeric"
    assert scan.first_not.get("numeric") == (None if bad == "inf" else (row, bad))
    x, wrong = encode([Column("a", "numeric")], {"a": array})
    assert [place for place, _ in wrong] == [row]
    assert repr(bad) in wrong[0][1]
    assert_array_equal(np.delete(x[:, 0], row), np.array(cells, dtype=float))


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-01-31T12:00:00Z", 12),
        ("2026-01-31T12:00:00+02:00", 10),
        ("2026-01-31 12:00-0530", 17.5),
        ("2026-01-31 01:00+02", -1),
        ("2026-01-31 12:00:00.5", 12 + 0.5 / 3600),
        ("2026-01-31T12:00:00.250999Z", 12 + 0.25 / 3600),
        ("2026-01-31", 0),
    ],
)
def test_a_time_may_have_an_offset_and_parts_of_a_second(text: str, hour: float) -> None:
    array = texts([text, "2026-01-31"])  # of two forms in one column
    assert scanned(array).kind == "date"
    x, wrong = encode([Column("a", "date")], {"a": array})
    assert wrong == []
    assert x[0, 0] == pytest.approx((datetime(2026, 1, 31) - EPOCH).days + hour / 24, abs=1e-9)


def test_a_time_of_utc_is_the_same_from_its_own_type() -> None:
    zone = pa.array([datetime(2026, 1, 31, 10)], pa.timestamp("us", "Europe/Berlin"))
    of_text, own = (encode([Column("a", "date")], {"a": cells})[0] for cells in (
        texts(["2026-01-31T11:00:00+01:00"]), plain(zone, "a", MISSING)))  # fmt: skip
    assert of_text == own


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(25, 2)])
def test_whole_numbers_that_a_double_does_not_hold_are_kept_to_the_last_digit(kind: pa.DataType) -> None:
    cells = [2**53, 2**53 + 1, 2**62 + 1, 7, None]
    made, of_text = plain(pa.array(cells, kind), "a", MISSING), texts(cells)
    assert as_text(made).to_pylist() == as_text(of_text).to_pylist() == [str(c) if c else None for c in cells]
    assert scanned(made).counts == scanned(plain(pa.array(cells[:4], kind), "a", MISSING)).counts
    assert scanned(made).kind == scanned(of_text).kind == "numeric"


DAYS = [
    "2026-01-31T12:00:00+24:00",
    "2026-01-31Z",
    "2026-02-29",
    "2026-02-30",
    "2026-04-31",
    "2026-13-01",
    "31.01.2026",
    "2026-01-01 25:00",
]


@pytest.mark.parametrize("day", DAYS)
def test_a_day_that_there_is_not_is_a_mistake(day: str) -> None:
    x, wrong = encode([Column("a", "date")], {"a": texts(["2026-01-31", day])})
    assert [row for row, _ in wrong] == [1]
    assert day in wrong[0][1]
    assert x[0, 0] == (datetime(2026, 1, 31) - EPOCH).days


@pytest.mark.parametrize("size", ["1e39", "-1e39", "1e400"])
def test_a_number_that_float32_does_not_hold_is_a_mistake(size: str) -> None:
    _, wrong = encode([Column("a", "numeric")], {"a": texts(["1", size])})
    assert [row for row, _ in wrong] == [1]
    assert size in wrong[0][1]


@pytest.mark.parametrize("cells", [[None, None], []])
def test_a_column_of_nothing_is_no_number(cells: list[None]) -> None:
    scan = scanned(texts(cells), native("numeric", cells))
    assert (scan.kind, scan.num_there, scan.distinct) == ("categorical", 0, 0)


def test_a_column_of_very_many_texts_is_not_counted_further() -> None:
    scan = scanned(texts([f"n{i}" for i in range(MAX_DISTINCT + 1)]))
    assert scan.counts is None
    assert scan.distinct == MAX_DISTINCT + 1


# splits


@st.composite
def listings(draw: Any, classes: bool, **marks: bool) -> Listing:
    """Of enough rows and groups for every split, with marks where they are asked for."""
    num = draw(st.integers(60, 150))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    y = random.permutation(np.arange(num) % 3) if classes else random.random((num, 1))
    made: dict[str, Any] = {"group": random.permutation(np.arange(num) % 20).astype(float)}
    made["time"] = random.integers(0, 50, num)
    made["given"] = np.where(random.random(num) < 0.2, 2, 0).astype(np.int8)
    return Listing(
        torch.from_numpy(y), ("a", "b", "c") if classes else (), **{name: made[name] for name in marks if marks[name]}
    )


def rules(seed: int = 0, **settings: Any) -> Rules:
    return Rules([0.7, 0.15, 0.15], seed, **settings)


def covers(ids: dict[str, torch.Tensor], num_rows: int) -> None:
    assert list(ids) == list(SPLITS)
    assert all(len(part) for part in ids.values())
    assert all(torch.equal(part, part.sort().values) for part in ids.values())
    assert torch.equal(torch.cat(list(ids.values())).sort().values, torch.arange(num_rows))


@pytest.mark.parametrize("mark", ["", "group", "time", "given"])
@given(data=st.data(), classes=st.booleans(), stratify=st.booleans(), seed=st.integers(0, 99))
@fast
def test_splits_are_disjoint_and_cover_all_rows(mark: str, data: Any, classes: bool, stratify: bool, seed: int) -> None:
    listing = data.draw(listings(classes, **({mark: True} if mark else {})))
    ids = assign(listing, rules(seed, stratify=stratify))
    covers(ids, len(listing.y))
    again = assign(listing, rules(seed, stratify=stratify))
    assert all(torch.equal(ids[name], again[name]) for name in SPLITS)
    if listing.group is not None:
        sides = [set(listing.group[part.numpy()]) for part in ids.values()]
        assert sum(map(len, sides)) == len(set.union(*sides))
    if listing.time is not None:
        train, val, test = (listing.time[ids[name].numpy()] for name in SPLITS)
        assert train.max() < val.min() <= val.max() < test.min()
    if listing.given is not None:
        assert_array_equal(ids["test"], np.flatnonzero(listing.given == 2))


@given(data=st.data(), classes=st.booleans(), group=st.booleans(), folds=st.integers(2, 5), seed=st.integers(0, 99))
@fast
def test_folds_test_every_row_once(data: Any, classes: bool, group: bool, folds: int, seed: int) -> None:
    listing = data.draw(listings(classes, group=group))
    parts = [assign(listing, rules(seed, folds=folds, fold=fold)) for fold in range(folds)]
    for ids in parts:
        covers(ids, len(listing.y))
    tested = torch.cat([ids["test"] for ids in parts])
    assert torch.equal(tested.sort().values, torch.arange(len(listing.y)))
    if listing.group is not None:
        assert sum(len(set(listing.group[ids["test"].numpy()])) for ids in parts) == len(set(listing.group))
    with pytest.raises(UserError, match=rf"data\.fold={folds}: .* 0 to {folds - 1}"):
        assign(listing, rules(seed, folds=folds, fold=folds))


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("fractions", [[0.2, 0.2, 0.6], [0.7, 0.15, 0.15], [0.1, 0.45, 0.45], [0.9, 0.05, 0.05]])
def test_groups_are_split_by_the_fractions(fractions: list[float], classes: bool) -> None:
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(200), random.integers(1, 9, 200))
    y = torch.from_numpy(random.integers(0, 3, len(group)) if classes else random.random((len(group), 1)))
    for seed in range(3):
        ids = assign(Listing(y, ("a", "b", "c") if classes else (), group=group), Rules(fractions, seed))
        covers(ids, len(y))
        assert [len(part) / len(y) for part in ids.values()] == pytest.approx(fractions, abs=0.02)


def test_three_groups_are_enough_and_two_are_not() -> None:
    group = np.repeat([0, 1, 2], [50, 3, 7])
    for classes in ((), ("a", "b")):
        y = torch.arange(60) % 2 if classes else torch.rand(60, 1)
        ids = assign(Listing(y, classes, group=group), rules())
        assert {len(part) for part in ids.values()} == {50, 3, 7}
        with pytest.raises(UserError, match=r"2 groups are too few for data\.fractions: train, val and test need"):
            assign(Listing(y, classes, group=group > 0), rules())


def test_a_class_with_fewer_rows_than_parts_is_split_by_group() -> None:
    y = torch.tensor([0, 1] * 50 + [2, 2])
    ids = assign(Listing(y, ("a", "b", "c"), group=np.arange(102) // 2), rules())
    covers(ids, 102)


@given(classes=st.integers(2, 4), num=st.integers(40, 120), seed=st.integers(0, 99))
@fast
def test_stratified_splits_keep_the_shares_of_classes(classes: int, num: int, seed: int) -> None:
    y = torch.arange(num) % classes
    ids = assign(Listing(y, tuple("abcd"[:classes])), rules(seed))
    for part in ids.values():
        counts = torch.bincount(y[part], minlength=classes)
        assert counts.max() - counts.min() <= 2

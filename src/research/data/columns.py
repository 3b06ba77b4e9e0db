"""Columns of a table: what each holds, found over the whole file, and its cells as numbers.

A cell becomes a float: a number less the offset of its column, a boolean 0 or 1, a category its code; a date becomes
several (`dates.py`). NaN stands for what is missing, -1 for a category that is not known.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pandas.core.util.hashing import hash_array

from research.data import dates
from research.data.forms import Form, Forms
from research.data.spec import Column
from research.engine.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at run time, so no type checker knows them
MAX_DISTINCT = 10_000  # texts of a column that are counted
NUM_EXAMPLES = 3  # of what is told
MOSTLY = 0.9  # of the cells: from there on the others are taken for mistakes
TRUE, FALSE = ["true", "yes", "t", "y"], ["false", "no", "f", "n"]
DAY_S = 86_400
LARGEST = float(np.finfo(np.float32).max)  # that the network can be given
NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|Inf|infinity|Infinity|INF)$"
WHOLE = r"^([+-]?(?:0|[1-9]\d*))\.0+$"
ZONE = r"(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)"  # without one, a time is taken as it is
TIME = rf"[ T]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?{ZONE}?"
DATE = rf"^\d{{4}}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])({TIME})?$"
EXACT = 2.0**53  # up to here a double holds every whole number
HALF = 0.5  # of the cells: fewer that are numbers make no column of numbers with marks for what is missing
MANY_POINTS = 1000  # that are not between thousands: no more are counted
MANY = 20  # different numbers, from which on they measure
FAR = 100  # times as far from zero as numbers are apart: float32 would lose what they differ in


@dataclass
class Scan:
    """What was seen of a column so far. `first_other` is the first cell that is not of the kind most others are."""

    name: str
    num_rows: int = 0
    num_missing: int = 0
    num_of: Counter[str] = field(default_factory=Counter)  # cells that read as a kind
    first_not: dict[str, tuple[int, str]] = field(default_factory=dict)  # the first cell that does not: row, text
    counts: Counter[str] | None = field(default_factory=Counter)  # of each text; None when there are too many
    first_missing: int | None = None  # its row
    first_endless: tuple[int, str] | None = None  # of a number too large for float32: row, text
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True  # whether all numbers are
    ascending: bool = True  # whether each number is larger than the one before
    last: float = -np.inf
    forms: Forms = field(default_factory=Forms)  # of the other cells
    num_pointed: int = 0  # numbers with a point in texts
    num_by_thousands: int = 0  # of which the points may be between thousands
    has_time: bool = False  # of dates
    form: Form = field(default_factory=Form)  # by which the cells are read that are added

    def add(self, column: pa.Array) -> None:
        """Takes in the next cells, as `plain` gives them."""
        if self.form:
            column = self._read(column)
        there = column.drop_null()
        self.num_missing += len(column) - len(there)
        if self.first_missing is None and len(there) < len(column):
            self.first_missing = self.num_rows + int(np.flatnonzero(_numpy(pc.is_null(column)))[0])
        of_kind = dict(_kinds(there))
        counts = {kind: pc.sum(fits).as_py() or 0 for kind, fits in of_kind.items()}
        for kind, count in counts.items():
            self.num_of[kind] += count
            if kind not in self.first_not and count < len(there):
                at = np.flatnonzero(~_numpy(pc.fill_null(_fits_at(column, kind), True)))[0]
                self.first_not[kind] = self.num_rows + int(at), str(column[int(at)].as_py())
        if pa.types.is_string(there.type) and sum(counts.values()) < len(there):
            known = pc.or_(pc.or_(of_kind["boolean"], of_kind["numeric"]), of_kind["date"])
            self.forms.add(there.filter(pc.invert(known)))
        if counts["date"]:
            self._add_dates(there.filter(of_kind["date"]))
        if counts["numeric"] and pa.types.is_string(there.type):
            self._add_points(there)
        if len(numbers := _numbers(there)):
            if self.first_endless is None and np.abs(numbers).max() > LARGEST:
                row = int(np.flatnonzero(np.abs(_values(column, "numeric", ends=False)[0]) > LARGEST)[0])
                self.first_endless = self.num_rows + row, str(column[row].as_py())
            self.low, self.high = min(self.low, numbers.min()), max(self.high, numbers.max())
            self.whole = self.whole and bool((numbers == np.floor(numbers)).all())
            self.ascending = self.ascending and bool((np.diff(numbers, prepend=self.last) > 0).all())
            self.last = float(numbers[-1])
        if self.counts is not None:
            for value in pc.value_counts(as_text(there)):
                self.counts[value["values"].as_py()] += value["counts"].as_py()
            if len(self.counts) > MAX_DISTINCT:
                self.counts = None
        self.num_rows += len(column)

    @property
    def num_there(self) -> int:
        return self.num_rows - self.num_missing

    @property
    def num_numbers(self) -> int:
        """Cells that are numbers, plain or in some form."""
        return self.num_of["numeric"] + self.forms.num_numbers

    @property
    def distinct(self) -> int:
        return MAX_DISTINCT + 1 if self.counts is None else len(self.counts)

    def _add_points(self, there: pa.Array) -> None:
        if self.num_pointed - self.num_by_thousands > MANY_POINTS:  # they are what they seem
            return
        pointed = there.filter(pc.match_substring_regex(there, r"^[+-]?\d+\.\d+$"))
        self.num_pointed += len(pointed)
        self.num_by_thousands += pc.sum(pc.match_substring_regex(pointed, r"^[+-]?\d{1,3}\.\d{3}$")).as_py() or 0

    def _add_dates(self, dates: pa.Array) -> None:
        if pa.types.is_string(dates.type):
            self.has_time |= bool(pc.any(pc.match_substring_regex(dates, f"{TIME}$")).as_py())
            ends = pc.min_max(dates)  # which are in the order of time
            dates = pa.array([end for end in ends.as_py().values() if end], pa.string())
        else:
            self.has_time |= bool(pc.any(pc.not_equal(pc.floor_temporal(dates, unit="day"), dates)).as_py())
        days = _values(dates, "date")[0]
        if len(days := days[~np.isnan(days)]):
            self.low, self.high = min(self.low, days.min()), max(self.high, days.max())

    def _read(self, column: pa.Array) -> pa.Array:
        values = self.form.read(column)
        wrong = _numpy(pc.and_(pc.is_null(values), pc.is_valid(column)))
        kind = "date" if self.form.date else "numeric"
        if wrong.any() and kind not in self.first_not:
            at = int(np.flatnonzero(wrong)[0])
            self.first_not[kind] = self.num_rows + at, str(column[at].as_py())
        return values

    @property
    def kind(self) -> str:
        """The kind that all cells are of, or nearly all; `categorical` when there is none."""
        dated = self.forms.date(None)[1]
        more = {"numeric": self.forms.num_numbers if self.forms.number("") else 0, "date": dated}
        for kind in ("boolean", "numeric", "date"):
            if self.num_there and self.num_of[kind] + more.get(kind, 0) >= MOSTLY * self.num_there:
                return kind
        return "categorical"

    def written(self, kind: str, decimal: str, day_first: bool | None) -> Form:
        """How the cells are written, as far as it is not plain.

        Args:
            kind: of the column.
            decimal: the mark of the file's numbers, empty where it is not known.
        """
        if kind == "date":
            return self.forms.date(day_first)[0] or Form()
        if kind != "numeric":
            return Form()
        if self.num_pointed - self.num_by_thousands > self.forms.num_commas:
            return Form()  # a comma is the mistake then
        if self.forms.num_numbers:
            return self.forms.number(decimal) or Form()
        by_thousands = self.num_pointed and self.num_pointed == self.num_by_thousands
        return Form(",") if decimal == "," and by_thousands else Form()

    @property
    def marks(self) -> list[str]:
        """Texts among numbers that seem to stand for what is missing; most frequent first."""
        if self.counts is None or self.kind != "categorical" or self.num_numbers < HALF * self.num_there:
            return []
        marks = [(text, num) for text, num in self.counts.most_common() if not re.search(r"\d", text)]
        mostly = self.num_numbers + sum(num for _, num in marks) >= MOSTLY * self.num_there
        return [text for text, _ in marks] if mostly and self.distinct - len(marks) > MANY else []

    @property
    def offset(self) -> float:
        """What to take off the numbers so that float32 holds what they differ in; a whole number, mostly 0."""
        far = max(abs(self.low), abs(self.high))
        is_far = np.isfinite(far) and far > FAR * (self.high - self.low) > 0
        return float(np.floor((self.low + self.high) / 2)) if is_far else 0.0


def plain(array: Any, name: str, missing: pa.Array) -> pa.Array:
    """A column as booleans, doubles, timestamps (of UTC) or trimmed texts; null where it is missing.

    Whole numbers that a double does not hold are texts, as they are in a CSV: so they stay apart as categories.

    Raises:
        UserError: it holds lists, bytes, ...
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_boolean(kind):
        return array
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = array.cast(pa.float64(), safe=False)
        if not pa.types.is_floating(kind) and (pc.max(pc.abs(values)).as_py() or 0) >= EXACT:
            return array.cast(pa.string())
        return pc.if_else(pc.is_nan(values), None, values)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("ms"), safe=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = pc.utf8_trim_whitespace(array.cast(pa.string()))
        return pc.if_else(pc.is_in(array, value_set=missing), None, array)
    raise UserError(
        f"column '{name}' holds {kind}, not numbers, texts, booleans or dates; leave it out: data.drop=[{name}]."
    )


def as_text(column: pa.Array) -> pa.Array:
    """Cells as categories, the same whatever kind of file they are from: 3.0 is "3", True is "true"; 007 stays."""
    if pa.types.is_floating(column.type):
        whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), EXACT))
        return pc.if_else(
            whole, pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string()), column.cast(pa.string())
        )
    text = pc.replace_substring_regex(column.cast(pa.string()), WHOLE, r"\1")
    lower = pc.utf8_lower(text)
    return pc.if_else(pc.is_in(lower, value_set=pa.array(["true", "false"])), lower, text)


def encode(columns: Sequence[Column], cells: dict[str, pa.Array]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Cells as floats, (B, D), and those that could not be: their row, and what is wrong in words."""
    num_rows = len(next(iter(cells.values())))
    x = np.full((num_rows, len(columns)), np.nan, dtype=np.float64)
    wrong: list[tuple[int, str]] = []
    read: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # dates, of which there are several columns
    for index, column in enumerate(columns):
        cell = cells[column.cell]
        if column.kind == "categorical":
            x[:, index] = _codes(cell, column)
            continue
        if is_new := column.cell not in read:
            read[column.cell] = _values(cell, column.kind, form=form_of(column))
        values, fits = read[column.cell]
        x[:, index] = (dates.part_of(values, column.part) if column.part else values) - column.offset
        for row in np.flatnonzero(~fits) if is_new else ():
            wrong.append((int(row), f"column '{column.cell}': {cell[int(row)].as_py()!r} is not {_needed(column)}"))
    return x, sorted(wrong)


def form_of(column: Column) -> Form:
    """How the cells of a column are written."""
    return Form(column.decimal, column.units, column.date_format)


def _needed(column: Column) -> str:
    if form := form_of(column):
        return f"as in training: {form}"
    return _A[column.kind]


class Unseen:
    """Counts the categories that training rows lack, in constant memory."""

    def __init__(self) -> None:
        self.num: Counter[str] = Counter()  # cells of each column
        self.examples: dict[str, list[str]] = {}

    def add(self, columns: Sequence[Column], x: np.ndarray, cells: dict[str, pa.Array]) -> None:
        """Takes in x (B, D) as `encode` has it, of cells."""
        for index, column in enumerate(columns):
            if column.kind != "categorical" or not (there := x[:, index] < 0).any():
                continue
            self.num[column.name] += int(there.sum())
            told = self.examples.setdefault(column.name, [])
            new = as_text(cells[column.cell]).filter(pa.array(there)).unique()[: NUM_EXAMPLES + len(told)].to_pylist()
            told += [text for text in new if text not in told][: NUM_EXAMPLES - len(told)]

    def told(self) -> list[str]:
        """A sentence a column."""
        most = {name: ["..."] if len(told) == NUM_EXAMPLES else [] for name, told in self.examples.items()}
        lists = {name: ", ".join([*told, *most[name]]) for name, told in self.examples.items()}
        return [
            f"column '{name}': {num} cell(s) have a category that the network does not know ({lists[name]})"
            for name, num in self.num.items()
        ]


_A = {"numeric": "a finite number", "boolean": "true or false", "date": "a date (2026-01-31)", "categorical": "a text"}


def _codes(cell: pa.Array, column: Column) -> np.ndarray:
    found = pc.index_in(as_text(cell), value_set=pa.array(column.categories, pa.string()))
    codes = _numpy(pc.fill_null(found, -1)).astype(np.float64)
    codes[_numpy(pc.is_null(cell))] = np.nan
    return codes


def _values(cell: pa.Array, kind: str, ends: bool = True, form: Form | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, NaN where missing; and whether each cell was missing or of the kind, and (`ends`) finite."""
    if form and pa.types.is_string(cell.type):
        read = form.read(cell)
        values, fits = _values(read, kind, ends)
        return values, fits & _numpy(pc.or_(pc.is_null(cell), pc.is_valid(read)))
    fits = _numpy(pc.fill_null(_fits_at(cell, kind), True)).copy()
    cell = pc.if_else(pa.array(fits), cell, None)
    if kind == "boolean" and pa.types.is_string(cell.type):
        cell = pc.if_else(pc.is_null(cell), None, pc.is_in(pc.utf8_lower(cell), value_set=pa.array(TRUE)))
    elif kind == "date" and pa.types.is_string(cell.type):
        text = pc.utf8_slice_codeunits(cell, 0, 10)
        day = pc.strptime(text, format="%Y-%m-%d", unit="s", error_is_null=True)
        same = pc.equal(pc.strftime(day, format="%Y-%m-%d"), text)  # the 30th of February becomes the 2nd of March
        fits &= _numpy(pc.or_kleene(pc.is_null(cell), pc.fill_null(same, False)))
        cell = _times(pc.if_else(pa.array(fits), cell, None))
    if pa.types.is_timestamp(cell.type):
        cell = pc.divide(cell.cast(pa.int64()).cast(pa.float64()), DAY_S * 1000.0)
    values = _numpy(pc.fill_null(cell.cast(pa.float64()), np.nan)).copy()
    if ends:
        fits &= ~(np.abs(values) > LARGEST)
    return values, fits


def _times(text: pa.Array) -> pa.Array:
    """Dates, with or without a time and its offset, as timestamps of UTC."""
    text = pc.if_else(pc.equal(pc.utf8_length(text), 10), pc.binary_join_element_wise(text, "00:00", " "), text)
    text = pc.replace_substring_regex(text, r"(\.\d{3})\d+", r"\1")
    bare = pc.invert(pc.match_substring_regex(text, rf":.*{ZONE}$"))
    text = pc.if_else(bare, pc.binary_join_element_wise(text, "Z", ""), text)
    return text.cast(pa.timestamp("ms", "UTC"))


def _kinds(there: pa.Array) -> Iterable[tuple[str, pa.Array]]:
    return ((kind, _fits_at(there, kind)) for kind in ("boolean", "numeric", "date"))


def _fits_at(column: pa.Array, kind: str) -> pa.Array:
    """Whether each cell is of a kind; null where it is missing."""
    own = {"boolean": pa.types.is_boolean, "numeric": pa.types.is_floating, "date": pa.types.is_timestamp}
    if not pa.types.is_string(column.type):
        same = own[kind](column.type)
        return pc.if_else(pc.is_null(column), None, pa.scalar(same, pa.bool_()))
    if kind == "boolean":
        return pc.if_else(
            pc.is_null(column), None, pc.is_in(pc.utf8_lower(column), value_set=pa.array([*TRUE, *FALSE]))
        )
    return pc.match_substring_regex(column, NUMBER if kind == "numeric" else DATE)


def _numbers(there: pa.Array) -> np.ndarray:
    if pa.types.is_floating(there.type):
        return _numpy(there)
    if not pa.types.is_string(there.type):
        return np.empty(0)
    return _numpy(there.filter(_fits_at(there, "numeric")).cast(pa.float64()))


def _numpy(array: Any) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.to_numpy(zero_copy_only=False)


def mark(key: str, name: str, cell: pa.Array, where: Callable[[int], str]) -> np.ndarray:
    """(B,) a group as a number that is its own, or a time as one that grows.

    Args:
        key: `group` or `time`.
        where: the row is, in words.

    Raises:
        UserError: a cell that is missing, or no time.
    """
    if cell.null_count:
        row = int(np.flatnonzero(_numpy(pc.is_null(cell)))[0])
        raise UserError(f"{where(row)}, column '{name}': the cell is missing; data.{key} needs one in every row.")
    if key == "group":
        return hash_array(np.array(as_text(cell).to_pylist(), dtype=object)).astype(np.float64)
    for kind in ("date", "numeric"):
        values, fits = _values(cell, kind)
        if fits.all():
            return values
        if fits.any():
            break
    row = int(np.flatnonzero(~fits)[0])
    raise UserError(
        f"{where(row)}, column '{name}': {cell[row].as_py()!r}; data.time needs dates (2026-01-31) or numbers."
    )

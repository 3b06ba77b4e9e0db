"""How people write numbers and dates: found in the cells of a column over the whole file, and read by it afterwards.

A number may have a currency before it, a unit after it, marks between its thousands, a comma for its point, and
brackets for its sign. A date has one format, as `strftime` has it.
"""

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from pandas.tseries.api import guess_datetime_format

pc: Any = pyarrow.compute
SPACES = " \u00a0\u2009\u202f"  # that people and programs put between thousands
MINUS = "\u2212\u2013-"  # the sign, a dash, the hyphen
GAPS = SPACES + "'\u2019"
CURRENCY = r"(?:[A-Z]{2,3}\s?)?[$€£¥₹₽₩₺]|[A-Z]{3}\s"
UNIT = r"[%‰°µ]?[A-Za-zÀ-ÿ$€£¥₹₽₩₺]{0,8}(?:[/·.^][A-Za-zÀ-ÿ]{1,4})?[²³]?"
DIGITS = rf"[\d.,{GAPS}]*\d[.,]?(?:[eE][+-]?\d+)?|inf"
CELL = (
    rf"^(?P<open>\(?)\s*(?P<sign>[+{MINUS}]?)\s*(?P<prefix>(?:{CURRENCY})?)\s*(?P<sign2>[+{MINUS}]?)"
    rf"(?P<digits>{DIGITS})\s*(?P<suffix>{UNIT})\s*(?P<close>\)?)$"
)
# What the digits say of their marks, each kind of evidence with its pattern; the first that fits counts.
MARKS = {
    "plain": r"^\d+\.?\d*([eE][+-]?\d+)?$|^\.\d+$|^inf$",
    "either": r"^[1-9]\d{0,2},\d{3}$",  # 1,234: a thousand, or 1 and a bit
    "comma thousands": r"^[1-9]\d{0,2}(,\d{2,3})*,\d{3}(\.\d*)?$",
    "comma decimal": r"^\d*,\d+([eE][+-]?\d+)?$",
    "point thousands": r"^[1-9]\d{0,2}(\.\d{3}){2,}$|^[1-9]\d{0,2}(\.\d{3})+,\d+$",
    "space thousands": rf"^[1-9]\d{{0,2}}([{GAPS}]\d{{3}})+(\.\d+)?$",
    "space thousands, comma": rf"^[1-9]\d{{0,2}}([{GAPS}]\d{{3}})+,\d+$",
}
COMMA = {"comma decimal", "point thousands", "space thousands, comma"}  # that prove a comma for the point
POINT = {"comma thousands"}
THOUSAND = r"^\d{1,3}(\.\d{3})+(,|$)"  # where a comma is the point, all that a point may be
MAX_UNITS = 1000
ABOUT = "<>\u2264\u2265~\u2248\u00b1"
BOUND = rf"^[{ABOUT}]=?\s*[{MINUS}]?[\d.,]*\d|\d\s*\+$"  # `<5`, `~3`, `90+`: no number, and no category
WEEKDAY = r"\b(Mon|Tues?|Wed|Thu(?:rs)?|Fri|Sat|Sun)(day|nesday|rsday|urday|sday)?\b"

_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%Y%m%d")
_ORDER = (("%m", "%d"), ("%d", "%m"))
_EITHER = tuple(
    f"{first}{mark}{second}{mark}{year}" for mark, year in product("/-", ("%Y", "%y")) for first, second in _ORDER
)
_NAMED = tuple(
    form.replace("%b", month)
    for month in ("%b", "%B")
    for form in ("%b %d %Y", "%b %d, %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %b, %Y", "%Y-%b-%d", "%d/%b/%Y")
)
_MONTHS = ("%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%y", "%b-%Y", "%Y %b")
_TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I %p", "%I:%M%p")
FORMATS = (
    *(f"{day}{time}" for day, time in product((*_DAYS, *_EITHER, *_NAMED), ("", *(f" {time}" for time in _TIMES)))),
    *_MONTHS,
    *_TIMES,
)
SAMPLE = 30  # cells by which formats are chosen that are then counted
# What may be one or the other: few letters around digits.
LIKE_NUMBER = rf"^\D{{0,9}}\d[\d.,{GAPS}eE+-]*\D{{0,14}}$"
LIKE_DATE = r"^(?:[A-Za-z]{3,9}[.,]?[ -]+)*\d[\d/.: -]*(?:[A-Za-z]{3,9}[ ,.-]*)?[\d/.: ,-]*(?:[AaPp][Mm])?$"


@dataclass(frozen=True)
class Form:
    """How the cells of a column are written; plain numbers and ISO dates have none.

    Attributes:
    decimal: of numbers, `.` or `,`; empty for dates.
    units: what is before and after a number, without spaces; a cell may lack it.
    date: the format of dates; empty for numbers.
    """

    decimal: str = ""
    units: tuple[str, str] = ("", "")
    date: str = ""

    def __bool__(self) -> bool:
        return bool(self.decimal or self.date)

    def __str__(self) -> str:
        if self.date:
            return f"dates of the format {self.date}"
        told = [f"'{unit}' {place} them" for unit, place in zip(self.units, ("before", "after"), strict=True) if unit]
        told += ["a comma for the point"] if self.decimal == "," else []
        return "numbers" + (f" with {' and '.join(told)}" if told else " with marks between thousands")

    def read(self, text: pa.Array) -> pa.Array:
        """Texts (B,) as doubles or timestamps of UTC; null where a cell is not of this form."""
        return self._dates(text) if self.date else self._numbers(text)

    def _dates(self, text: pa.Array) -> pa.Array:
        return pa.array(parsed(text, self.date), pa.timestamp("ms"))

    def _numbers(self, text: pa.Array) -> pa.Array:
        parts = _parts(text)
        digits, fits = parts["digits"], pc.is_valid(parts["digits"])
        for part, unit in zip(("prefix", "suffix"), self.units, strict=True):
            fits = pc.and_(fits, pc.is_in(parts[part], value_set=pa.array({"", unit}, pa.string())))
        thousands, point = (".", ",") if self.decimal == "," else (",", ".")
        if self.decimal == ",":
            whole = pc.match_substring(digits, ".")
            fits = pc.and_(fits, pc.or_(pc.invert(whole), pc.match_substring_regex(digits, THOUSAND)))
        digits = pc.replace_substring_regex(digits, f"[{GAPS}]", "")
        digits = pc.replace_substring(pc.replace_substring(digits, thousands, ""), point, ".")
        fits = pc.and_(fits, pc.match_substring_regex(pc.fill_null(digits, ""), MARKS["plain"]))
        values = pc.if_else(pc.fill_null(fits, False), digits, None).cast(pa.float64())
        return pc.if_else(parts["negative"], pc.negate(values), values)


def _parts(text: pa.Array) -> dict[str, Any]:
    """Of texts (B,): what is before the digits, the digits, what is after them; and whether the number is negative."""
    found = pc.extract_regex(text, pattern=CELL)
    parts = {name: pc.struct_field(found, [name]) for name in ("open", "sign", "prefix", "sign2", "digits", "suffix")}
    closed = pc.struct_field(found, ["close"])
    whole = pc.equal(parts["open"], pc.if_else(pc.equal(closed, ")"), "(", ""))
    digits = pc.if_else(whole, pc.utf8_trim_whitespace(parts["digits"]), None)
    negative = pc.or_(pc.equal(parts["open"], "("), pc.is_in(parts["sign"], value_set=pa.array(list(MINUS))))
    negative = pc.or_(negative, pc.is_in(parts["sign2"], value_set=pa.array(list(MINUS))))
    trimmed = {name: pc.utf8_trim_whitespace(parts[name]) for name in ("prefix", "suffix")}
    return {**trimmed, "digits": digits, "negative": pc.fill_null(negative, False)}


def parsed(text: pa.Array, form: str) -> np.ndarray[Any, Any]:
    """Texts (B,) as dates of a format, datetime64 in milliseconds; NaT where they are not of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns of formats without a year
        dates = pd.to_datetime(pd.Series(text.to_pylist(), dtype=object), format=form, errors="coerce")
    return dates.to_numpy().astype("datetime64[ms]")


@dataclass
class Forms:
    """What was seen of cells that are no plain number, boolean or ISO date. `of_*` count cells."""

    of_marks: Counter[str] = field(default_factory=Counter)
    of_units: Counter[tuple[str, str]] = field(default_factory=Counter)
    of_dates: Counter[str] | None = None  # of each format; None before the first cell
    num_bounds: int = 0
    bound: str = ""  # one of them

    def add(self, text: pa.Array) -> None:
        """Takes in the next of those cells, none of them missing."""
        if len(text):
            self._add_dates(text)
            text = text.filter(pc.match_substring_regex(text, r"\d"))
        if len(text):
            bounds = text.filter(pc.match_substring_regex(text, BOUND))
            self.num_bounds += len(bounds)
            self.bound = self.bound or (str(bounds[0]) if len(bounds) else "")
        text = text.filter(pc.match_substring_regex(text, LIKE_NUMBER))
        if not len(text):
            return
        parts = _parts(text)
        there = pc.is_valid(parts["digits"])
        digits = pc.fill_null(parts["digits"], "")
        known = pa.array(np.zeros(len(text), dtype=bool))
        for name, pattern in MARKS.items():
            fits = pc.and_(pc.and_(there, pc.match_substring_regex(digits, pattern)), pc.invert(known))
            self.of_marks[name] += pc.sum(fits).as_py() or 0
            known = pc.or_(known, fits)
        if len(self.of_units) < MAX_UNITS:
            units = pa.StructArray.from_arrays([parts["prefix"], parts["suffix"]], ["prefix", "suffix"]).filter(known)
            keys = pc.binary_join_element_wise(units.field(0), units.field(1), "\0")
            for value in pc.value_counts(keys):
                prefix, suffix = value["values"].as_py().split("\0")
                self.of_units[prefix, suffix] += value["counts"].as_py()

    def _add_dates(self, text: pa.Array) -> None:
        if self.of_dates is None:
            some = text[:SAMPLE]
            maybe = 2 * (pc.sum(pc.match_substring_regex(some, LIKE_DATE)).as_py() or 0) >= len(some)
            forms = (*FORMATS, *_guessed(str(some[0]))) if maybe else ()
            likely = {form: int((~np.isnat(parsed(some, form))).sum()) for form in forms}
            self.of_dates = Counter({form: 0 for form, num in likely.items() if num >= len(some) / 2})
        for form in self.of_dates:
            self.of_dates[form] += int((~np.isnat(parsed(text, form))).sum())

    @property
    def num_numbers(self) -> int:
        """Cells that are numbers in some form."""
        return sum(self.of_marks.values())

    @property
    def num_commas(self) -> int:
        """Cells that prove a comma for the point."""
        return sum(self.of_marks[name] for name in COMMA)

    @property
    def units(self) -> list[tuple[str, str]]:
        """Those that are there, the most frequent first."""
        return [unit for unit, _ in self.of_units.most_common() if any(unit)]

    @property
    def decimal(self) -> str:
        """The decimal mark that the cells prove; `?` where they prove both, empty where they prove none."""
        comma, point = self.num_commas, any(self.of_marks[name] for name in POINT)
        return "?" if comma and point else "," if comma else "." if point else ""

    def number(self, decimal: str) -> Form | None:
        """The form of the numbers, None where they are of several.

        Args:
            decimal: of the file, where the cells do not prove one.
        """
        proven = self.decimal
        if proven == "?" or len(self.units) > 1:
            return None
        return Form(proven or decimal or ".", self.units[0] if self.units else ("", ""))

    def date(self, day_first: bool | None) -> tuple[Form | None, int, bool]:
        """The format most cells are of, how many are, and whether another one would do that has day and month swapped.

        Args:
            day_first: which of the two is taken; None for the month, as in the United States.
        """
        if not self.of_dates:
            return None, 0, False
        most = max(self.of_dates.values())
        best = [form for form, num in self.of_dates.items() if num == most]
        first = [form for form in best if (form.find("%d") < form.find("%m")) == bool(day_first)]
        both = any("%m" in form and swapped(form) in best for form in best)
        return Form(date=(first or best)[0]), most, both


def _guessed(text: str) -> set[str]:
    """Formats that pandas finds for a date, with its day before its month or behind it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that only one of the two is possible
        found = [guess_datetime_format(text, dayfirst=first) for first in (False, True)]
    return {re.sub(WEEKDAY, lambda day: "%A" if day[2] else "%a", form) for form in found if form}


def swapped(form: str) -> str:
    """The format with day and month in each other's place."""
    return form.replace("%d", "\0").replace("%m", "%d").replace("\0", "%m") if "%m" in form else ""

"""What the columns of a table and its target are, decided by what was seen of their cells."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from research.data.columns import MANY, MAX_DISTINCT, MOSTLY, Scan
from research.data.dates import parts_of
from research.data.file_data import classes_of
from research.data.forms import Form
from research.data.spec import Column
from research.engine.errors import UserError

MAX_CLASSES = 20  # whole numbers of more values than this are a regression
INDEX = r"__index_level_\d+__|Unnamed: \d+|"  # names that pandas gives an index without one
ID = r"(.*[_ .-])?(id|ID|Id|uuid|UUID|guid|GUID)|.*[a-z](Id|ID)"  # names of columns that name a row
SPAN = 2, 1.02  # from the least to the largest, in rows, of numbers that count them: sorted, and not
ID_LIKE = 0.5  # texts that differ in more than this share of rows are names, not categories
FEW_ROWS = 20  # of which nothing is said
MOST_TOLD = 5
Where = Callable[[int], str]  # the place of a row, in words


def target_of(scan: Scan, task: str | None, where: Where, findings: list[str]) -> tuple[str, ...]:
    """Return the classes of the target; none for a regression.

    Args:
        scan: of the target, by its form.
        task: `classification`, `regression`, or None to see it in the target.

    Raises:
        UserError: neither is to be had of it.
    """
    name = scan.name
    whole = scan.kind == "numeric" and scan.whole and scan.distinct <= min(MAX_CLASSES, scan.num_rows // 10 + 2)
    if task == "regression" or (task is None and scan.kind == "numeric" and not whole):
        _check_numbers(scan, where)
        return ()
    if scan.kind == "date":
        raise UserError(f"the target '{name}' is a date; a network predicts numbers or classes, so make it one.")
    _check_forms(scan, "numeric" if task is None else "categorical", target=True)
    if scan.kind == "numeric" and (row := scan.first_not.get("numeric")) and scan.distinct > MAX_CLASSES:
        raise UserError(f"{where(row[0])}, column '{name}': {row[1]!r} is not a number.")
    if scan.counts is None:
        raise UserError(f"the target '{name}' has more than 10,000 classes: is it an id, or a number?")
    if task is None and whole and scan.distinct > 2:
        findings.append(
            f"the {scan.distinct} whole numbers of the target '{name}' are classes; if they are counts or amounts, "
            "data.task=regression"
        )
    return classes_of(list(scan.counts), scan.num_rows, name)


def _check_numbers(scan: Scan, where: Where) -> None:
    """Raises a UserError for a target that is not all numbers, or one number."""
    name = scan.name
    _check_forms(scan, "numeric", target=True)
    if scan.kind != "numeric":
        raise UserError(f"the target '{name}' is {scan.kind}; a regression needs numbers.")
    if row := scan.first_not.get("numeric"):
        raise UserError(f"{where(row[0])}, column '{name}': {row[1]!r} is not a number.")
    if scan.first_endless is not None:
        place = where(scan.first_endless[0])
        raise UserError(f"{place}: the target '{name}' is infinite or beyond 3e38; remove the row.")
    if scan.low == scan.high:
        raise UserError(f"the target '{name}' is {scan.low:g} in all {scan.num_rows} rows: nothing to learn.")


def _check_forms(scan: Scan, kind: str, target: bool = False) -> None:
    """Raises a UserError for numbers that are written in more than one way, or with marks for what is missing."""
    name, forms = scan.name, scan.forms
    keep = "data.task=classification" if target else f"data.categorical=[{name}]"
    numbers = scan.num_numbers
    if kind == "categorical" or scan.distinct <= MANY:
        return
    if forms.num_bounds and numbers + forms.num_bounds >= MOSTLY * scan.num_there > MOSTLY * forms.num_bounds:
        raise UserError(
            f"column '{name}' holds numbers, and in {forms.num_bounds} of {scan.num_there} cells bounds: "
            f"{forms.bound!r}. Write a number in their place, list them in data.missing, leave the column out, or take "
            f"{keep}."
        )
    if marks := scan.marks:
        more = ", ..." if len(marks) > MOST_TOLD else ""
        raise UserError(
            f"column '{name}' holds numbers, and in {scan.num_there - numbers} of {scan.num_there} cells "
            f"{', '.join(map(repr, marks[:MOST_TOLD]))}{more}. If that stands for what is missing, "
            f"data.missing={_words(marks[:MOST_TOLD])}; if all are categories, {keep}."
        )
    if forms.num_numbers and forms.number("") is None and numbers >= MOSTLY * scan.num_there:
        units = [f"'{' '.join(filter(None, unit))}'" for unit in forms.units]
        what = f"with the units {', '.join(units[:5])}" if len(units) > 1 else "some with a comma and some with a point"
        fix = "write them in one" if len(units) > 1 else "take data.decimal=',' or data.decimal='.'"
        raise UserError(f"column '{name}' holds numbers {what}; {fix}, or leave it out, or take {keep}.")


def _words(texts: list[str]) -> str:
    return "[" + ",".join(text if re.fullmatch(r"[\w-]+", text) else f'"{text}"' for text in texts) + "]"


def columns_of(scans: Mapping[str, Scan], asked: Mapping[str, str], where: Where, findings: list[str]) -> list[Column]:
    """Return what the network sees of each column; without those that tell it nothing.

    Args:
        scans: of the columns, by their forms.
        asked: the kind that the user says a column is of.

    Raises:
        UserError: a column that is nearly of a kind, or none is left.
    """
    columns: list[Column] = []
    problems: list[str] = []
    for name, scan in scans.items():
        kind: Any = asked.get(name) or scan.kind
        try:
            _check_forms(scan, asked.get(name) or "numeric")
            why = _useless(scan, kind, asked.get(name))
            if not why:
                _check_cells(scan, kind, where)
                columns += _columns(scan, kind)
        except UserError as error:
            problems += error.problems
            continue
        if why:
            findings.append(f"column '{name}' {why}")
        elif note := _counting(scan, kind):
            findings.append(f"column '{name}' {note}")
    if problems:
        raise UserError(*problems)
    if not columns:
        raise UserError("no column is left to learn from: " + "; ".join(findings))
    return columns


def _columns(scan: Scan, kind: Literal["numeric", "categorical", "boolean", "date"]) -> list[Column]:
    """The columns that one of the file becomes."""
    name, form = scan.name, scan.form
    if kind == "categorical":
        if scan.counts is None:
            raise UserError(f"column '{name}' has more than 10,000 categories; leave it out: data.drop=[{name}].")
        return [Column(name, kind, tuple(sorted(scan.counts)))]
    written = {"decimal": form.decimal, "units": form.units, "date_format": form.date}
    if kind != "date":
        return [Column(name, kind, offset=scan.offset, **written)]
    found = form.date
    parts = parts_of(
        days_vary=not found or "%y" in found.lower(),
        has_week=not found or "%d" in found,
        has_time=bool(re.search("%[HI]", found)) if found else scan.has_time,
    )
    return [
        Column(
            f"{name} ({part})", kind, offset=scan.offset if part == "days" else 0.0, source=name, part=part, **written
        )
        for part in parts
    ]


def _useless(scan: Scan, kind: str, asked: str | None) -> str:
    """Why a column is left out, in words; nothing where it stays."""
    if not scan.num_there:
        return "is empty and left out"
    if scan.distinct == 1 and not scan.num_missing:
        return "has one value and is left out"
    if asked or scan.num_rows < FEW_ROWS:
        return ""
    keep = f"; data.{kind}=[{scan.name or repr('')}] keeps it"
    if kind == "categorical" and scan.distinct > min(ID_LIKE * scan.num_rows, MAX_DISTINCT):
        return f"differs from row to row, as an id or a free text does, and is left out{keep}"
    if kind == "numeric" and scan.whole and not scan.num_missing and _differs(scan):
        if re.fullmatch(INDEX, scan.name):
            return f"is the index of a data frame and is left out{keep}"
        if re.fullmatch(ID, scan.name):
            return f"is named like an id, differs from row to row, and is left out{keep}"
    return ""


def _differs(scan: Scan) -> bool:
    """Whether no number comes twice, as far as it is known: beyond 10,000 of them, if they are sorted."""
    return scan.ascending or scan.distinct == scan.num_rows or (scan.counts is None and _counts_rows(scan))


def _counting(scan: Scan, kind: str) -> str:
    """A word on numbers that may be no measurement; nothing where there is no doubt."""
    if re.fullmatch(INDEX, scan.name):
        return f"is named like the index of a data frame; if it is one, data.drop=[{scan.name or repr('')}]"
    if kind != "numeric" or scan.num_rows < FEW_ROWS or not scan.whole or scan.num_missing or not _counts_rows(scan):
        return ""
    return f"counts the rows; if it is an id and no measurement, data.drop=[{scan.name}]"


def _counts_rows(scan: Scan) -> bool:
    """Whether whole numbers go up from row to row and leave out no more than they have (of rows that were filtered),
    or are all different in any order and leave out one in fifty.

    A measurement often repeats, or leaves out far more. Of more than 10,000 different numbers that are not sorted it is
    not known whether one repeats; they count the rows where none at all is left out.
    """
    span = scan.high - scan.low + 1
    if scan.ascending:
        return span <= SPAN[0] * scan.num_rows
    if scan.counts is None:
        return span == scan.num_rows
    return scan.distinct == scan.num_rows and span <= SPAN[1] * scan.num_rows


def _check_cells(scan: Scan, kind: str, where: Where) -> None:
    """Raises a UserError for a column that is nearly all of a kind, and for numbers without end."""
    name = scan.name
    if kind != "categorical" and (first := scan.first_not.get(kind)):
        needed = f"as the others are: {scan.form}" if scan.form else kind
        fix = f"mend it, list it in data.missing, or take data.categorical=[{name}]"
        raise UserError(f"{where(first[0])}, column '{name}': {first[1]!r} is not {needed}; {fix}.")
    if kind == "numeric" and scan.first_endless is not None:
        row, text = scan.first_endless
        raise UserError(f"{where(row)}, column '{name}': {text} is not a finite number in float32; mend it.")


def decimal_of(scans: Mapping[str, Scan]) -> str:
    """Return the decimal mark that the columns of a file prove; empty where they prove none, or both."""
    proven = {scan.forms.decimal for scan in scans.values() if scan.kind == "numeric"} - {""}
    return proven.pop() if len(proven) == 1 and proven <= {",", "."} else ""


def reading(scan: Scan, form: Form, decimal: str, day_first: bool | None) -> str:
    """Return a word on how the cells of a column are read, where that is not plain.

    Args:
        scan: of the cells as they are.
        decimal: that the user gave.
        day_first: that the user gave.
    """
    text = f"column '{scan.name}' is read as {form}"
    if form.date and day_first is None and scan.forms.date(None)[2]:
        return f"{text}; every day could be the month: data.day_first=true takes the other way"
    if form.decimal and scan.forms.of_marks["either"] and not (scan.forms.decimal or decimal):
        if form.decimal == ",":
            return f"{text}, as in other columns of the file; so 1,234 is 1.234, and data.decimal=. makes it 1234"
        return f"{text}; so 1,234 is 1234, and data.decimal=',' makes it 1.234"
    return text

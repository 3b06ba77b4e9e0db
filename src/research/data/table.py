"""Tables: rows of numbers, categories, booleans and dates. N rows, D columns.

A file is read twice in constant memory: once to see what each column holds, once to write its cells as float32 to a
memory-mapped file in the cache, from which batches are gathered. Medians, scales and categories are those of the
training rows (`measure.py`); they are part of the spec, and with it of the run.
"""

import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from research.data import honesty
from research.data.base import Inputs
from research.data.batches import spread
from research.data.columns import MAX_DISTINCT, Scan, Unseen, as_text, encode, mark, plain
from research.data.file_data import FileData, classes_of, place_of
from research.data.files import batches, locate
from research.data.measure import measured
from research.data.spec import Column, Spec
from research.data.splits import SPLITS
from research.data.stored import Stored, TableRows, kept_codes
from research.engine.disk_cache import code, kept
from research.engine.errors import UserError, unknown
from research.engine.values import PositiveInt

FORMAT = 3  # of the files in the cache
MAX_CLASSES = 20  # whole numbers of more values than this are a regression
INDEX = r"__index_level_\d+__|Unnamed: \d+|"  # names that pandas gives an index without one
ID = r"(.*[_ .-])?(id|ID|Id|uuid|UUID|guid|GUID)|.*[a-z](Id|ID)"  # names of columns that name a row
SPAN = 2, 1.02  # from the least to the largest, in rows, of numbers that count them: sorted, and not
ID_LIKE = 0.5  # texts that differ in more than this share of rows are names, not categories
KINDS = ("numeric", "categorical", "boolean", "date")


class TableData(FileData):
    """A table in CSV, TSV, JSON Lines, Parquet or on the hub.

    Args:
        target: the column to predict.
        task: None to infer it: texts, booleans and up to 20 different whole numbers are classes.
        numeric, categorical, boolean, date: columns that are of this kind whatever they look like.
        drop: columns that the network does not see.
        missing: texts that stand for a missing cell.
        max_categories: the most frequent are kept, the others count as unknown.
        group: a column; rows of one value are in one split.
        time: a column; the latest rows are tested, the ones before validated.
        split: a column that says train, val or test.
    """

    def __init__(
        self,
        target: str,
        task: Literal["classification", "regression"] | None,
        numeric: list[str],
        categorical: list[str],
        boolean: list[str],
        date: list[str],
        drop: list[str],
        missing: list[str],
        max_categories: PositiveInt,
        group: str | None,
        time: str | None,
        split: str | None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.target, self.task = target, task
        self.kinds = dict(zip(KINDS, (numeric, categorical, boolean, date), strict=True))
        self.drop, self.missing, self.max_categories = drop, pa.array(missing, pa.string()), max_categories
        self.special = {"group": group, "time": time, "split": split}

    @property
    def marks(self) -> dict[str, str]:
        """The special columns that are read; none where all rows are those of one split."""
        return {} if self.fitted else {key: name for key, name in self.special.items() if name}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits, and measures the training rows; once."""
        if self.rows:
            return
        what = (FORMAT, self.content(), self.target, self.task, self.kinds, self.drop, self.missing.to_pylist())
        fitted = self.fitted.plain() if self.fitted else None
        self.fingerprint = hashlib.sha256(repr((*what, self.special, fitted)).encode()).hexdigest()
        cache = self.cache or {"folder": self._scratch(), "max_bytes": 0}
        made_by = code([type(self)], "research.data.columns", "research.data.files"), pa.__version__
        key = hashlib.sha256(repr((self.fingerprint, made_by)).encode()).hexdigest()
        place = Path(cache["folder"]) / f"{key[:32]}.table"
        table, _ = kept(place, int(float(cache["max_bytes"])), self._write, Stored)
        if self.balanced and not table.listing.classes:
            raise UserError(
                f"data.balanced=true draws each class equally often, and the target '{self.target}' is a number; leave "
                "it out, or take data.task=classification."
            )
        self._tell(table.info["findings"])
        self.ids = self.divide(table.listing)
        self.spec = self.fitted or self._fit(table, self.ids["train"])
        codes = kept_codes(table.columns, self.spec.columns)
        self.rows = {name: TableRows(table.x, table.listing.y, part, codes) for name, part in self.ids.items()}
        if self.checks and not self.fitted:
            x, y = self.rows["train"][spread(len(self.ids["train"]), honesty.SAMPLE)]
            assert isinstance(x, Tensor)
            honesty.check_columns(x.numpy(), y.squeeze(-1).numpy(), self.spec, self.findings)

    def _scratch(self) -> str:
        """A folder that goes with this object."""
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def inputs(self, path: str) -> Iterator[Inputs]:
        """Rows of a file with their x, as far as they can be read, batch by batch."""
        assert self.fitted
        wanted = [column.name for column in self.fitted.columns]
        unseen = Unseen()
        for batch in batches(path):
            self._need(batch, wanted, path)
            cells = {name: plain(batch.column(name), name, self.missing) for name in wanted}
            x, wrong = encode(self.fitted.columns, cells)
            unseen.add(self.fitted.columns, x, cells)
            bad = {row for row, _ in wrong}
            good = torch.tensor([row for row in range(len(batch)) if row not in bad], dtype=torch.long)
            yield Inputs(batch, torch.from_numpy(x[good.numpy()].astype(np.float32)), good, wrong)
        self._tell(unseen.told())

    def _tell(self, findings: list[str]) -> None:
        for text in findings:
            honesty.warn(self.findings, "%s", text)

    def _write(self, place: Path) -> None:
        """Reads the files into the cache."""
        sources = self.sources()
        findings: list[str] = []
        if self.fitted:
            columns, classes = list(self.fitted.columns), self.fitted.classes
        else:
            scans, sizes = self._scan(sources)
            classes = self._classes(scans.pop(self.target), lambda row: place_of(sources, sizes, row))
            columns = self._columns({n: s for n, s in scans.items() if n not in self.marks.values()}, findings)
            _check_cells(columns, scans, lambda row: place_of(sources, sizes, row))
        place.mkdir()
        unseen = Unseen()  # of a run that is opened on other rows
        counts = [self._encode(place, source, columns, classes, unseen) for source in sources]
        findings += unseen.told()
        told = {"columns": [asdict(column) for column in columns], "classes": classes, "findings": findings}
        given = "split" in self.marks or sources[0][0] >= 0
        info = {**told, "num_rows": sum(counts), "given": given, "marks": [k for k in self.marks if k != "split"]}
        (place / "info.json").write_text(json.dumps(info), encoding="utf-8")

    def _scan(self, sources: list[tuple[int, str, str]]) -> tuple[dict[str, Scan], list[int]]:
        """Every column but those that are dropped; and the rows of each source."""
        scans: dict[str, Scan] = {}
        sizes = [0] * len(sources)
        for index, (_, path, split) in enumerate(sources):
            for batch in batches(path, split):
                names = [name for name in batch.schema.names if name not in self.drop]
                if not scans:
                    self._known(batch.schema.names)
                    scans = {name: Scan(name) for name in names}
                self._need(batch, list(scans), path)
                sizes[index] += len(batch)
                for name, scan in scans.items():
                    # a table that is only tested must not decide what a column is
                    scan.add(plain(batch.column(name), name, self.missing)) if index == 0 or name == self.target else 0
        return scans, sizes

    def _known(self, names: list[str]) -> None:
        named = {"target": [self.target], "drop": self.drop, **self.kinds}
        named |= {key: [name] for key, name in self.marks.items()}
        for key, given in named.items():
            for name in given:
                if name not in names:
                    raise UserError(f"data.{key}: {unknown('column', name, names)}")
        for name in {name for names in self.kinds.values() for name in names}:
            if len(kinds := [f"data.{kind}" for kind, names in self.kinds.items() if name in names]) > 1:
                raise UserError(f"column '{name}' is in {' and in '.join(kinds)}; it can be of one kind.")
        for key in ("drop", *KINDS):
            if self.target in named[key]:
                raise UserError(f"data.{key}: '{self.target}' is the target (data.task says of which kind it is).")

    @staticmethod
    def _need(batch: pa.RecordBatch, names: list[str], path: str) -> None:
        if lacking := [name for name in names if name not in batch.schema.names]:
            what = "column" if len(lacking) == 1 else "columns"
            has = ", ".join(batch.schema.names[:20])
            raise UserError(f"'{path}' lacks the {what} {', '.join(lacking)}. It has: {has}.")

    def _classes(self, scan: Scan, where: Callable[[int], str]) -> tuple[str, ...]:
        """Of the target, empty for a regression."""
        if scan.first_missing is not None:
            raise UserError(
                f"the target '{self.target}' is missing in {scan.num_missing} of {scan.num_rows} rows, the first at "
                f"{where(scan.first_missing)}; remove them."
            )
        whole = scan.kind == "numeric" and scan.whole and scan.distinct <= min(MAX_CLASSES, scan.num_rows // 10 + 2)
        classes = self.task == "classification" or (
            self.task is None and (scan.kind in ("categorical", "boolean") or whole)
        )
        if not classes:
            if scan.kind != "numeric":
                raise UserError(f"the target '{self.target}' is {scan.kind}; a regression needs numbers.")
            if row := scan.first_not.get("numeric"):
                raise UserError(f"{where(row[0])}, column '{self.target}': {row[1]!r} is not a number.")
            if scan.first_endless is not None:
                place = where(scan.first_endless[0])
                raise UserError(f"{place}: the target '{self.target}' is infinite or beyond 3e38; remove the row.")
            if scan.low == scan.high:
                raise UserError(
                    f"the target '{self.target}' is {scan.low:g} in all {scan.num_rows} rows: nothing to learn."
                )
            return ()
        if scan.kind == "numeric" and (row := scan.first_not.get("numeric")) and scan.distinct > MAX_CLASSES:
            raise UserError(f"{where(row[0])}, column '{self.target}': {row[1]!r} is not a number.")
        if scan.counts is None:
            raise UserError(f"the target '{self.target}' has more than 10,000 classes: is it an id, or a number?")
        return classes_of(list(scan.counts), scan.num_rows, self.target)

    def _columns(self, scans: dict[str, Scan], findings: list[str]) -> list[Column]:
        """What the network sees of each column; without those that tell it nothing."""
        columns = []
        for name, scan in scans.items():
            asked = next((kind for kind, names in self.kinds.items() if name in names), None)
            kind: Any = asked or scan.kind
            if why := _useless(scan, kind, asked):
                findings.append(f"column '{name}' {why}")
                continue
            if kind == "categorical" and scan.counts is None:
                raise UserError(f"column '{name}' has more than 10,000 categories; leave it out: data.drop=[{name}].")
            categories = tuple(sorted(scan.counts or ())) if kind == "categorical" else ()
            columns.append(Column(name, kind, categories))
        if not columns:
            raise UserError("no column is left to learn from: " + "; ".join(findings))
        return columns

    def _encode(
        self,
        place: Path,
        source: tuple[int, str, str],
        columns: list[Column],
        classes: tuple[str, ...],
        unseen: Unseen,
    ) -> int:
        """Appends the rows of a source to the files of the cache; gives their number."""
        from pandas.core.util.hashing import hash_array

        given, path, split = source
        num_rows = 0
        wanted = {*(column.name for column in columns), self.target, *self.marks.values()}
        with ExitStack() as files:
            out = {name: files.enter_context(open(place / name, "ab")) for name in Stored.FILES}
            for batch in batches(path, split):
                self._need(batch, sorted(wanted), path)
                cells = {name: plain(batch.column(name), name, self.missing) for name in wanted}
                where = partial(_place, path, num_rows)
                x, wrong = encode(columns, cells)
                unseen.add(columns, x, cells)
                for row, why in wrong[:1]:
                    raise UserError(f"{locate(path, num_rows + row)}, {why}.")
                y = self._labels(cells[self.target], classes, path, num_rows)
                identity = np.zeros(len(x), dtype=np.uint64)
                for values in (*x.T, y.reshape(-1)):
                    identity = identity * np.uint64(1_000_003) + hash_array(np.ascontiguousarray(values))
                out["x"].write(x.astype(np.float32).tobytes())
                out["y"].write(y.tobytes())
                out["identity"].write(identity.tobytes())
                out["given"].write(self._given(cells, given, path, num_rows, len(x)).tobytes())
                for name, column in self.marks.items():
                    if name != "split":
                        out[name].write(mark(name, column, cells[column], where).tobytes())
                num_rows += len(batch)
        return num_rows

    def _labels(self, cell: pa.Array, classes: tuple[str, ...], path: str, before: int) -> Any:
        """int64 (B,) classes, or float32 (B, 1) values."""
        kind = "categorical" if classes else "numeric"
        y, wrong = encode([Column(self.target, kind, classes)], {self.target: cell})
        if wrong or np.isnan(y).any() or (classes and (y < 0).any()):
            row = wrong[0][0] if wrong else int(np.flatnonzero(np.isnan(y[:, 0]) | (y[:, 0] < 0))[0])
            allowed = f"one of the classes {', '.join(classes[:10])}" if classes else "a number"
            text = as_text(cell)[row].as_py()  # as it was compared
            raise UserError(f"{locate(path, before + row)}, column '{self.target}': {text!r} is not {allowed}.")
        return y[:, 0].astype(np.int64) if classes else y.astype(np.float32)

    def _given(self, cells: dict[str, pa.Array], given: int, path: str, before: int, num_rows: int) -> Any:
        if not (column := self.marks.get("split")):
            return np.full(num_rows, given, dtype=np.int8)
        codes, _ = encode([Column(column, "categorical", SPLITS)], {column: cells[column]})
        if (bad := np.flatnonzero(~(codes[:, 0] >= 0))).size:
            text = cells[column][int(bad[0])].as_py()
            raise UserError(
                f"{locate(path, before + int(bad[0]))}, column '{column}': {text!r} is not train, val or test."
            )
        return codes[:, 0].astype(np.int8)

    def _fit(self, table: Stored, train: Tensor) -> Spec:
        """What the training rows say of each column and of the target."""
        columns = measured(table.x, train.numpy(), table.columns, self.max_categories)
        y, classes = table.listing.y[train], table.listing.classes
        scale = () if classes else (float(y.double().mean()),), () if classes else (float(y.double().std(0, False)),)
        return Spec(
            "features",
            (sum(column.width for column in columns),),
            "class" if classes else "value",
            classes,
            y_mean=scale[0],
            y_std=scale[1],
            class_counts=tuple(torch.bincount(y, minlength=len(classes)).tolist()) if classes else (),
            columns=columns,
        )


def _useless(scan: Scan, kind: str, asked: str | None) -> str:
    """Why a column is left out, in words; nothing where it stays."""
    if not scan.num_there:
        return "is empty and left out"
    if scan.distinct == 1 and not scan.num_missing:
        return "has one value and is left out"
    if asked:
        return ""
    keep = f"; data.{kind}=[{scan.name or repr('')}] keeps it"
    if re.fullmatch(INDEX, scan.name):
        return f"is the index of a data frame and is left out{keep}"
    if kind == "categorical" and scan.num_rows >= 20 and scan.distinct > min(ID_LIKE * scan.num_rows, MAX_DISTINCT):
        return f"differs from row to row, as an id or a free text does, and is left out{keep}"
    if kind == "numeric" and scan.num_rows >= 20 and scan.whole and not scan.num_missing:
        if _counts_rows(scan):
            return f"counts the rows, as an id does, and is left out{keep}"
        if re.fullmatch(ID, scan.name) and (scan.ascending or scan.distinct == scan.num_rows):
            return f"is named like an id, differs from row to row, and is left out{keep}"
    return ""


def _counts_rows(scan: Scan) -> bool:
    """Whether whole numbers go up from row to row and leave out no more than they have (of rows that were filtered),
    or are all different in any order and leave out one in fifty.

    A measurement is not: it repeats, or leaves out far more. Of more than 10,000 different numbers that are not sorted
    it is not known whether one repeats; they count the rows where none at all is left out.
    """
    span = scan.high - scan.low + 1
    if scan.ascending:
        return span <= SPAN[0] * scan.num_rows
    if scan.counts is None:
        return span == scan.num_rows
    return scan.distinct == scan.num_rows and span <= SPAN[1] * scan.num_rows


def _check_cells(columns: list[Column], scans: dict[str, Scan], where: Callable[[int], str]) -> None:
    """Raises a UserError for columns that are nearly all of a kind, and for numbers without end."""
    problems = []
    for column in columns:
        scan, name = scans[column.name], column.name
        if (first := scan.first_not.get(column.kind)) and column.kind != "categorical":
            fix = f"mend it, list it in data.missing, or take data.categorical=[{name}]"
            problems.append(f"{where(first[0])}, column '{name}': {first[1]!r} is not {column.kind}; {fix}.")
        elif column.kind == "numeric" and scan.first_endless is not None:
            row, text = scan.first_endless
            problems.append(f"{where(row)}, column '{name}': {text} is not a finite number in float32; mend it.")
    if problems:
        raise UserError(*problems)


def _place(path: str, before: int, row: int) -> str:
    """Where a row of a batch is that has so many rows of its file before it."""
    return locate(path, before + row)

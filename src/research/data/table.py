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
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pandas.core.util.hashing import hash_array
from torch import Tensor

from research.data import honesty
from research.data.base import Inputs
from research.data.batches import spread
from research.data.columns import MOSTLY, Scan, Unseen, as_text, encode, mark, plain
from research.data.dialect import Dialect
from research.data.file_data import FileData, Source, place_of
from research.data.files import batches, locate
from research.data.forms import Form
from research.data.kinds import INDEX, columns_of, decimal_of, reading, target_of
from research.data.measure import measured
from research.data.spec import Column, Spec
from research.data.splits import SPLITS
from research.data.stored import Stored, TableRows, kept_codes
from research.engine.disk_cache import code, kept
from research.engine.errors import UserError, unknown
from research.engine.values import PositiveInt

FORMAT = 4  # of the files in the cache
CODE = ("columns", "dates", "dialect", "files", "forms", "kinds")  # that makes them
KINDS = ("numeric", "categorical", "boolean", "date")
WORDS = ("None", "none", "nil")  # that stand for what is missing, and are classes of a target that has them often
MISSING = ("", "NA", "na", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "NULL", "null", *WORDS, "?", "-", ".")


class TableData(FileData):
    """A table in CSV, TSV, JSON Lines, Parquet or on the hub.

    Args:
        target: the column to predict.
        task: None to infer it: texts, booleans and up to 20 different whole numbers are classes.
        numeric, categorical, boolean, date: columns that are of this kind whatever they look like.
        drop: columns that the network does not see.
        missing: texts that stand for a missing cell, beside `MISSING`.
        decimal: the decimal mark of numbers; None to see it in the file.
        day_first: whether the day comes before the month, where a file leaves it open; None for not.
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
        decimal: Literal[".", ","] | None,
        day_first: bool | None,
        max_categories: PositiveInt,
        group: str | None,
        time: str | None,
        split: str | None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.target, self.task = target, task
        self.kinds = dict(zip(KINDS, (numeric, categorical, boolean, date), strict=True))
        self.drop, self.max_categories = drop, max_categories
        self.missing = pa.array([*MISSING, *missing], pa.string())
        self.decimal, self.day_first = decimal, day_first
        self.special = {"group": group, "time": time, "split": split}

    @property
    def expected(self) -> tuple[str, ...]:
        if self.fitted:
            return tuple(dict.fromkeys(column.cell for column in self.fitted.columns))
        return (self.target, *self.marks.values())

    @property
    def asked(self) -> dict[str, str]:
        """The kind that the user says a column is of."""
        return {name: kind for kind, names in self.kinds.items() for name in names}

    @property
    def marks(self) -> dict[str, str]:
        """The special columns that are read; none where all rows are those of one split."""
        return {} if self.fitted else {key: name for key, name in self.special.items() if name}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits, and measures the training rows; once."""
        if self.rows:
            return
        what = (FORMAT, self.content(), self.target, self.task, self.kinds, self.drop, self.missing.to_pylist())
        what += (self.decimal, self.day_first, self.unlabelled, self.dialect)
        fitted = self.fitted.plain() if self.fitted else None
        self.fingerprint = hashlib.sha256(repr((*what, self.special, fitted)).encode()).hexdigest()
        cache = self.cache or {"folder": self._scratch(), "max_bytes": 0}
        made_by = code([type(self)], *(f"research.data.{name}" for name in CODE)), pa.__version__
        key = hashlib.sha256(repr((self.fingerprint, made_by)).encode()).hexdigest()
        place = Path(cache["folder"]) / f"{key[:32]}.table"
        table, _ = kept(place, int(float(cache["max_bytes"])), self._write, Stored)
        if self.balanced and not table.listing.classes:
            raise UserError(
                f"data.balanced=true draws each class equally often, and the target '{self.target}' is a number; leave "
                "it out, or take data.task=classification."
            )
        self.file = self.assumed(self.sources())
        self._tell(table.info["findings"])
        self.ids = self.divide(table.listing)
        self.spec = self.fitted or self._fit(table, self.ids["train"])
        codes = kept_codes(table.columns, self.spec.columns)
        self._tell_rare(table, codes)
        self.rows = {name: TableRows(table.x, table.listing.y, part, codes) for name, part in self.ids.items()}
        if self.checks and not self.fitted:
            x, y = self.rows["train"][spread(len(self.ids["train"]), honesty.SAMPLE)]
            assert isinstance(x, Tensor)
            honesty.check_columns(x.numpy(), y.squeeze(-1).numpy(), self.spec, self.findings)

    def _tell_rare(self, table: Stored, codes: dict[int, Tensor]) -> None:
        """Says which categories count as unknown because there are more frequent ones."""
        for index, kept_code in codes.items() if not self.fitted else ():
            cells = table.x[self.ids["train"].numpy(), index]
            counts = np.bincount(cells[cells >= 0].astype(np.int64), minlength=len(kept_code))
            rare = (counts > 0) & (kept_code.numpy() < 0)
            if not rare.any():
                continue
            text = "column '%s': the %d most frequent categories are kept; %d others, in %d of %d training rows, count "
            text += "as unknown, and so they do in new rows (data.max_categories)"
            values = table.columns[index].name, self.max_categories, rare.sum(), counts[rare].sum(), len(cells)
            honesty.warn(self.findings, text, *values)

    def _scratch(self) -> str:
        """A folder that goes with this object."""
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def inputs(self, path: str) -> Iterator[Inputs]:
        """Rows of a file with their x, as far as they can be read, batch by batch."""
        assert self.fitted
        wanted = list(self.expected)
        unseen = Unseen()
        for batch in batches(path, dialect=self.dialect):
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
            assert self.fitted.label
            columns, classes, label = list(self.fitted.columns), self.fitted.classes, self.fitted.label
        else:
            scans, sizes = self._scan(sources, findings)
            where = partial(place_of, sources, sizes, self.dialect)
            target = scans.pop(self.target)
            self._check_labels(target, where)
            classes = target_of(target, self.task, where, findings)
            label = self._label(target, classes)
            scans = {name: scan for name, scan in scans.items() if name not in self.marks.values()}
            columns = columns_of(scans, self.asked, where, findings)
        place.mkdir()
        unseen = Unseen()  # of a run that is opened on other rows
        counts = [self._encode(place, source, columns, label, unseen) for source in sources]
        findings += unseen.told()
        told = {"columns": [asdict(column) for column in columns], "classes": classes, "findings": findings}
        given = "split" in self.marks or sources[0][0] >= 0
        marks = [key for key in self.marks if key != "split"]
        info = {**told, "label": asdict(label), "num_rows": sum(counts), "given": given, "marks": marks}
        (place / "info.json").write_text(json.dumps(info), encoding="utf-8")

    def _scan(self, sources: list[Source], findings: list[str]) -> tuple[dict[str, Scan], list[int]]:
        """Every column but those that are dropped, by the form of its cells; and the rows of each source."""
        plain_scans, sizes = self._scanned(sources)
        target = plain_scans[self.target]
        as_missing = self._missing_of(target)
        decimal = self.decimal or decimal_of(plain_scans)
        forms = {
            name: scan.written(self.asked.get(name) or scan.kind, decimal, self.day_first)
            for name, scan in plain_scans.items()
        }
        if self.task == "classification":
            forms[self.target] = Form()
        again = {name for name, form in forms.items() if form} | ({self.target} if as_missing is not None else set())
        if not again:
            return plain_scans, sizes
        findings += [
            reading(plain_scans[name], forms[name], self.decimal or "", self.day_first)
            for name in plain_scans
            if forms[name] and name not in self.marks.values()
        ]
        scans, _ = self._scanned(sources, {name: forms[name] for name in plain_scans if name in again}, as_missing)
        for name, scan in scans.items():
            scan.forms = plain_scans[name].forms
        if forms[self.target] and (counts := plain_scans[self.target].counts):  # classes are called as they are written
            gone = [] if as_missing is None else as_missing.to_pylist()
            scans[self.target].counts = Counter({text: num for text, num in counts.items() if text not in gone})
        return {**plain_scans, **scans}, sizes

    def _scanned(
        self, sources: list[Source], forms: dict[str, Form] | None = None, as_missing: Any = None
    ) -> tuple[dict[str, Scan], list[int]]:
        """Every column, or those of `forms`; and the rows of each source.

        Args:
            as_missing: texts of the target that stand for a missing one; None for all but `WORDS`.
        """
        scans = {name: Scan(name, form=form) for name, form in (forms or {}).items()}
        of_target = _without(self.missing, WORDS) if as_missing is None else as_missing
        sizes = [0] * len(sources)
        for index, (_, path, split) in enumerate(sources):
            for batch in batches(path, split, self.dialect):
                if not scans:
                    self._known(batch.schema.names)
                    scans = {name: Scan(name) for name in batch.schema.names if name not in self.drop}
                self._need(batch, list(scans), path)
                sizes[index] += len(batch)
                for name, scan in scans.items():
                    missing = of_target if name == self.target else self.missing
                    # a table that is only tested must not decide what a column is
                    scan.add(plain(batch.column(name), name, missing)) if index == 0 or name == self.target else 0
        return scans, sizes

    def _missing_of(self, target: Scan) -> Any:
        """Texts of the target that stand for a missing one, where `WORDS` that it has are among them; else None."""
        counts = target.counts or {}
        words = [word for word in WORDS if word in counts]
        others = [num for text, num in counts.items() if text not in WORDS]
        if not words or not others:
            return None
        if target.num_numbers < MOSTLY * sum(others):
            words = [word for word in words if counts[word] < min(others)]
        return _without(self.missing, set(WORDS) - set(words)) if words else None

    def _check_labels(self, target: Scan, where: Callable[[int], str]) -> None:
        if target.first_missing is not None and self.unlabelled == "error":
            raise UserError(
                f"the target '{self.target}' is missing in {target.num_missing} of {target.num_rows} rows, the first "
                f"at {where(target.first_missing)}; data.unlabelled=drop leaves them out."
            )

    def _label(self, scan: Scan, classes: tuple[str, ...]) -> Column:
        if classes:
            return Column(self.target, "categorical", classes)
        form = scan.form
        return Column(self.target, "numeric", decimal=form.decimal, units=form.units, offset=scan.offset)

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

    def _encode(
        self,
        place: Path,
        source: Source,
        columns: list[Column],
        label: Column,
        unseen: Unseen,
    ) -> int:
        """Appends the rows of a source to the files of the cache; gives their number."""
        given, path, split = source
        num_rows = 0
        seen = {column.cell for column in columns}
        wanted = {*seen, self.target, *self.marks.values()}
        telling = [index for index, column in enumerate(columns) if column.part[:4] not in ("year", "week")]
        of_target = _without(self.missing, label.categories)
        with ExitStack() as files:
            out = {name: files.enter_context(open(place / name, "ab")) for name in Stored.FILES}
            for batch in batches(path, split, self.dialect):
                self._need(batch, sorted(wanted), path)
                cells = {
                    name: plain(batch.column(name), name, of_target if name == self.target else self.missing)
                    for name in wanted
                }
                where = partial(_place, path, self.dialect, num_rows)
                x, wrong = encode(columns, cells)
                unseen.add(columns, x, cells)
                for row, why in wrong[:1]:
                    raise UserError(f"{where(row)}, {why}.")
                out["x"].write(x.astype(np.float32).tobytes())
                out["y"].write(self._labels(cells[self.target], label, path, num_rows).tobytes())
                rest = _hashes(batch, [name for name in batch.schema.names if name not in seen and self._is_cell(name)])
                out["rest"].write(rest.tobytes())
                out["identity"].write(_joined([rest, *x.T[telling]]).tobytes())
                out["given"].write(self._given(cells, given, path, num_rows, len(x)).tobytes())
                for name, column in self.marks.items():
                    if name != "split":
                        out[name].write(mark(name, column, cells[column], where).tobytes())
                num_rows += len(batch)
        return num_rows

    def _is_cell(self, name: str) -> bool:
        """Whether a column is part of what a row says, by which rows are equal or not."""
        return name not in (self.target, self.special["split"]) and not re.fullmatch(INDEX, name)

    def _labels(self, cell: pa.Array, label: Column, path: str, before: int) -> Any:
        """int64 (B,) classes, -1 where there is none, or float32 (B, 1) values, NaN where there is none."""
        y, wrong = encode([label], {self.target: cell})
        bad = np.isnan(y[:, 0]) & (self.unlabelled == "error")
        bad |= y[:, 0] < 0 if label.categories else False
        if wrong or bad.any():
            row = wrong[0][0] if wrong else int(np.flatnonzero(bad)[0])
            allowed = f"one of the classes {', '.join(label.categories[:10])}" if label.categories else "a number"
            text = as_text(cell)[row].as_py()  # as it was compared
            place = _place(path, self.dialect, before, row)
            raise UserError(f"{place}, column '{self.target}': {text!r} is not {allowed}.")
        return np.nan_to_num(y[:, 0], nan=-1).astype(np.int64) if label.categories else y.astype(np.float32)

    def _given(self, cells: dict[str, pa.Array], given: int, path: str, before: int, num_rows: int) -> Any:
        if not (column := self.marks.get("split")):
            return np.full(num_rows, given, dtype=np.int8)
        codes, _ = encode([Column(column, "categorical", SPLITS)], {column: cells[column]})
        if (bad := np.flatnonzero(~(codes[:, 0] >= 0))).size:
            text = cells[column][int(bad[0])].as_py()
            place = _place(path, self.dialect, before, int(bad[0]))
            raise UserError(f"{place}, column '{column}': {text!r} is not train, val or test.")
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
            label=table.label,
            file=self.file,
        )


def _without(missing: pa.Array, words: Collection[str]) -> pa.Array:
    return pa.array([text for text in missing.to_pylist() if text not in words], pa.string())


def _hashes(batch: pa.RecordBatch, names: list[str]) -> Any:
    """uint64 (B,) of the cells of columns, of whatever kind they are."""
    parts: list[Any] = [np.zeros(len(batch))]
    for name in names:
        column = batch.column(name)
        simple = pa.types.is_primitive(column.type) or pa.types.is_string(column.type)
        values = (column.cast(pa.string()) if simple else column).to_pylist()
        parts.append(hash_array(np.array([str(value) for value in values], dtype=object)))
    return _joined(parts)


def _joined(parts: list[Any]) -> Any:
    """uint64 (B,) of the numbers (B,) of rows, equal where all of them are."""
    found = np.zeros(len(parts[0]), dtype=np.uint64)
    for values in parts:
        found = found * np.uint64(1_000_003) + hash_array(np.ascontiguousarray(values))
    return found


def _place(path: str, dialect: Dialect, before: int, row: int) -> str:
    """Where a row of a batch is that has so many rows of its file before it."""
    return locate(path, before + row, dialect=dialect)

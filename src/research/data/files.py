"""Files of rows, read as a stream of Arrow batches, with messages that say where a file is wrong.

CSV and TSV (cells as text, see `columns.py`), JSON Lines, Parquet, a folder of one of them, a dataset of the Hugging
Face hub, standard input. pyarrow reads in constant memory and knows the row of a mistake; `datasets` opens the hub.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from research.engine.errors import UserError

KINDS = {".csv": ",", ".tsv": "\t", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
BLOCK_BYTES = 4 << 20
HUB = "hub:"  # what a path begins with that names a dataset of the hub, `hub:ag_news`


def batches(path: str, split: str = "train") -> Iterator[pa.RecordBatch]:
    """The rows of a file, a folder of files (in the order of their names), a hub dataset or standard input (`-`).

    Args:
        split: of a hub dataset.

    Raises:
        UserError: nothing there, not readable, or not well formed; with the file, the line and the column.
    """
    if path == "-":
        yield from _named(_csv(pa.PythonFile(sys.stdin.buffer, mode="r"), ","), "standard input")
        return
    if path.startswith(HUB):
        yield from _hub(path, split)
        return
    names: list[str] | None = None
    for file in listed(Path(path)):
        for batch in _of_file(file):
            names = names or batch.schema.names
            if batch.schema.names != names and sorted(batch.schema.names) != sorted(names):
                raise UserError(f"'{file}' has the columns {_list(batch.schema.names)}; before it: {_list(names)}.")
            yield batch.select(names)


def _hub(path: str, split: str) -> Iterator[pa.RecordBatch]:
    """Classes by their names."""
    import pyarrow.compute
    from datasets import ClassLabel

    pc: Any = pyarrow.compute  # as in columns.py

    data = hub(path)[split]
    for table in data.with_format("arrow").iter(1 << 14):
        for index, (name, feature) in enumerate(data.features.items()):
            if isinstance(feature, ClassLabel):
                codes = table.column(name).combine_chunks()
                codes = pc.if_else(pc.less(codes, 0), None, codes)  # a test set without labels
                table = table.set_column(index, name, pa.array(feature.names).take(codes))
        yield from table.combine_chunks().to_batches()


def hub_splits(path: str) -> list[str]:
    """The splits of a hub dataset, by the names that it gives them."""
    return list(hub(path))


def hub(path: str) -> Any:
    """A dataset of the hub, by split: from a folder, the local cache, or the network.

    Raises:
        UserError: it is not to be had, and the ways on.
    """
    import datasets
    from datasets import DatasetDict, load_dataset, load_from_disk

    name = path.removeprefix(HUB)
    datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            found: Any = load_from_disk(name)
        else:
            found = load_dataset(name)
    except Exception as error:  # of many libraries: the network, the cache, the builder
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the dataset '{name}' is neither in the cache of the Hugging Face hub nor to be fetched ({said}). Fetch "
            f"it where there is a network, python -c \"import datasets; datasets.load_dataset('{name}')\", and copy "
            "the cache; or give a folder, or a file with data=text or data=table."
        ) from error
    return found if isinstance(found, DatasetDict) else {"train": found}


def listed(path: Path) -> list[Path]:
    """The files of rows that a path stands for.

    Raises:
        UserError: there are none, or of several kinds.
    """
    if not path.exists():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1, cutoff=0.5)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else "."
        raise UserError(f"there is no file or folder '{path}'{hint}")
    if path.is_file():
        if _kind(path) is None:
            raise UserError(f"'{path}' is not of a kind that is read: {', '.join(KINDS)}, also with .gz.")
        found = [path]
    else:
        try:
            found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) and not p.name.startswith("."))
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
        if len(kinds := {_kind(file) for file in found}) != 1:
            what = "files of several kinds" if kinds else "no file"
            raise UserError(f"'{path}' holds {what}; give it files of one of {', '.join(KINDS)}.")
    for file in found:
        if not os.access(file, os.R_OK):
            raise UserError(f"'{file}' may not be read; see its permissions.")
        if not file.stat().st_size:
            raise UserError(f"'{file}' is empty.")
    return found


def locate(path: str, row: int) -> str:
    """Where the row of a stream is, in words: `houses.csv, line 18`. Rows count from 0, over all files."""
    if path == "-" or path.startswith(HUB):
        return f"row {row + 1}"
    for file in listed(Path(path)):
        kind = _kind(file)
        if kind == "json":
            lines = [number for number, line in enumerate(_open(file), 1) if line.strip()]
        elif kind == "parquet":
            import pyarrow.parquet

            lines = list(range(1, pyarrow.parquet.ParquetFile(file).metadata.num_rows + 1))
        else:
            reader, lines, before = csv.reader(_open(file), delimiter=str(kind)), [], 0
            for cells in reader:
                lines += [before + 1] if cells else []  # the line a row begins on
                before = reader.line_num
            lines = lines[1:]
        if row < len(lines):
            return f"{file.name}, {'row' if kind == 'parquet' else 'line'} {lines[row]}"
        row -= len(lines)
    return f"row {row + 1}"


def _kind(file: Path) -> str | None:
    return KINDS.get(Path(file.stem).suffix.lower() if file.suffix == ".gz" else file.suffix.lower())


def _open(file: Path) -> IO[str]:
    import gzip

    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, newline="", encoding="utf-8")


def _of_file(file: Path) -> Iterator[pa.RecordBatch]:
    kind = _kind(file)
    if kind == "parquet":
        yield from _named(_parquet(file), file.name)
    elif kind == "json":
        yield from _named(_json(file), file.name, lambda: _wrong_line(file))
    else:
        yield from _named(_csv(pa.input_stream(file), str(kind)), file.name)


def _named(stream: Iterator[pa.RecordBatch], name: str, explain: Any = None) -> Iterator[pa.RecordBatch]:
    """Passes batches on; puts what pyarrow says of a mistake into a sentence with the name of the file."""
    columns: list[str] = []
    num_rows = 0
    try:
        for batch in stream:
            columns = batch.schema.names
            num_rows += len(batch)
            yield batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {(explain and explain()) or _said(str(error), columns)}") from error
    if not num_rows:
        raise UserError(f"{name}: it has a header and no rows.")


def _said(error: str, columns: list[str]) -> str:
    line = re.search(r"Row #(\d+)", error)
    place = f"line {line[1]}: " if line else ""
    if "UTF8" in error or "utf-8" in error:
        column = re.search(r"CSV column #(\d+)", error)
        where = f"column {columns[int(column[1])]!r}, " if column and columns else ""
        return f"{where}{place}it is not UTF-8; convert it, iconv -f latin1 -t utf-8 say."
    if counts := re.search(r"Expected (\d+) columns, got (\d+): (.*)", error, re.S):
        given = counts[3].strip()[:60]
        return f"{place}it has {counts[2]} cells, the header has {counts[1]}: {given}"
    if "Empty CSV" in error:
        return "it has no header and no rows."
    return f"{place}{' '.join(error.split())}"


def _csv(source: Any, delimiter: str) -> Iterator[pa.RecordBatch]:
    """Every cell as text: what a column holds is decided over the whole file, not by its first block."""
    import pyarrow.csv as arrow

    reader = arrow.open_csv(
        source,
        read_options=arrow.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),  # only so are rows counted
        parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False),
    )
    names = [name.strip() for name in reader.schema.names]
    if twice := {name for name in names if names.count(name) > 1}:
        raise pa.ArrowInvalid(f"the header names {_list(sorted(twice))} more than once.")
    other = {",": ";", "\t": ","}[delimiter]
    if len(names) == 1 and other in names[0]:
        raise pa.ArrowInvalid(f"its cells are separated by '{other}', where its name promises {delimiter!r}.")
    for batch in reader:
        yield batch.rename_columns(names)


def _json(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.json as arrow

    options = arrow.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    yield from arrow.open_json(pa.input_stream(file), read_options=options)


def _wrong_line(file: Path) -> str:
    """What Python's own reader finds wrong with a file of JSON Lines, and where."""
    kinds: dict[str, type] = {}
    try:
        for number, line in enumerate(_open(file), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                return f"line {number}: it is not JSON ({error})."
            if not isinstance(row, dict):
                return f"line {number}: it is not an object, {{...}}; write one row a line."
            for name, value in row.items():
                kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
                if value is not None and kinds.setdefault(name, kind) is not kind:
                    return f"line {number}, column '{name}': {value!r} is not of the type of the rows before it."
    except UnicodeDecodeError:
        return "it is not UTF-8; convert it, iconv -f latin1 -t utf-8 say."
    return ""


def _parquet(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as arrow

    with arrow.ParquetFile(file, memory_map=True) as source:
        yield from source.iter_batches(1 << 16)


def _list(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")

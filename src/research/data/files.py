"""Files of rows, read as a stream of Arrow batches, with messages that say where a file is wrong.

Text with a mark between cells (cells as text, see `columns.py`; `dialect.py` sees how it is written), JSON, Parquet, a
folder of one of them, a dataset of the Hugging Face hub, standard input. pyarrow reads in constant memory and knows the
row of a mistake; `datasets` opens the hub.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path
from select import select
from typing import Any

import pyarrow as pa

from research.data.dialect import DELIMITERS, Dialect, dialect_of, inner_name, open_file
from research.engine.errors import UserError

KINDS = {
    **dict.fromkeys(DELIMITERS, "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1 << 14
NOT_UTF8 = "it is not UTF-8; convert it, iconv -f latin1 -t utf-8 say."
NOT_READ = "it is not {}; data.encoding=... names another, latin-1 or utf-16 say."
USUAL = Dialect()
WAIT_S = 0.1  # for standard input, before it is asked whether anybody still wants it
HUB = "hub:"  # what a path begins with that names a dataset of the hub, `hub:ag_news`


def batches(path: str, split: str = "train", dialect: Dialect = USUAL) -> Iterator[pa.RecordBatch]:
    """The rows of a file, a folder of files (in the order of their names), a hub dataset or standard input (`-`).

    Args:
        split: of a hub dataset.
        dialect: what is known of how text is written.

    Raises:
        UserError: nothing there, not readable, or not well formed; with the file, the line and the column.
    """
    if path == "-":
        yield from _named(_standard_input(dialect), "standard input", dialect)
        return
    if path.startswith(HUB):
        yield from _hub(path, split)
        return
    names: list[str] | None = None
    for file in listed(Path(path)):
        for batch in _of_file(file, dialect):
            names = names or batch.schema.names
            if batch.schema.names != names and sorted(batch.schema.names) != sorted(names):
                raise UserError(f"'{file}' has the columns {_list(batch.schema.names)}; before it: {_list(names)}.")
            yield batch.select(names)


def _standard_input(dialect: Dialect) -> Iterator[pa.RecordBatch]:
    """By a thread: where pyarrow waits for input, this process would hear no signal before the input's end."""
    source = _Waiting(sys.stdin.fileno())
    with ThreadPoolExecutor(1) as thread:
        try:
            stream = _text(pa.PythonFile(source, mode="r"), dialect)
            while (batch := thread.submit(next, stream, None).result()) is not None:
                yield batch
        finally:
            source.left = True


class _Waiting:
    """A stream that ends for its reader when it is left."""

    left = closed = False

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end."""
        parts: list[bytes] = []
        while size and not self.left:
            if not select([self.descriptor], [], [], WAIT_S)[0]:
                continue
            part = os.read(self.descriptor, size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _hub(path: str, split: str) -> Iterator[pa.RecordBatch]:
    """Classes by their names."""
    import pyarrow.compute
    from datasets import ClassLabel

    pc: Any = pyarrow.compute  # as in columns.py

    data = hub(path)[split]
    for table in data.with_format("arrow").iter(BLOCK_ROWS):
        for index, (name, feature) in enumerate(data.features.items()):
            if isinstance(feature, ClassLabel):
                codes = table.column(name).combine_chunks()
                codes = pc.if_else(pc.less(codes, 0), None, codes)  # a test set without labels
                table = table.set_column(index, name, pa.array(feature.names).take(codes))
        yield from table.combine_chunks().to_batches()


def hub_splits(path: str) -> tuple[list[str], list[str]]:
    """The splits of a hub dataset, by the names that it gives them: those with labels, and those without."""
    import pyarrow.compute
    from datasets import ClassLabel

    pc: Any = pyarrow.compute
    found: tuple[list[str], list[str]] = [], []
    for split, rows in hub(path).items():
        labels = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
        last = [pc.max(rows.data.column(name)).as_py() or 0 for name in labels if split != "train"]  # -1 is no label
        found[bool(last) and max(last) < 0].append(split)
    return found


def hub(path: str) -> Any:
    """A dataset of the hub, by split: from a folder, the local cache, or the network.

    Raises:
        UserError: it is not to be had, and the ways on.
    """
    import datasets

    name = path.removeprefix(HUB)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        found = _cached(name) or datasets.load_dataset(_downloaded(name))
    except Exception as error:  # of many libraries: the network, the cache, what makes a dataset of files
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the dataset '{name}' is neither a folder, nor in the cache of the Hugging Face hub, nor to be fetched "
            f"({said}). Fetch it where there is a network (hf download --repo-type dataset {name}) and copy the cache; "
            "or give a folder, data.name=FOLDER, or a file, data=text or data=table."
        ) from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _cached(name: str) -> Any:
    """From a folder, or what `datasets` has prepared before; None where there is neither."""
    import datasets
    from datasets import config

    if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
        return datasets.load_from_disk(name)
    if Path(name).is_dir():
        return datasets.load_dataset(name)
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True  # else it asks the network first
    try:
        return datasets.load_dataset(name)
    except Exception:  # which one depends on what is missing
        return None
    finally:
        config.HF_HUB_OFFLINE = before


def _downloaded(name: str) -> str:
    """From the local cache of the hub, else from the network in one try."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        return snapshot_download(name, repo_type="dataset", etag_timeout=3)


def near(path: Path) -> str:
    """The end of a sentence that says that a path is not there: the name beside it that is most like it."""
    try:
        beside = os.listdir(path.parent)
    except OSError:
        beside = []
    found = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    return f"; did you mean '{path.with_name(found[0])}'?" if found else "."


def files_in(folder: Path) -> list[Path]:
    """Of a folder and of those in it, in the order of their names.

    Raises:
        UserError: one of the folders may not be read.
    """

    def unreadable(error: OSError) -> None:  # which rglob passes over
        raise UserError(f"the folder '{error.filename}' cannot be read: {error.strerror}.") from error

    walk = os.walk(folder, onerror=unreadable)
    return sorted(file for place, _, names in walk for name in names if (file := Path(place, name)).is_file())


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError as error:
        raise UserError(f"'{path}' may not be read; see the permissions of its folder.") from error
    except (OSError, ValueError):  # no such name, or one that no file can have
        return False
    return True


def listed(path: Path) -> list[Path]:
    """The files of rows that a path stands for.

    Raises:
        UserError: there are none, or of several kinds.
    """
    if not _is_there(path):
        raise UserError(f"there is no file or folder '{path}'{near(path)}")
    if path.is_file():
        if _kind(path) is None:
            raise UserError(
                f"'{path}' is not of a kind that is read: {', '.join(KINDS)}; all but .parquet also as .gz or .zip."
            )
        found = [path]
    else:
        found = [file for file in files_in(path) if _kind(file) and not file.name.startswith(".")]
        if len(kinds := {_kind(file) for file in found}) != 1:
            what = "files of several kinds" if kinds else "no file"
            raise UserError(f"'{path}' holds {what}; give it files of one of {', '.join(KINDS)}.")
    for file in found:
        if not os.access(file, os.R_OK):
            raise UserError(f"'{file}' may not be read; see its permissions.")
        if not file.stat().st_size:
            raise UserError(f"'{file}' is empty.")
    return found


def locate(path: str, row: int, split: str = "train", dialect: Dialect = USUAL) -> str:
    """Where the row of a stream is, in words: `houses.csv, line 18`. Rows count from 0, over all files."""
    if path == "-" or path.startswith(HUB):
        return f"row {row + 1}" + (f" of {split}" if path != "-" else "")
    for file in listed(Path(path)):
        lines = _lines(file, dialect)
        if row < len(lines):
            return f"{file.name}, {'row' if _kind(file) == 'parquet' else 'line'} {lines[row]}"
        row -= len(lines)
    return f"row {row + 1}"


def _lines(file: Path, dialect: Dialect) -> list[int]:
    """The line that each row begins on; of a Parquet file or a JSON array, its number."""
    kind = _kind(file)
    if kind == "parquet":
        import pyarrow.parquet

        return list(range(1, pyarrow.parquet.ParquetFile(file).metadata.num_rows + 1))
    if kind == "json":
        return [number for number, _ in _objects(file)]
    seen, lines, before = dialect_of(file, dialect), [], 0
    with _cells(file, seen) as reader:
        for cells in reader:
            lines += [before + 1] if cells and before >= seen.skip else []
            before = reader.line_num
    return lines[1:] if seen.header else lines


def _kind(file: Path) -> str | None:
    packed = file.suffix.lower() in (".gz", ".zip")
    kind = KINDS.get(Path(inner_name(file)).suffix.lower()) if file.suffix.lower() != ".zip" or file.is_file() else None
    return None if kind == "parquet" and packed else kind


def is_text(file: Path) -> bool:
    """Whether a file is text with a mark between cells."""
    return _kind(file) == "text"


def is_rows(file: Path) -> bool:
    """Whether a file is of a kind that holds rows."""
    return _kind(file) is not None


@contextmanager
def _cells(file: Path, seen: Dialect) -> Iterator[Any]:
    """Python's own reader of CSV, to find where pyarrow found something wrong: what cannot be decoded is no matter."""
    csv.field_size_limit(2**31 - 1)  # pyarrow has none
    encoding = "utf-8-sig" if seen.encoding == "utf-8" else seen.encoding
    with open_file(file) as stream, io.TextIOWrapper(stream, encoding, "replace", newline="") as text:
        yield csv.reader(
            text,
            delimiter=seen.delimiter or ",",
            quotechar=seen.quote,
            escapechar=seen.escape,
            doublequote=not seen.escape,
        )


def _of_file(file: Path, dialect: Dialect) -> Iterator[pa.RecordBatch]:
    kind = _kind(file)
    if kind == "parquet":
        yield from _named(_parquet(file), file.name, dialect)
    elif kind == "json":
        yield from _named(_json(file), file.name, dialect)
    else:
        seen = dialect_of(file, dialect)
        source = pa.PythonFile(open_file(file), mode="r") if file.suffix == ".zip" else pa.input_stream(file)
        yield from _named(_text(source, seen), file.name, seen, file)


def _named(
    stream: Iterator[pa.RecordBatch], name: str, dialect: Dialect, file: Path | None = None
) -> Iterator[pa.RecordBatch]:
    """Passes batches on; puts what is found wrong into a sentence with the name of the file."""
    num_rows = 0
    try:
        for batch in stream:
            names = batch.schema.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise pa.ArrowInvalid(f"the header names {_list(twice)} more than once.")
            num_rows += len(batch)
            yield batch
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {_said(str(error), dialect, file)}") from error
    if not num_rows:
        raise UserError(f"{name}: it has a header and no rows.")


def _said(error: str, dialect: Dialect, file: Path | None) -> str:
    """What pyarrow says of a file, with the line in place of its count of rows."""
    if "zlib" in error:
        return f"it is not gzip, or cut ({error})."
    row, header, place = re.search(r"Row #(\d+)", error), [], ""
    if row:
        lines = [1, *_lines(file, dialect)] if file else []
        number = int(row[1]) - dialect.skip
        place = f"line {lines[number - 1] if number <= len(lines) else number}: "
    if file:
        with _cells(file, dialect) as reader:
            header = next(reader, [])
    if "UTF8" in error or "codec" in error:
        column = re.search(r"CSV column #(\d+)", error)
        where = f"column '{header[int(column[1])]}', " if column and int(column[1]) < len(header) else ""
        return f"{where}{place}{NOT_READ.format(dialect.encoding or 'utf-8')}"
    if counts := re.search(r"Expected (\d+) columns, got (\d+): (.*)", error, re.DOTALL):
        given, first = counts[3].strip()[:60], "the header" if dialect.header is not False else "the first row"
        fix = (
            ""
            if dialect.delimiter in (None, ",")
            else f" (cells are separated by {dialect.delimiter!r}; data.delimiter=...)"
        )
        return f"{place}it has {counts[2]} cells, {first} has {counts[1]}{fix}: {given}"
    if "Empty CSV" in error:
        return "it has no header and no rows."
    return f"{place}{' '.join(error.split())}"


def _text(source: Any, dialect: Dialect) -> Iterator[pa.RecordBatch]:
    """Every cell as text: what a column holds is decided over the whole file, not by its first block."""
    import pyarrow.csv as arrow

    escape: Any = {"escape_char": dialect.escape, "double_quote": False} if dialect.escape else {}
    reader = arrow.open_csv(
        source,
        read_options=arrow.ReadOptions(
            use_threads=False,  # only so are rows counted
            block_size=BLOCK_BYTES,
            encoding=dialect.encoding or "utf-8",
            skip_rows=dialect.skip,
            column_names=list(dialect.columns) or None,
        ),
        parse_options=arrow.ParseOptions(
            delimiter=dialect.delimiter or dialect.before or ",",
            quote_char=dialect.quote,
            newlines_in_values=True,
            **escape,
        ),
        convert_options=arrow.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False),
    )
    names = [name.strip() for name in reader.schema.names]
    for batch in reader:
        yield batch.rename_columns(names)


def _json(file: Path) -> Iterator[pa.RecordBatch]:
    """By Python's own reader: pyarrow's takes types and names from a first block, and refuses a later one."""
    kinds = _kinds(file)
    rows = _objects(file)
    while block := list(islice(rows, BLOCK_ROWS)):
        yield pa.record_batch([_column(name, kind, block) for name, kind in kinds.items()], names=list(kinds))


def _column(name: str, kind: Any, block: list[tuple[int, dict[str, Any]]]) -> pa.Array:
    try:
        return pa.array([row.get(name) for _, row in block], kind)
    except pa.ArrowException as error:
        raise pa.ArrowInvalid(f"lines {block[0][0]} to {block[-1][0]}, column '{name}': {error}") from error


def _kinds(file: Path) -> dict[str, Any]:
    """The type of each column, as all its cells say; None for lists and objects, which each block decides."""
    seen: dict[str, dict[Any, tuple[int, Any]]] = {}  # of each kind of cell, the first
    for number, row in _objects(file):
        for name, cell in row.items():
            if type(cell) is int and not -(2**63) <= cell < 2**63:
                raise pa.ArrowInvalid(f"line {number}, column '{name}': {cell} has more than 64 bits; write a text.")
            seen.setdefault(name, {}).setdefault(type(cell), (number, cell))
    kinds = {}
    for name, first in seen.items():
        first.pop(type(None), None)
        numeric = set(first) <= {int, float}
        if len(first) > 1 and not numeric:
            number, cell = sorted(first.values(), key=lambda told: told[0])[1]
            text = f"line {number}, column '{name}': {cell!r} is not of the type of the rows before it."
            raise pa.ArrowInvalid(text)
        kinds[name] = pa.float64() if len(first) > 1 else _ARROW.get(next(iter(first), type(None)))
    return kinds


_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), type(None): pa.string()}


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and row; of an array, which is read at once, number and row."""
    with open_file(file) as stream:
        first = next((line for line in stream if line.strip()), b"").decode("utf-8-sig", "replace")
    is_array = first.lstrip().startswith("[")
    rows = enumerate(_array(file), 1) if is_array else _json_lines(file)
    for number, row in rows:
        if not isinstance(row, dict):
            place = "row" if is_array else "line"
            raise pa.ArrowInvalid(f"{place} {number}: it is not an object, {{...}}; write one row a line.")
        yield number, row


@lru_cache(maxsize=1)
def _array(file: Path) -> list[Any]:
    try:
        with open_file(file) as stream:
            return json.loads(stream.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(NOT_UTF8) from error
    except ValueError as error:
        raise pa.ArrowInvalid(f"it is not JSON ({error}).") from error


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with open_file(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise pa.ArrowInvalid(f"line {number}: {NOT_UTF8}") from error
            except ValueError as error:
                raise pa.ArrowInvalid(f"line {number}: it is not JSON ({error}); write one row a line.") from error


def _parquet(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as arrow

    with arrow.ParquetFile(file, memory_map=True) as source:
        yield from source.iter_batches(1 << 16)


def _list(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")

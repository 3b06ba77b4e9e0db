"""How a file of text rows is written: what is between cells, its encoding, whether it has a header.

DuckDB looks at the beginning of the file; what the user says comes first. It is not the reader as well: where rows are
of different lengths it takes all of a line for one cell and says nothing, it knows cp1252 from the network alone, and
it does not say from which line a row is.
"""

import codecs
import tempfile
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

from research.engine.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": ",", ".dat": ",", ".data": ","}  # by the name of a file
HEAD_BYTES = 1 << 20  # that are looked at
BLOCK_BYTES = 1 << 22
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WINDOWS = "cp1252"  # what text that is not UTF-8 is mostly in


@dataclass(frozen=True)
class Dialect:
    """Attributes:
    delimiter: between cells; None to see it in the file, as with the next two.
    encoding: of the text.
    header: whether the first line names the columns.
    names: of columns, some of which a header has.
    before: the delimiter of the rows that a run was trained on; empty where there was none.
    quote, escape: around a cell, and before a mark in it.
    skip: lines before the header.
    columns: names of columns that have none.
    told: what was assumed, in words.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool | None = None
    names: tuple[str, ...] = ()
    before: str = ""
    quote: str = '"'
    escape: str | None = None
    skip: int = 0
    columns: tuple[str, ...] = ()
    told: tuple[str, ...] = field(default=(), compare=False)

    @property
    def plain(self) -> dict[str, Any]:
        """What a run records of it."""
        told = {"delimiter": self.delimiter, "encoding": self.encoding, "header": self.header}
        return {**told, "columns": list(self.columns)}


def open_file(file: Path) -> IO[bytes]:
    """The bytes of a file, of a compressed one what it holds."""
    import gzip

    if file.suffix == ".gz":
        return gzip.open(file)  # pyright: ignore[reportReturnType]
    if file.suffix == ".zip":
        return ZipFile(file).open(inner_name(file))
    return file.open("rb")


def inner_name(file: Path) -> str:
    """The name of what is compressed in a file; else its own.

    Raises:
        UserError: an archive of several files, or none.
    """
    if file.suffix != ".zip":
        return file.stem if file.suffix == ".gz" else file.name
    try:
        names = [
            name for name in ZipFile(file).namelist() if not name.endswith("/") and not name.startswith("__MACOSX")
        ]
    except (BadZipFile, OSError) as error:
        raise UserError(f"'{file}' is not a zip archive, or cut ({error}).") from error
    if len(names) != 1:
        raise UserError(f"'{file}' holds {len(names)} files; unpack it into a folder and give that.")
    return names[0]


def dialect_of(file: Path, given: Dialect) -> Dialect:
    """Return how a file is written, as the user says and else as its beginning looks.

    Raises:
        UserError: an encoding that Python does not know.
    """
    stat = file.stat()
    return _seen(file, given, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _seen(file: Path, given: Dialect, size: int, changed: int) -> Dialect:
    usual = DELIMITERS.get(Path(inner_name(file)).suffix.lower(), ",")
    try:
        encoding = given.encoding or _encoding(file)
        with open_file(file) as stream:
            text = stream.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file.name}: it is not {file.suffix[1:]}, or cut ({error}).") from error
    if b"\0" in text and "16" not in encoding and "32" not in encoding:
        raise UserError(f"{file.name}: it is not UTF-8, nor other text; if it is of 16 bits, data.encoding=utf-16.")
    try:
        head = codecs.getincrementaldecoder(encoding)("replace").decode(text).lstrip("\ufeff")
    except LookupError as error:
        raise UserError(
            f"data.encoding={encoding}: Python knows no such encoding; utf-8, utf-16, cp1252, ..."
        ) from error
    found = _sniffed(head, replace(given, encoding=encoding, columns=()), given.before or usual)
    what = [f"{found.delimiter!r} between cells"] if found.delimiter != usual and not given.delimiter else []
    what += [f"the encoding {encoding}"] if encoding != "utf-8" and not given.encoding else []
    what += [f"{found.skip} line(s) before the header left out"] if found.skip else []
    if not found.header and given.header is None:
        what.append(
            f"no header, so that its columns are {', '.join(found.columns[:3])}, ... (data.header=true takes one)"
        )
    told = (f"{file.name} is read with {' and '.join(what)}",) if what else ()
    return replace(found, told=told)


def _encoding(file: Path) -> str:
    """By the mark at the beginning, else UTF-8 where all of the file is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_file(file) as stream:
        block = stream.read(BLOCK_BYTES)
        for mark, name in MARKS.items():
            if block.startswith(mark):
                return name
        try:
            while block:
                if not block.isascii() or decoder.getstate()[0]:
                    decoder.decode(block)
                block = stream.read(BLOCK_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return WINDOWS
    return "utf-8"


def _sniffed(head: str, given: Dialect, usual: str) -> Dialect:
    """What DuckDB sees in the beginning of a file; the usual where that is nothing."""
    import duckdb

    first, delimiter = head.split("\n", 1)[0].strip("\r"), given.delimiter or usual
    cells = _cut(first, delimiter)
    has_header = given.header is not False
    plain = replace(given, delimiter=delimiter, header=has_header, columns=() if has_header else _numbered(len(cells)))
    if not head.strip() or (given.names and set(given.names) <= set(cells)):
        return plain
    options = {"delim": given.delimiter, "header": given.header}
    known = {name: value for name, value in options.items() if value is not None}
    words = "".join(f", {name} = ${name}" for name in known)
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="") as file:
        file.write(head if len(head) < HEAD_BYTES / 4 else head[: head.rfind("\n") + 1] or head)
        file.flush()
        try:
            query = f"SELECT * FROM sniff_csv($path, all_varchar = true, sample_size = 20480{words})"
            with duckdb.connect(config={"threads": 1}) as connection:
                columns = connection.execute(query, {"path": file.name, **known})
                (row,) = columns.fetchall()
                seen = dict(zip([name for name, *_ in columns.description], row, strict=True))
        except duckdb.Error:
            return plain
    names = [column["name"] for column in seen["Columns"]]
    if len(names) == 1 and len(cells) > 1:  # rows of different lengths
        return plain
    marks = {key: None if seen[key] in ("(empty)", "") else seen[key] for key in ("Quote", "Escape")}
    escape = marks["Escape"] if marks["Escape"] not in (None, marks["Quote"]) else None
    found = replace(
        plain, delimiter=seen["Delimiter"], quote=marks["Quote"] or '"', escape=escape, skip=int(seen["SkipRows"])
    )
    has_header = given.header if given.header is not None else bool(seen["HasHeader"])
    if not has_header and given.header is None and set(given.names) & set(_cut(first, seen["Delimiter"])):
        has_header = True  # years as names of columns, say
    return replace(found, header=has_header, columns=() if has_header else _numbered(len(names)))


def _cut(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _numbered(num: int) -> tuple[str, ...]:
    return tuple(f"column{index}" for index in range(1, num + 1))

"""Users' own files, right ones and broken ones, and the data of a command that names them.

A maker is called with the folder to write to.
"""

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from composing import composed
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from omegaconf import DictConfig
from PIL import Image

from research.engine.build import read_data
from research.engine.reopen import with_values

Make = Callable[[Path], object]
Column = Callable[[int], Any]
Columns = dict[str, Column]

TABLE = "data=table data.target=good"
T = f"{TABLE} data.path=t.csv"
X = "data=text data.path=t.csv"
I = "data=images data.path=photos data.size=8 data.num_workers=0"  # noqa: E741


def of_table(**columns: Column | None) -> Columns:
    """Columns that a network may learn from, each a function of the row; others beside them, None without one."""
    made: dict[str, Any] = {"size": lambda i: (i * 37) % 1009 / 2, "colour": lambda i: ("red", "blue", "sea")[i % 3]}
    made |= {"price": lambda i: 1 + i * 53 % 211, "good": lambda i: "yes" if i * i % 11 < 5 else "no", **columns}
    return {name: column for name, column in made.items() if column}


def of_text(**columns: Column | None) -> Columns:
    made: dict[str, Any] = {"text": lambda i: f"text number {i}", "label": lambda i: "xy"[i * i % 11 < 5], **columns}
    return {name: column for name, column in made.items() if column}


def rows(columns: Columns, num: int, first: int = 0) -> list[dict[str, Any]]:
    return [{name: column(i) for name, column in columns.items()} for i in range(first, first + num)]


def at(bad: Any, column: str, kinds: Columns | None = None) -> Columns:
    """A column in which line 18 of a file with a header holds something else."""
    right = (kinds or of_table())[column]
    return {column: lambda i: bad if i == 16 else right(i)}


def table(
    columns: Columns | None = None,
    num: int = 60,
    name: str = "t.csv",
    lines: dict[int, str] | None = None,
    separator: str = ",",
    encoding: str = "utf-8",
    first: int = 0,
) -> Make:
    """A file of rows; `lines` puts text in the place of a line (counted from 1)."""

    def make(folder: Path) -> None:
        columns_, out = columns or of_table(), io.StringIO()
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows(columns_, num, first)), folder / name)
            return
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in rows(columns_, num, first))
        else:
            writer = csv.DictWriter(out, list(columns_), delimiter=separator, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows(columns_, num, first))
            text = out.getvalue()
        parts = text.split("\n")
        for line, given in (lines or {}).items():
            parts[line - 1] = given
        (folder / name).write_bytes("\n".join(parts).encode(encoding))

    return make


def two(test: Columns | None = None, train: Columns | None = None, first: int = 500, **settings: Any) -> Make:
    return both(table(train), table(test, 20, "test.csv", first=first, **settings))


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def bytes_(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def cut(make: Make, name: str, share: float = 0.5) -> Make:
    """A file whose end is lost."""

    def made(folder: Path) -> None:
        make(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return made


def archive(name: str, *inside: str) -> Make:
    """A zip of tables."""

    def make(folder: Path) -> None:
        with ZipFile(folder / name, "w") as file:
            for each in inside:
                table(name=each)(folder)
                file.write(folder / each, each)
                (folder / each).unlink()

    return make


def array(lines: str, name: str) -> Make:
    """The rows of a file of JSON Lines as one array."""

    def make(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / lines).read_text().splitlines()]
        (folder / name).write_text(json.dumps(rows, indent=1))

    return make


def photos(root: str = "photos", num: int = 20, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Make:
    def make(folder: Path) -> None:
        values = np.random.default_rng(seed).integers(0, 255, (num * len(classes), 9, 7), dtype=np.uint8)
        for i, pixels in enumerate(values):
            place = folder / root / classes[i % len(classes)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i:03}.png")

    return make


def hub(rows_of: dict[str, list[dict[str, Any]]], names: tuple[str, ...] = ()) -> Make:
    """A dataset of the hub; labels have names, of which -1 stands for none."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))}) if names else None

    def make(folder: Path) -> None:
        disable_progress_bars()
        made: Any = {name: Dataset.from_list(given, features=features) for name, given in rows_of.items()}
        DatasetDict(made).save_to_disk(folder / "hub")

    return make


def header_of_parquet_twice(folder: Path) -> None:
    names = ["size", "size", "good"]
    made = pa.table([pa.array(range(60)), pa.array(range(60)), pa.array(["a", "b"] * 30)], names=names)
    pyarrow.parquet.write_table(made, folder / "t.parquet")


def text(**columns: Column | None) -> Make:
    return table(of_text(**columns))


def broken_picture(content: bytes) -> Make:
    """Forty pictures and a file that is none."""
    return both(photos(), bytes_("photos/cat/a.png", content))


def data_of(words: str, **settings: Any) -> Any:
    """What a command reads, with nothing kept in the cache."""
    option, *values = words.split()
    name = ["data.name=-"] if option == "data=hub" else []
    return read_data(with_values(_composed(option, *name), [*values, "cache=null"]), **settings)


@cache  # composing takes longer than reading these files
def _composed(*words: str) -> DictConfig:
    return composed(*words)

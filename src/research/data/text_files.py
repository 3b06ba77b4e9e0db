"""Texts of the user's own files, with a class each. N texts."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import torch

from research.data.base import Inputs
from research.data.columns import as_text, mark, plain
from research.data.file_data import FileData, classes_of, given_of, place_of
from research.data.files import batches
from research.data.splits import SPLITS, Listing
from research.data.text import text_inputs, tokens
from research.engine.errors import UserError, unknown
from research.engine.values import PositiveInt

MAX_WORDS = 32  # of a text, by which it is judged whether another is equal by chance


class TextFiles(FileData):
    """A column of texts and one of labels, in CSV, TSV, JSON Lines, Parquet or on the hub.

    Args:
        text: the column of texts; None for the one that is called text, or is the only one beside the target.
        target: the column of labels; None for the one that is called label.
        group: a column; texts of one value are in one split.
        time: a column; the latest texts are tested.
        split: a column that says train, val or test.
        max_length: tokens; longer texts are cut, counted and reported.
        tokenizer: where it comes from, see `engine/pretrained.py`; None for the packaged one.
    """

    def __init__(
        self,
        text: str | None,
        target: str | None,
        group: str | None,
        time: str | None,
        split: str | None,
        max_length: PositiveInt,
        tokenizer: str | None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.text, self.target, self.max_length, self.tokenizer = text, target, max_length, tokenizer
        self.special = {"group": group, "time": time, "split": split}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits, tokenises; once."""
        if self.rows:
            return
        sources = self.sources()
        columns: dict[str, list[Any]] = {}
        sizes = []
        for _, path, split in sources:
            before = len(columns.get("text", ()))
            for batch in batches(path, split, self.dialect):
                wanted = self._names(batch.schema.names, path)
                self.text = wanted["text"]  # of all files, and of those to predict
                for key, name in wanted.items():
                    columns.setdefault(key, []).extend(_texts(batch.column(name), name, path, key))
            sizes.append(len(columns["text"]) - before)
        self._complete(columns, sources, sizes)
        classes, y = self._labels(columns["target"], sources, sizes)
        texts = tuple(text.strip() for text in columns["text"])
        hashes = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
        marks = {
            key: mark(
                key,
                str(self.special[key]),
                pa.array(columns[key]),
                lambda row: place_of(sources, sizes, self.dialect, row),
            )
            for key in ("group", "time")
            if key in columns
        }
        given = given_of(sources, sizes)
        if "split" in columns:
            given = np.array([SPLITS.index(name) for name in columns["split"]], dtype=np.int8)
        identity = np.array(hashes, dtype=np.uint64)
        self.ids = self.divide(Listing(y, classes, identity, partial(_words, texts), given, **marks))
        self.rows, self.spec = tokens(texts, y, classes, self.ids, self.tokenizer, self.max_length)
        self.spec = self.fitted or replace(self.spec, text=self.text, file=self.assumed(sources))
        content = hashlib.sha256(repr((hashes, columns["target"], self.max_length)).encode())
        self.fingerprint = content.hexdigest()

    def inputs(self, path: str) -> Iterator[Inputs]:
        rows = batches(path, dialect=self.dialect)
        return text_inputs(path, rows, lambda names: self._text(names, path), self.tokenizer, self.max_length)

    @property
    def expected(self) -> tuple[str, ...]:
        return (self.text or (self.fitted.text if self.fitted else None) or "text",)

    def _text(self, names: list[str], path: str) -> str:
        """The column of texts: as the command says, else as the run had it, else as the names of the columns say."""
        rest = [name for name in names if name not in (self.target or "label", *self.special.values())]
        found = self.text or (self.fitted.text if self.fitted else None)
        found = found or ("text" if "text" in names else rest[0] if len(rest) == 1 else None)
        if found is None:
            raise UserError(f"'{path}' has the columns {', '.join(names)}; which has the texts? data.text=...")
        return found

    def _names(self, names: list[str], path: str) -> dict[str, str]:
        """Which column is which."""
        wanted = {"text": self._text(names, path), "target": self.target or "label"}
        if not self.fitted:  # of other rows nothing is split
            wanted |= {key: name for key, name in self.special.items() if name}
        for key, name in wanted.items():
            if name not in names:
                raise UserError(f"'{path}': data.{key}: {unknown('column', name, names)}")
        return wanted

    def _complete(self, columns: dict[str, list[Any]], sources: list[Any], sizes: list[int]) -> None:
        """Raises a UserError where a cell is missing."""
        for key, values in columns.items():
            if key == "target" and self.unlabelled == "drop":
                continue
            missing = [row for row, value in enumerate(values) if not value.strip()]
            if missing:
                what = "texts are empty" if key == "text" else f"rows have no {key}"
                place = place_of(sources, sizes, self.dialect, missing[0])
                fix = "data.unlabelled=drop leaves them out" if key == "target" else "remove or fill them"
                raise UserError(f"{len(missing)} of {len(values)} {what}, the first at {place}; {fix}.")
        for row, name in enumerate(columns.get("split", ())):
            if name not in SPLITS:
                raise UserError(
                    f"{place_of(sources, sizes, self.dialect, row)}: split '{name}' is not train, val or test."
                )

    def _labels(self, labels: list[str], sources: list[Any], sizes: list[int]) -> tuple[tuple[str, ...], torch.Tensor]:
        labels = [label.strip() for label in labels]
        known = self.fitted.classes if self.fitted else None
        classes = known or classes_of(list({*labels} - {""}), len(labels), self.target or "label")
        codes = {name: code for code, name in enumerate(classes)} | {"": -1}
        if strange := [row for row, label in enumerate(labels) if label not in codes]:
            place, name = place_of(sources, sizes, self.dialect, strange[0]), labels[strange[0]]
            raise UserError(f"{place}: '{name}' is not one of the run's classes: {', '.join(classes[:10])}.")
        return classes, torch.tensor([codes[label] for label in labels])


def _words(texts: tuple[str, ...], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(n, MAX_WORDS) the first words of texts, as numbers."""
    words = [(text.split()[:MAX_WORDS] + [""] * MAX_WORDS)[:MAX_WORDS] for text in (texts[row] for row in ids)]
    flat = np.array([crc32(word.encode()) for row in words for word in row], dtype=np.float64)
    return flat.reshape(len(ids), MAX_WORDS)


def _texts(column: pa.Array, name: str, path: str, key: str) -> list[str]:
    """Cells as texts, a text as it is; empty where missing."""
    try:
        cells = plain(column, name, pa.array([], pa.string()))
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    cells = cells if key == "text" and pa.types.is_string(cells.type) else as_text(cells)
    return ["" if value is None else value for value in cells.to_pylist()]

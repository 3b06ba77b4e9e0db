"""Where pictures and their classes come from: folders, a file that lists them, a dataset of the hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from research.data.columns import as_text, plain
from research.data.dialect import Dialect
from research.data.file_data import HUB_NAMES
from research.data.files import HUB, batches, files_in, hub, is_rows, locate, near
from research.data.splits import SPLITS
from research.engine.errors import UserError, unknown

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
PATHS = ("file_name", "filename", "file", "path", "filepath", "image")  # usual names of columns of paths
LABELS = ("label", "class", "target", "category")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as `datasets` calls the list in a folder


@dataclass(frozen=True)
class Item:
    """Attributes:
    read: gives the bytes of the picture.
    name: of the picture.
    label: its class; empty where it has none.
    split: its index in SPLITS, or -1.
    """

    read: Callable[[], bytes]
    name: str
    label: str
    split: int


@dataclass(frozen=True)
class Columns:
    """Attributes:
    image: the column of paths; None for the first that has a usual name.
    target: the column of classes, likewise.
    split: the column that says train, val or test, if there is one.
    """

    image: str | None
    target: str | None
    split: str | None


def items_of(path: str, given: int, split: str, columns: Columns, dialect: Dialect) -> list[Item]:
    """Return the pictures of a source, in an order that is always the same.

    Args:
        given: the split that they are all of, or -1.
        split: of a hub dataset.

    Raises:
        UserError: no pictures, or no classes.
    """
    if path.startswith(HUB):
        return _of_hub(path, given, split, columns)
    if lists := lists_of(path):
        return [item for file in lists for item in _of_list(file, _given(file, Path(path), given), columns, dialect)]
    if columns.target or columns.image or columns.split:
        raise UserError(
            f"data.target, data.image and data.split name columns, and '{path}' is a folder without {METADATA[0]}: "
            "its folders are the classes. Leave them out, or give a file that lists pictures."
        )
    return _of_folder(path, given)


def lists_of(path: str) -> list[Path]:
    """Files that list pictures: the path itself, or what a folder, or its folders of splits, has of `METADATA`."""
    root = Path(path)
    if root.is_file() and is_rows(root):
        return [root]
    places = [root, *(root / name for name in HUB_NAMES)]
    return [place / name for place in places for name in METADATA if (place / name).is_file()]


def _given(file: Path, root: Path, given: int) -> int:
    return HUB_NAMES[file.parent.name] if given < 0 and file.parent != root and file != root else given


def _of_list(file: Path, given: int, columns: Columns, dialect: Dialect) -> list[Item]:
    found: list[Item] = []
    for batch in batches(str(file), dialect=dialect):
        names = batch.schema.names
        image = _column(names, columns.image, PATHS, "image", str(file))
        rest = [name for name in names if name not in (image, columns.split)]
        target = _column(names, columns.target, LABELS if len(rest) != 1 else rest, "target", str(file))
        splits = _splits(batch, columns.split, file, len(found), dialect) if columns.split else [given] * len(batch)
        for path, label, split in zip(_texts(batch, image), _texts(batch, target), splits, strict=True):
            if not path:
                raise UserError(
                    f"{locate(str(file), len(found), dialect=dialect)}, column '{image}': the path is missing."
                )
            place = file.parent / path
            found.append(Item(ReadFile(str(place)), str(place), label, split))
    return found


def listed_files(batch: pa.RecordBatch, image: str | None, file: Path) -> list[Path]:
    """Return the pictures that rows of a list name, to be predicted."""
    name = _column(batch.schema.names, image, PATHS, "image", str(file))
    return [file.parent / text for text in _texts(batch, name)]


def _column(names: list[str], given: str | None, usual: Iterable[str], key: str, path: str) -> str:
    if given is not None and given not in names:
        raise UserError(f"'{path}': data.{key}: {unknown('column', given, names)}")
    found = given or next((name for name in usual if name in names), None)
    if found is None:
        raise UserError(f"'{path}' has the columns {', '.join(names)}; which is it? data.{key}=...")
    return found


def _texts(batch: pa.RecordBatch, name: str) -> list[str]:
    cells = as_text(plain(batch.column(name), name, pa.array([""])))
    return ["" if text is None else text for text in cells.to_pylist()]


def _splits(batch: pa.RecordBatch, name: str, file: Path, before: int, dialect: Dialect) -> list[int]:
    _column(batch.schema.names, name, (), "split", str(file))
    texts = _texts(batch, name)
    if bad := [row for row, text in enumerate(texts) if text not in SPLITS]:
        place = locate(str(file), before + bad[0], dialect=dialect)
        raise UserError(f"{place}, column '{name}': {texts[bad[0]]!r} is not train, val or test.")
    return [SPLITS.index(text) for text in texts]


def _of_folder(path: str, given: int) -> list[Item]:
    root = Path(path)
    if (folders := _folders(root)) is None:
        raise UserError(
            f"there is no folder '{path}'{near(root)} Give one that has a folder of pictures for each class."
        )
    splits = [entry for entry in folders if entry.name in HUB_NAMES]
    if splits and given < 0:
        if len(pictures_in(root)) != sum(len(pictures_in(entry)) for entry in splits):
            raise UserError(
                f"some pictures of '{path}' are in {', '.join(entry.name for entry in splits)} and some are not; put "
                "all of them in, or none."
            )
        return [item for entry in splits for item in _of_folder(str(entry), HUB_NAMES[entry.name])]
    if loose := [file for file in pictures_in(root) if file.parent == root]:
        raise UserError(f"{len(loose)} pictures are in the folder of no class ({loose[0]}, ...); move or remove them.")
    found: list[Item] = []
    for folder in folders:
        pictures = pictures_in(folder)
        if not pictures:
            raise UserError(f"'{folder}' holds no picture ({', '.join(sorted(SUFFIXES))}); remove it, or fill it.")
        found += [Item(ReadFile(str(file)), str(file), folder.name, given) for file in pictures]
    if not found:
        raise UserError(f"'{path}' has no folder of pictures; make one for each class, {path}/<class>/*.png.")
    return found


def pictures_in(root: Path) -> list[Path]:
    return [file for file in files_in(root) if file.suffix.lower() in SUFFIXES]


def _folders(root: Path) -> list[Path] | None:
    """Those in a folder that are not hidden; None where there is no folder."""
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"the folder '{error.filename}' cannot be read: {error.strerror}.") from error


class ReadFile:
    """Reads a file; a class, so that worker processes can be given it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self) -> bytes:
        return Path(self.file).read_bytes()


class _ReadHub:
    """Reads a row of a dataset, which is memory-mapped, with its pictures as they are stored."""

    def __init__(self, rows: Any, column: str, row: int) -> None:
        self.rows, self.column, self.row = rows, column, row

    def __call__(self) -> bytes:
        held = self.rows[self.row][self.column]
        if held is None:
            raise FileNotFoundError("the cell is empty")
        return held["bytes"] or Path(held["path"]).read_bytes()


def _of_hub(path: str, given: int, split: str, columns: Columns) -> list[Item]:
    from datasets import ClassLabel
    from datasets import Image as Feature

    rows = hub(path)[split]
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, Feature)]
    classes = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if not pictures or not (classes or columns.target):
        raise UserError(
            f"the dataset '{path}' has no column of pictures with classes: {', '.join(rows.features)}. A column of "
            "other labels is data.target=..."
        )
    picture = _column(pictures, columns.image, pictures, "image", path)
    label = _column(list(rows.features), columns.target, classes, "target", path)
    names = getattr(rows.features[label], "names", None)  # of classes that are codes
    labels = ["" if c is None or (names and c < 0) else names[c] if names else str(c) for c in rows[label]]
    rows = rows.cast_column(picture, Feature(decode=False))
    return [
        Item(_ReadHub(rows, picture, row), f"{path} {split} row {row + 1} ({rows._fingerprint})", name, given)
        for row, name in enumerate(labels)
    ]

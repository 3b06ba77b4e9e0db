"""Pictures of the user: folders of files, or a hub dataset. Decoded in worker processes, augmented on the device.

N pictures, C channels, H x W pixels.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import Tensor

from research.data.base import Inputs
from research.data.batches import Rows
from research.data.file_data import HUB_NAMES, FileData, classes_of
from research.data.files import HUB, files_in, hub, near
from research.data.honesty import warn
from research.data.spec import Spec
from research.data.splits import Listing
from research.engine.disk_cache import code, kept
from research.engine.errors import UserError
from research.engine.values import Pixels, Processes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_BROKEN = 0.01  # of the files
MAX_WORKERS = 8
BATCH = 64  # pictures that are predicted together
Item = tuple[Callable[[], bytes], str, str, int]  # reads the picture; its name; its class; its split or -1


class ImageData(FileData):
    """FOLDER/<class>/*.png, or FOLDER/{train,val,test}/<class>/*.png, or hub:NAME.

    Args:
        size: H and W; a picture is scaled to cover the square, then cut at its middle.
        channels: 3 for colours, 1 for grey. Transparent parts are white.
        num_workers: processes that decode; None for one a core, up to 8.
    """

    def __init__(self, size: Pixels, channels: Literal[1, 3], num_workers: Processes | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.size, self.channels = size, channels
        self.num_workers = min(os.cpu_count() or 1, MAX_WORKERS) if num_workers is None else num_workers

    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures, looks at each once, splits; once."""
        if self.rows:
            return
        items = [item for source in self.sources() for item in self._items(*source)]
        seen = self._looked_at(items)
        items, seen = self._readable(items, seen)
        names = [label for _, _, label, _ in items]
        classes = self.fitted.classes if self.fitted else classes_of(sorted(set(names)), len(items), "folder")
        if strange := sorted(set(names) - set(classes)):
            fix = f" Name the folder of one split, .../{strange[0]} say." if strange[0] in HUB_NAMES else ""
            raise UserError(f"'{strange[0]}' is not one of the run's classes: {', '.join(classes[:10])}.{fix}")
        codes = {name: code for code, name in enumerate(classes)}
        y = torch.tensor([codes[name] for name in names])
        identity = np.array([int(picture["hash"], 16) for picture in seen], dtype=np.uint64)
        given = np.array([split for *_, split in items], dtype=np.int8)
        self.ids = self.divide(Listing(y, classes, identity, given=None if (given < 0).any() else given))
        self.rows = {
            name: ImageRows([items[i][0] for i in part], y[part], self.channels, self.size)
            for name, part in self.ids.items()
        }
        self.sizes = [(picture["width"], picture["height"]) for picture in seen]
        content = hashlib.sha256(repr((self.size, self.channels, [p["hash"] for p in seen], names)).encode())
        self.fingerprint = content.hexdigest()
        self.spec = self.fitted or self._fit(np.array([p["moments"] for p in seen]), y, classes)

    def inputs(self, path: str) -> Iterator[Inputs]:
        """The pictures of a folder, or one; their names as the only column."""
        assert self.fitted
        root = Path(path)
        if path == "-" or not root.exists():
            raise UserError(f"there is no picture or folder '{path}'.")
        files = [root] if root.is_file() else _pictures(root)
        if not files:
            raise UserError(f"'{path}' holds no picture ({', '.join(sorted(SUFFIXES))}).")
        if root.is_dir():
            self._tell_others(root)
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            found = self._each(lambda file: _tried(file, self.channels, self.size), part)
            good = torch.tensor([row for row, value in enumerate(found) if not isinstance(value, str)])
            names = [str(file.relative_to(root) if file != root else file) for file in part]
            wrong = [(row, f"{names[row]}: {value}") for row, value in enumerate(found) if isinstance(value, str)]
            x = [value for value in found if not isinstance(value, str)]
            pixels = torch.from_numpy(np.stack(x)).float() / 255 if x else torch.empty(0)
            yield Inputs(pa.record_batch({"file": names}), pixels, good.long(), wrong)

    def _items(self, given: int, path: str, split: str) -> list[Item]:
        """The pictures of a source, in an order that is always the same."""
        if path.startswith(HUB):
            return _of_hub(path, given, split)
        found = _of_folder(path, given)
        self._tell_others(Path(path))
        return found

    def _tell_others(self, root: Path) -> None:
        """Says which files of a folder are not looked at; hidden ones are nobody's pictures."""
        others = Counter(
            file.suffix.lower() or "no suffix"
            for file in files_in(root)
            if file.suffix.lower() not in SUFFIXES and not file.name.startswith(".")
        )
        if others:
            told = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(10))
            text = "'%s' holds files that are not read as pictures: %s (those that are: %s)"
            warn(self.findings, text, root, told, ", ".join(sorted(SUFFIXES)))

    def _looked_at(self, items: list[Item]) -> list[dict[str, Any]]:
        """Of each picture its size, a hash of its pixels, and their mean and mean square; or what is wrong with it.

        This decodes every file once, and keeps what it saw in the cache.
        """

        def look(item: Item) -> dict[str, Any]:
            try:
                content = item[0]()
            except OSError as error:  # which a change of permissions mends, and no change of the file
                return {"wrong": error.strerror or str(error), "again": True}
            try:
                pixels, (width, height) = pixels_of(content, self.channels, self.size)
            except Exception as error:  # whatever Pillow finds
                return {"wrong": _said(error)}
            scaled = pixels.astype(np.float64) / 255
            moments = [*scaled.mean((1, 2)).tolist(), *(scaled**2).mean((1, 2)).tolist()]
            digest = hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()
            return {"width": width, "height": height, "hash": digest, "moments": moments}

        def make(path: Path) -> None:
            path.write_text(json.dumps(self._each(look, items)), encoding="utf-8")

        if not self.cache:
            return self._each(look, items)
        key = hashlib.sha256(repr((self.size, self.channels, PIL.__version__, code([type(self)]))).encode())
        for _, name, _, _ in items:
            key.update(f"{name}\0{_stamp(name)}\0".encode())
        place = Path(self.cache["folder"]) / f"{key.hexdigest()[:32]}.pictures"
        max_bytes = int(float(self.cache["max_bytes"]))
        seen, _ = kept(place, max_bytes, make, lambda path: json.loads(path.read_text("utf-8")))
        return [look(item) if "again" in found else found for item, found in zip(items, seen, strict=True)]

    def _each(self, look: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """What `look` says of each item, by threads: Pillow decodes without the interpreter's lock."""
        pool = ThreadPoolExecutor(max(1, self.num_workers))
        try:
            return list(pool.map(look, items))
        finally:
            pool.shutdown(cancel_futures=True)  # a signal does not wait for pictures that nobody has begun to read

    def _readable(self, items: list[Item], seen: list[dict[str, Any]]) -> tuple[list[Item], list[dict[str, Any]]]:
        """Leaves out what cannot be read, when that is little."""
        wrong = [(item[1], picture["wrong"]) for item, picture in zip(items, seen, strict=True) if "wrong" in picture]
        told = "; ".join(f"{name}: {why}" for name, why in wrong[:10]) + ("; ..." if len(wrong) > 10 else "")
        if len(wrong) > MAX_BROKEN * len(items):
            raise UserError(f"{len(wrong)} of {len(items)} pictures cannot be read: {told}. Mend or remove them.")
        if wrong:
            text = "%d of %d pictures cannot be read and are left out: %s"
            warn(self.findings, text, len(wrong), len(items), told)
        good = [index for index, picture in enumerate(seen) if "wrong" not in picture]
        return [items[index] for index in good], [seen[index] for index in good]

    def _fit(self, moments: Any, y: Tensor, classes: tuple[str, ...]) -> Spec:
        """moments: (N, 2C) mean and mean square of each channel of each picture."""
        train = self.ids["train"].numpy()
        mean, square = np.split(moments[train].mean(0), 2)
        return Spec(
            "image",
            (self.channels, self.size, self.size),
            "class",
            classes,
            x_mean=tuple(mean.tolist()),
            x_std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
            class_counts=tuple(torch.bincount(y[train], minlength=len(classes)).tolist()),
        )


class ImageRows(Rows):
    """Pictures of a split, decoded when asked for.

    Args:
        readers: one for each picture.
        y: (n,) classes.
    """

    def __init__(self, readers: list[Callable[[], bytes]], y: Tensor, channels: int, size: int) -> None:
        super().__init__(torch.empty(0), y)
        self.readers, self.channels, self.size = readers, channels, size

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Takes indices (B,), gives x (B, C, H, W) in [0, 1] and y (B,)."""
        pixels = np.stack([pixels_of(self.readers[i](), self.channels, self.size)[0] for i in index.tolist()])
        return torch.from_numpy(pixels).float() / 255, self.y[index]


def pixels_of(content: bytes, channels: int, size: int) -> tuple[Any, tuple[int, int]]:
    """A picture of any form, size and mode as uint8 (C, H, W); and its own width and height."""
    with Image.open(io.BytesIO(content)) as picture:
        own = picture.size  # before a JPEG is decoded at another
        return _pixels(picture, channels, size), own


def _pixels(picture: Any, channels: int, size: int) -> Any:
    picture.draft("RGB" if channels == 3 else "L", (size, size))  # has a JPEG decoded at the size that is needed
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def _eight_bits(values: Any) -> Any:
    """Of 16 bits, or of floats in [0, 1] (or else up to 255, or to 65535)."""
    whole, values = np.issubdtype(values.dtype, np.integer), values.astype(np.float64)
    most = values.max(initial=0)
    top = 65535.0 if whole or most > 255 else 255.0 if most > 1 else 1.0  # whole numbers: one scale for all pictures
    return np.round(values.clip(0, top) * (255 / top)).astype(np.uint8)


def _of_folder(path: str, given: int) -> list[Item]:
    root = Path(path)
    if (folders := _folders(root)) is None:
        raise UserError(
            f"there is no folder '{path}'{near(root)} Give one that has a folder of pictures for each class."
        )
    splits = [entry for entry in folders if entry.name in HUB_NAMES]
    if splits and given < 0:
        if len(_pictures(root)) != sum(len(_pictures(entry)) for entry in splits):
            raise UserError(
                f"some pictures of '{path}' are in {', '.join(entry.name for entry in splits)} and some are not; put "
                "all of them in, or none."
            )
        return [item for entry in splits for item in _of_folder(str(entry), HUB_NAMES[entry.name])]
    if loose := [file for file in _pictures(root) if file.parent == root]:
        raise UserError(f"{len(loose)} pictures are in the folder of no class ({loose[0]}, ...); move or remove them.")
    found = []
    for folder in folders:
        pictures = _pictures(folder)
        if not pictures:
            raise UserError(f"'{folder}' holds no picture ({', '.join(sorted(SUFFIXES))}); remove it, or fill it.")
        found += [(_Read(str(file)), str(file), folder.name, given) for file in pictures]
    if not found:
        raise UserError(f"'{path}' has no folder of pictures; make one for each class, {path}/<class>/*.png.")
    return found


def _pictures(root: Path) -> list[Path]:
    return [file for file in files_in(root) if file.suffix.lower() in SUFFIXES]


def _folders(root: Path) -> list[Path] | None:
    """Those in a folder that are not hidden; None where there is no folder."""
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"the folder '{error.filename}' cannot be read: {error.strerror}.") from error


class _Read:
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


def _of_hub(path: str, given: int, split: str) -> list[Item]:
    from datasets import ClassLabel
    from datasets import Image as Feature

    rows = hub(path)[split]
    picture = next((name for name, feature in rows.features.items() if isinstance(feature, Feature)), None)
    label = next((name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)), None)
    if picture is None or label is None:
        raise UserError(f"the dataset '{path}' has no column of pictures with classes: {', '.join(rows.features)}.")
    classes, codes = rows.features[label].names, rows[label]
    if bare := [row for row, code in enumerate(codes) if code is None or code < 0]:
        raise UserError(
            f"{len(bare)} of {len(rows)} pictures of '{path}', {split}, have no class, the first is row {bare[0] + 1}; "
            "remove them."
        )
    rows = rows.cast_column(picture, Feature(decode=False))
    names = (f"{path} {split} {rows._fingerprint} {row}" for row in range(len(rows)))
    return [
        (_ReadHub(rows, picture, row), name, classes[code], given)
        for row, (name, code) in enumerate(zip(names, codes, strict=True))
    ]


def _tried(file: Path, channels: int, size: int) -> Any:
    """Pixels, or what is wrong in words."""
    try:
        return pixels_of(file.read_bytes(), channels, size)[0]
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    text = str(error)
    return "it is not a picture" if "cannot identify" in text else text[:100] or type(error).__name__


def _stamp(name: str) -> str:
    try:
        stat = os.stat(name)
        return f"{stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        return ""

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
from research.data.files import HUB, batches, files_in, is_rows
from research.data.honesty import warn
from research.data.image_sources import SUFFIXES, Columns, Item, items_of, listed_files, lists_of, pictures_in
from research.data.spec import Spec
from research.data.splits import Listing
from research.engine.disk_cache import code, kept
from research.engine.errors import UserError
from research.engine.values import Pixels, Processes

MAX_BROKEN = 0.01  # of the files
MAX_WORKERS = 8
BATCH = 64  # pictures that are predicted together


class ImageData(FileData):
    """FOLDER/<class>/*.png, FOLDER/{train,val,test}/<class>/*.png, a file that lists pictures, or hub:NAME.

    Args:
        image: the column of a list that has the paths; None for one that is called so, `file_name` or `path` say.
        target: the column of classes of a list or on the hub; None for one that is called so.
        split: the column of a list that says train, val or test.
        size: H and W; a picture is scaled to cover the square, then cut at its middle.
        channels: 3 for colours, 1 for grey. Transparent parts are white.
        num_workers: processes that decode; None for one a core, up to 8.
    """

    def __init__(
        self,
        image: str | None,
        target: str | None,
        split: str | None,
        size: Pixels,
        channels: Literal[1, 3],
        num_workers: Processes | None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.columns = Columns(image, target, None if self.fitted else split)
        self.size, self.channels = size, channels
        self.num_workers = min(os.cpu_count() or 1, MAX_WORKERS) if num_workers is None else num_workers

    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures, looks at each once, splits; once."""
        if self.rows:
            return
        items = [item for source in self.sources() for item in self._items(*source)]
        seen = self._looked_at(items)
        items, seen = self._readable(items, seen)
        names = [item.label for item in items]
        self._check_labels(items)
        classes = self.fitted.classes if self.fitted else classes_of(sorted({*names} - {""}), len(items), "class")
        if strange := sorted(set(names) - {*classes, ""}):
            fix = f" Name the folder of one split, .../{strange[0]} say." if strange[0] in HUB_NAMES else ""
            raise UserError(f"'{strange[0]}' is not one of the run's classes: {', '.join(classes[:10])}.{fix}")
        codes = {name: code for code, name in enumerate(classes)} | {"": -1}
        y = torch.tensor([codes[name] for name in names])
        identity = np.array([int(picture["hash"], 16) for picture in seen], dtype=np.uint64)
        given = np.array([item.split for item in items], dtype=np.int8)
        self.ids = self.divide(Listing(y, classes, identity, given=None if (given < 0).any() else given))
        self.rows = {
            name: ImageRows([items[i].read for i in part], y[part], self.channels, self.size)
            for name, part in self.ids.items()
        }
        self.sizes = [(picture["width"], picture["height"]) for picture in seen]
        content = hashlib.sha256(repr((self.size, self.channels, [p["hash"] for p in seen], names)).encode())
        self.fingerprint = content.hexdigest()
        self.spec = self.fitted or self._fit(np.array([p["moments"] for p in seen]), y, classes)

    def inputs(self, path: str) -> Iterator[Inputs]:
        """The pictures of a folder, or one, their names as the only column; or the rows of a file that lists them."""
        assert self.fitted
        root = Path(path)
        if path == "-" or not root.exists():
            raise UserError(f"there is no picture or folder '{path}'.")
        if root.is_file() and is_rows(root):
            for batch in batches(path, dialect=self.dialect):
                for start in range(0, len(batch), BATCH):
                    part = batch.slice(start, BATCH)
                    files = listed_files(part, self.columns.image, root)
                    yield self._inputs(part, files, [str(file) for file in files])
            return
        files = [root] if root.is_file() else pictures_in(root)
        if not files:
            raise UserError(f"'{path}' holds no picture ({', '.join(sorted(SUFFIXES))}).")
        if root.is_dir():
            self._tell_others(root)
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            names = [str(file.relative_to(root) if file != root else file) for file in part]
            yield self._inputs(pa.record_batch({"file": names}), part, names)

    def _inputs(self, rows: pa.RecordBatch, files: list[Path], names: list[str]) -> Inputs:
        found = self._each(lambda file: _tried(file, self.channels, self.size), files)
        good = torch.tensor([row for row, value in enumerate(found) if not isinstance(value, str)])
        wrong = [(row, f"{names[row]}: {value}") for row, value in enumerate(found) if isinstance(value, str)]
        x = [value for value in found if not isinstance(value, str)]
        pixels = torch.from_numpy(np.stack(x)).float() / 255 if x else torch.empty(0)
        return Inputs(rows, pixels, good.long(), wrong)

    def _items(self, given: int, path: str, split: str) -> list[Item]:
        found = items_of(path, given, split, self.columns, self.dialect)
        if not path.startswith(HUB) and not lists_of(path):
            self._tell_others(Path(path))
        return found

    def _check_labels(self, items: list[Item]) -> None:
        bare = [item.name for item in items if not item.label]
        if bare and self.unlabelled == "error":
            raise UserError(
                f"{len(bare)} of {len(items)} pictures have no class, the first is {bare[0]}; data.unlabelled=drop "
                "leaves them out."
            )

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
                content = item.read()
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
        for item in items:
            key.update(f"{item.name}\0{_stamp(item.name)}\0".encode())
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
        wrong = [(item.name, picture["wrong"]) for item, picture in zip(items, seen, strict=True) if "wrong" in picture]
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

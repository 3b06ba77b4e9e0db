"""Files and folders that are computed once and kept: keyed by content, limited in size, safe between processes."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

log = logging.getLogger(__name__)
T = TypeVar("T")


def kept(path: Path, max_bytes: int, make: Callable[[Path], object], read: Callable[[Path], T]) -> tuple[T, bool]:
    """What `read` gives of `path`, which `make` writes where it is not there yet; and whether it was there.

    Two processes that want the same at once wait for one another, and the second reads what the first wrote.

    Args:
        path: of the entries with its suffix in its folder, the least recently used go when they exceed `max_bytes`.
        make: writes to the path it is given, a file or a folder.
        read: raises when the entry is damaged, which is then made anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        try:
            value, found = read(path) if path.exists() else None, path.exists()
        except Exception:  # whatever is wrong with it, it can be made anew
            log.warning("cache      '%s' cannot be read and is made anew", path)
            value, found = None, False
        if value is None:
            _make(path, make)
            value = read(path)
        os.utime(path)
    _shrink(path, max_bytes)
    return value, found


def _make(path: Path, make: Callable[[Path], object]) -> None:
    """Beside its place, and then at once there."""
    _remove(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        make(part)
        part.replace(path)
    finally:
        _remove(part)


def _shrink(keep: Path, max_bytes: int) -> None:
    total = 0
    for entry in sorted(keep.parent.glob(f"*{keep.suffix}"), key=lambda entry: entry.stat().st_mtime, reverse=True):
        files = [entry, *entry.rglob("*")] if entry.is_dir() else [entry]
        total += sum(file.stat().st_size for file in files)
        if total > max_bytes and entry != keep:
            _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

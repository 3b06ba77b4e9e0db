"""Files and folders that are computed once and kept: keyed by content, limited in size, safe between processes."""

import errno
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from research.engine.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def kept(path: Path, max_bytes: int, make: Callable[[Path], object], read: Callable[[Path], T]) -> tuple[T, bool]:
    """What `read` gives of `path`, which `make` writes where it is not there yet; and whether it was there.

    Two processes that want the same at once wait for one another, and the second reads what the first wrote.

    Args:
        path: of the entries with its suffix in its folder, the least recently used go when they exceed `max_bytes`.
        make: writes to the path it is given, a file or a folder.
        read: raises when the entry is damaged, which is then made anew.

    Raises:
        UserError: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(path))
        except OSError as error:
            raise _unwritable(path, error) from error
        value, found = _read(path, read)
        if value is None:
            _make(path, make)
            value = read(path)
        os.utime(path)
    _shrink(path, max_bytes)
    return value, found


def code(kinds: Iterable[type], *modules: str) -> str:
    """A hash of the source that makes an entry, which is the user's to change: of classes, their bases, and modules."""
    names = {base.__module__ for kind in kinds for base in kind.__mro__} | set(modules)
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}
    found = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file)
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the cache '{path.parent}' cannot be written: {error.strerror or error}. Give it another place, "
        "cache.folder=..., or go without, cache=null."
    )


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"))


def _read(path: Path, read: Callable[[Path], T]) -> tuple[T | None, bool]:
    if not path.exists():
        return None, False
    try:
        return read(path), True
    except Exception:  # whatever is wrong with it, it can be made anew
        log.warning("cache      '%s' cannot be read and is made anew", path)
        return None, False


def _make(path: Path, make: Callable[[Path], object]) -> None:
    """Beside its place, and then at once there."""
    _remove(path)
    part = path.with_name(f"{path.name}.part")
    _remove(part)  # of a process that was killed
    try:
        make(part)
        part.replace(path)
    except OSError as error:  # else of what it is made from
        if error.errno in FULL:
            raise _unwritable(path, error) from error
        raise
    finally:
        _remove(part)


def _shrink(keep: Path, max_bytes: int) -> None:
    """Removes what was used longest ago, unless another process is at it."""
    total = 0
    for _, entry in sorted(_used(keep), reverse=True):
        total += _size(entry)
        if total > max_bytes and entry != keep:
            with suppress(Timeout), _lock(entry).acquire(timeout=0):
                _remove(entry)


def _used(keep: Path) -> list[tuple[float, Path]]:
    found = []
    for entry in keep.parent.glob(f"*{keep.suffix}"):
        with suppress(FileNotFoundError):  # another process removes, too
            found.append((entry.stat().st_mtime, entry))
    return found


def _size(entry: Path) -> int:
    total = 0
    for file in [entry, *entry.rglob("*")] if entry.is_dir() else [entry]:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

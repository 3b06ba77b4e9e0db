"""Files that are whole or not there: written beside their place, on the disk before they take it, then renamed.

A file may carry a seal, the hash of its content and a few facts, in the comment of its zip archive: any tool that opens
the archive still does. Nothing here imports torch.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

PART = ".part"


class Raw:
    """A file as a writer of archives needs it, with the system's own calls and nothing in between."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of it."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]
        return len(data)

    def flush(self) -> None:
        """There is no buffer."""


def replace(path: Path, write: Callable[[Raw], object], before: Callable[[], object] = lambda: None) -> None:
    """Puts a new file in the place of `path`, or leaves what is there as it is.

    Args:
        write: fills the file.
        before: is called when the new file is whole and on the disk, and not yet in its place.

    Raises:
        OSError: it could not be written.
    """
    part = path.with_name(path.name + PART)
    _remove(part)  # never written into: it may be a second name of a file in use
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write(Raw(descriptor))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        before()
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            _remove(part)
        raise
    sync(path.parent)


def link(path: Path, name: Path) -> None:
    """Gives the file `path` a second name, in place of what has it now; a copy where the disk knows no links."""
    part = name.with_name(name.name + PART)
    _remove(part)
    try:
        os.link(path, part)
    except OSError:
        data = path.read_bytes()
        replace(name, lambda file: file.write(data))
        return
    os.replace(part, name)
    _remove(part)  # which is still there when both were names of one file
    sync(name.parent)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync(folder: Path) -> None:
    """Has the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sealing:
    """Writes an archive on, hashes it, and puts the seal where the archive ends.

    Args:
        file: where it goes.
        facts: plain values that the seal tells without the content being read.
    """

    def __init__(self, file: Raw, facts: dict[str, Any]) -> None:
        self.file, self.facts, self.hash, self.held = file, facts, hashlib.sha256(), b""

    def write(self, data: bytes | memoryview) -> int:
        """Holds the last two bytes back, which at the end are the length of the archive's comment."""
        if len(data) < 2:
            data = self.held + bytes(data)
        else:
            self._put(self.held)
        view = memoryview(data)
        self._put(view[:-2])  # no copy: that would keep the training thread waiting
        self.held = bytes(view[-2:])
        return len(data)

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Ends the archive with its seal."""
        assert self.held == b"\0\0", "an archive that has no comment ends with its length, 0"
        told = json.dumps(self.facts).encode()
        self._put((len(told) + 64).to_bytes(2, "little") + told)
        self.file.write(self.hash.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.file.write(data)


def facts(path: Path) -> dict[str, Any]:
    """What the seal of a file says, unchecked.

    Raises:
        ValueError: there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.comment[:-64])
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError("it is cut short, or was not written by a run") from error


def seal(path: Path) -> str:
    """The hash that a sealed file says its content has."""
    with path.open("rb") as file:
        file.seek(-64, os.SEEK_END)
        return file.read().decode()


def content(path: Path) -> BytesIO:
    """The bytes of a sealed file.

    Raises:
        ValueError: it is not what was written.
    """
    data = path.read_bytes()
    if hashlib.sha256(memoryview(data)[:-64]).hexdigest().encode() != data[-64:]:
        raise ValueError("it is not what was written: its content does not match its hash")
    return BytesIO(data)

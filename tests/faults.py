"""Makes things go wrong, on purpose and at a chosen moment: runs in forked processes, file operations that fail.

A forked run starts at once, as its packages are imported already, and may be killed like any other process.
"""

import errno
import multiprocessing.util
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES", "EXDEV")}
OPERATIONS = ("open", "write", "fsync", "close", "replace", "link", "unlink")


def forked(job: Callable[[], Any], out: Path) -> int:
    """Starts `job` in a process of its own, whose output goes to a file; gives its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        job()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        multiprocessing.util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]  # as any process that ends: it waits for those it has started
        os._exit(code)


def train(*words: str) -> None:
    """`python src/train.py words`, in this process."""
    import torch

    from research.engine.launch import launch

    torch.set_num_threads(1)
    warnings.resetwarnings()  # which are errors in tests
    sys.argv = ["src/train.py", *words]
    launch("train")


def ended(pid: int, timeout_s: float = 120) -> int:
    """The exit code of a process, negative for the signal that killed it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"no end in {timeout_s} s")


def put(owner: Any, name: str, value: Any) -> None:
    """Replaces an attribute, in this process."""
    setattr(owner, name, value)


@contextmanager
def failing(folder: Path, at: Container[int], how: str) -> Iterator[list[str]]:
    """Has operations on the files of a folder fail, and gives the list of those that were called.

    Args:
        at: which operations, counted from 0.
        how: the name of an error, or `SIGKILL`. A write that fails has written half.
    """
    real = {name: getattr(os, name) for name in OPERATIONS}
    ours: set[int] = set()
    called: list[str] = []

    def wrapped(name: str) -> Callable[..., Any]:
        def call(first: Any, *more: Any, **named: Any) -> Any:
            path = None if isinstance(first, int) else Path(os.fsdecode(first))
            if not (first in ours or (path and (path.parent == folder or (name == "open" and path == folder)))):
                return real[name](first, *more, **named)
            called.append(name)
            if len(called) - 1 in at:
                if name == "write":
                    real["write"](first, bytes(more[0])[: len(more[0]) // 2])
                if how == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                if name == "close":
                    real["close"](first)
                raise OSError(ERRORS[how], os.strerror(ERRORS[how]))
            found = real[name](first, *more, **named)
            if name == "open":
                ours.add(found)
            if name == "close":
                ours.discard(first)
            return found

        return call

    for name in OPERATIONS:
        setattr(os, name, wrapped(name))
    try:
        yield called
    finally:
        for name in OPERATIONS:
            setattr(os, name, real[name])

"""The checkpoints of a run: tensors and plain values, each file sealed with the hash of its content.

`best.ckpt` is the best by the run's monitor, `last.ckpt` the newest, `last-1.ckpt` the one before it.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor

from research.engine.durable import PART, Sealing, content, facts, link, replace, sync
from research.engine.errors import UserError, trace

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
BEST, LAST, DAMAGED = "best.ckpt", "last.ckpt", ".damaged"


def path_of(run: Path, which: str) -> Path:
    """Where a run has its checkpoint `best` or `last`."""
    return run / FOLDER / f"{which}.ckpt"


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running code from it.

    Raises:
        UserError: it is missing, is not what was written, or holds anything but plain tensors and plain values.
    """
    try:
        # A sparse tensor may have indices outside its own memory. The check is a switch of the whole process, which
        # another thread may turn off meanwhile; so no such tensor is let through either.
        with torch.sparse.check_sparse_tensor_invariants():
            found = torch.load(content(path), map_location="cpu", weights_only=True)
        _refuse_strange(found)
        return found
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint '{path}'; did the run finish an epoch?") from None
    except Exception as error:
        raise UserError(f"the checkpoint '{path}' is damaged: {str(error).rstrip(chr(46))}.") from error


def _refuse_strange(node: Any) -> None:
    """Raises a ValueError for tensors of any other kind than runs save: sparse, quantized, nested, without memory."""
    if isinstance(node, Tensor):
        plain = (
            type(node) in (Tensor, torch.nn.Parameter) and node.layout is torch.strided and node.device.type == "cpu"
        )
        if not plain or node.is_quantized or node.is_nested:
            raise ValueError(f"it holds a tensor of another kind than runs save: {type(node).__name__}, {node.layout}")
    elif isinstance(node, dict):
        for value in node.values():
            _refuse_strange(value)
    elif isinstance(node, list | tuple | set):
        for value in node:
            _refuse_strange(value)


def newest(run: Path, tidy: bool = True) -> tuple[Path, dict[str, Any]]:
    """The good checkpoint of a run that is furthest on, and its content.

    Files that are damaged are told, and put aside under another name, so that no good one is ever replaced by one:
    those that are tried, and the best and the last in any case.

    Args:
        tidy: whether no other process may be writing there.

    Raises:
        UserError: there is no good one; the reason for each file is told.
    """
    for part in (run / FOLDER).glob(f"*{PART}") if tidy else ():  # of a process that was killed
        part.unlink()
    found, reasons = [], []
    for path in sorted((run / FOLDER).glob("*.ckpt")):
        try:
            said = facts(path)
            found.append((said["step"], said["epoch"], said["batch"], path.name == LAST, path))
        except Exception as error:  # of whatever stands there
            reasons.append(_put_aside(path, str(error)))
    chosen: tuple[Path, dict[str, Any]] | None = None
    for *_, path in sorted(found, reverse=True):
        try:
            if chosen is None:
                chosen = path, load(path)
            elif path.name in (BEST, LAST) and not path.samefile(chosen[0]):
                content(path)
        except (UserError, ValueError) as error:
            reasons.append(_put_aside(path, str(error)))
    if chosen:
        return chosen
    raise UserError(f"'{run}' has no checkpoint to go on from. {' '.join(reasons)}".strip())


def _put_aside(path: Path, why: str) -> str:
    told = f"'{path.name}' is not used: {why}"
    log.warning("damaged    %s", told)
    path.replace(path.with_name(path.name + DAMAGED))
    return told


class Files(CheckpointIO):
    """Writes checkpoints beside the training: copied at once, and written, hashed and put in place by a thread.

    The thread waits for `begin`. A save that fails leaves the files as they were; it is a warning, and `failures`
    counts those in a row.
    """

    def __init__(self) -> None:
        self.opened: tuple[Path, dict[str, Any]] | None = None  # a checkpoint that is read already
        self.failures = 0
        self.error: OSError | None = None
        self.written: dict[str, int] = {}  # the step of each file that this process put in place
        self.waiting = False  # a copy is made and is not being written yet
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._work: Future[None] | None = None
        self._copy = Copy()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._work is not None and not self._work.done()

    def wait(self) -> None:
        """Until what is saved is in its place, or has failed."""
        self.begin()
        work, self._work = self._work, None
        if work:
            work.result()

    def reserve(self, checkpoint: dict[str, Any]) -> None:
        """Gets the memory for copies of a checkpoint like this, in the thread: new memory is slower than copying."""
        self.wait()
        self._work = self._thread.submit(self._copy.reserve, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copies a checkpoint, which is written when `begin` is called.

        Args:
            storage_options: `names`, all the files of the folder that shall be this checkpoint, in the order in which
                they become it, and how many of the newest to `keep`; without them the file is written before this ends.
        """
        self.wait()
        taken = self._copy.of(checkpoint)
        if storage_options is None:
            self._write(taken, [Path(path)], 1)
            if self.error:
                raise self.error
            return
        names = [Path(path).with_name(name) for name in storage_options["names"]]
        self._last, self.waiting = (taken, names, storage_options["keep"]), True

    def begin(self) -> None:
        """Has the last copy written, where that has not begun."""
        if self.waiting:
            self.waiting, self._work = False, self._thread.submit(self._write, *self._last)

    def again(self) -> None:
        """Writes the last checkpoint once more, now."""
        self._write(*self._last)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.wait()
        opened, self.opened = self.opened, None
        return opened[1] if opened and opened[0] == Path(path) else load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        self.wait()
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        self.wait()  # the thread stays: a search before the fit tears down as well

    def _write(self, checkpoint: dict[str, Any], paths: Sequence[Path], keep: int) -> None:
        said = {"step": checkpoint["global_step"], **checkpoint.get("position", {"epoch": 0, "batch": 0})}

        def write(file: Any) -> None:
            sealing: Any = Sealing(file, said)
            try:
                torch.save(checkpoint, sealing)
            except RuntimeError as error:  # by which torch says that it could not end a file that could not be written
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            sealing.close()

        first, *others = paths
        try:
            if not first.parent.is_dir():
                first.parent.mkdir(parents=True)
                sync(first.parent.parent)
            newest = any(path.name == LAST for path in paths)
            replace(first, write, before=lambda: _rotate(first.parent, keep) if newest else None)
            self.written[first.name] = said["step"]
            for other in others:
                link(first, other)
                self.written[other.name] = said["step"]
        except OSError as error:
            self.failures, self.error = self.failures + 1, error
            log.warning("NOT SAVED  the checkpoint of step %d: %s", said["step"], error)
        else:
            self.failures, self.error = 0, None
            trace.debug("saved      step %d as %s", said["step"], ", ".join(path.name for path in paths))


def _rotate(folder: Path, keep: int) -> None:
    """Gives the newest checkpoints the names of the ones before them; the oldest goes."""
    names = [folder / LAST, *(folder / f"last-{age}.ckpt" for age in range(1, keep))]
    for older, newer in zip(names[::-1], names[-2::-1], strict=False):
        if newer.exists():
            link(newer, older)
    for path in folder.glob("last-*.ckpt"):
        if path not in names:
            path.unlink()


class Copy:
    """Copies nested containers of tensors, on the CPU, into the same memory each time."""

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], Tensor] = {}
        self._seen: dict[tuple[Any, ...], Tensor] = {}

    def of(self, tree: Any) -> Any:
        """The copy, which is good until the next one is made."""
        self._seen = {}
        return self._each(tree, (), lambda kept, tensor: kept.copy_(tensor.detach()))

    def reserve(self, tree: Any) -> None:
        """Gets the memory alone."""
        self._seen = {}
        self._each(tree, (), lambda kept, tensor: kept.zero_())

    def _each(self, node: Any, place: tuple[Any, ...], fill: Callable[[Tensor, Tensor], Tensor]) -> Any:
        if isinstance(node, Tensor):
            same = (node.data_ptr(), node.shape, node.stride(), node.dtype) if node.numel() else place
            if same not in self._seen:  # else tied to one that is copied already
                kept = self._memory.get(place)
                if kept is None or kept.shape != node.shape or kept.dtype != node.dtype:
                    kept = self._memory[place] = torch.empty(node.shape, dtype=node.dtype)
                self._seen[same] = fill(kept, node)
            return self._seen[same]
        if isinstance(node, dict):
            made = copy(node)
            made.update({key: self._each(value, (*place, key), fill) for key, value in node.items()})
            return made
        if isinstance(node, list | tuple) and type(node) in (list, tuple):
            return type(node)(self._each(value, (*place, i), fill) for i, value in enumerate(node))
        return deepcopy(node)

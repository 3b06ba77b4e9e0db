"""What is told to the user without a traceback."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

trace = logging.getLogger("research.traceback")  # to the run's log only, see conf/hydra/job_logging


class UserError(ValueError):
    """A mistake in a command, a config or an input.

    Args:
        problems: one sentence each: what was given, what is allowed, the fix.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OtherRank(Exception):
    """Another process of the run failed first.

    Args:
        rank: of that process.
        error: its error, in a line.
        trace: its traceback.
    """

    def __init__(self, rank: int, error: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {error}")
        self.rank, self.trace = rank, trace


def said(error: BaseException) -> str:
    """An error in a line."""
    if isinstance(error, OtherRank):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def unreadable(error: OSError, settings: Any) -> str:
    """The sentences for a file that a class of the user's needs when it is made, with the setting that names it."""
    if not error.filename:
        return f"{error}."
    path = Path(str(error.filename))
    told = f"'{path}' cannot be read: {error.strerror}"
    told += "" if path.is_absolute() else f" in '{Path.cwd()}', where the command runs"
    for key, value in _leaves(settings):
        if isinstance(value, str) and value and Path(value) in (path, *path.parents):
            return f"{told}. {key} names it; put it back, or give another, {key}=..."
    return f"{told}. No setting names it, the class itself does; put it back."


def _leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict | list):
        yield place, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{place}.{key}" if place else str(key))


def unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among the `allowed` ones, with the nearest of them."""
    names = sorted(allowed)
    near = get_close_matches(given, names, n=3, cutoff=0.5)
    near.sort(key=lambda name: sorted(name) != sorted(given))  # two letters the wrong way round come first
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"no {what} '{given}'{hint} Allowed: {', '.join(names)}."


def told(problems: Sequence[str]) -> str:
    """What the user reads."""
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} mistakes", *(f"  - {problem}" for problem in problems)])

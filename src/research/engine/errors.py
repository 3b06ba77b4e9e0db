"""What is told to the user without a traceback."""

import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

trace = logging.getLogger("research.traceback")  # to the run's log only, see conf/hydra/job_logging


class UserError(ValueError):
    """A mistake in a command, a config or an input.

    Args:
        problems: one sentence each: what was given, what is allowed, the fix.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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

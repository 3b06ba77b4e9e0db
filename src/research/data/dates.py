"""A date as the numbers a network can learn from: how far along it is, and its place in the year, week and day."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DAY_MS = 86_400_000
YEAR_DAYS = 365.2425
MONDAY = 4  # days from 1970-01-01, a Thursday, to a Monday
PARTS = ("days", "year sin", "year cos", "week sin", "week cos", "day sin", "day cos")


def parts_of(days_vary: bool, has_week: bool, has_time: bool) -> tuple[str, ...]:
    """The parts that dates of one format have.

    Args:
        days_vary: false for times of a day alone.
        has_week: false for months.
        has_time: whether dates have a time of the day.
    """
    if not days_vary:
        return PARTS[5:]
    return (*PARTS[:3], *(PARTS[3:5] if has_week else ()), *(PARTS[5:] if has_time else ()))


def part_of(days: Array, part: str) -> Array:
    """(B,) a part of dates, given as days since 1970 in float64; NaN stays."""
    if part == "days":
        return days
    cycle, wave = part.split()
    turns = {"year": days / YEAR_DAYS, "week": (days - MONDAY) / 7, "day": days}[cycle]
    return (np.sin if wave == "sin" else np.cos)(2 * np.pi * (turns % 1))

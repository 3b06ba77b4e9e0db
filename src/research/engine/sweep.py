"""The end of a sweep: the test metrics of its runs, those that differ in seed or fold alone put together."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from research.engine.record import finite

REPEATS = ("seed", "data.fold", "data.split_seed")  # another value makes the same experiment again


def summarize(folders: Iterable[Path]) -> None:
    """Prints a row for each experiment: how many runs, and mean and standard deviation of each test metric over them.

    Args:
        folders: of the runs; those without metrics are left out.
    """
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        if (folder / "metrics.json").is_file():
            words: list[str] = json.loads((folder / "run.json").read_text("utf-8"))["overrides"]
            kept = tuple(word for word in words if word.split("=")[0].lstrip("+") not in REPEATS)
            runs[kept].append(finite(json.loads((folder / "metrics.json").read_text("utf-8"))))
    if sum(map(len, runs.values())) < 2:
        return
    all_metrics = (metrics for found in runs.values() for metrics in found)  # of a classification, of a regression
    names = list(dict.fromkeys(name for metrics in all_metrics for name in metrics if name.startswith("test/")))
    shared = set.intersection(*(set(words) for words in runs))
    table = Table("", "runs", *names, box=SIMPLE_HEAD)
    for key, found in runs.items():
        label = " ".join(word for word in key if word not in shared) or "all"
        cells = (_spread([run[name] for run in found if name in run]) for name in names)
        table.add_row(label, str(len(found)), *cells)
    width = Console(width=10_000).measure(table).maximum  # a name that is cut says nothing
    Console(width=width).print(table)


def _spread(values: list[float | None]) -> str:
    """None is of a run whose metric was no number, which is not left out without a word."""
    there = [value for value in values if value is not None]
    if not there:
        return "no number" if values else ""
    told = f"{mean(there):.3f} ± {stdev(there):.3f}" if len(there) > 1 else f"{there[0]:.3f}"
    return told if len(there) == len(values) else f"{told} ({len(there)} of {len(values)})"

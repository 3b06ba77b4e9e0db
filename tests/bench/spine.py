"""`make bench`: the default run against the same work by hand, alternating, and the time to a first word.

Prints medians and ratios; the machine is noisy, so read the ratios. Nothing is asserted.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
PAIRS = 5


def timed(*words: str) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, check=False, env={**os.environ, "COLUMNS": "100"}
    )
    return time.perf_counter() - start


def steps_per_s(folder: Path) -> float:
    """From the wall times of the second and the last epoch's point of the val/loss curve."""
    events = EventAccumulator(str(folder))
    events.Reload()
    points = events.Scalars("val/loss")[1:]
    return (points[-1].step - points[0].step) / (points[-1].wall_time - points[0].wall_time)


def pair(model: str, epochs: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Whole-process seconds and steps per second, ours and by hand."""
    ours_s, hand_s, ours_rate, hand_rate = [], [], [], []
    for _ in range(PAIRS):
        with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as hand:
            settings = (
                f"hydra.run.dir={ours}",
                f"trainer.max_epochs={epochs}",
                "callbacks.early_stopping.patience=1000",
            )
            ours_s.append(timed("src/train.py", f"model={model}", *settings))
            hand_s.append(timed("tests/bench/by_hand.py", hand, model, str(epochs)))
            ours_rate.append(steps_per_s(Path(ours)))
            hand_rate.append(steps_per_s(Path(hand)))
    return ours_s, hand_s, ours_rate, hand_rate


def row(table: Table, what: str, ours: list[float], hand: list[float], unit: str, aim: str) -> None:
    ratios = [a / b for a, b in zip(ours, hand, strict=True)]
    cells = f"{statistics.median(ours):.1f}", f"{statistics.median(hand):.1f}", f"{statistics.median(ratios):.2f}"
    table.add_row(f"{what} ({unit})", *cells, f"{min(ratios):.2f} - {max(ratios):.2f}", aim)


def main() -> None:
    table = Table("what", "ours", "by hand", "ratio", "range", "aim")
    for model, aim_process, aim_rate in (("mlp", "<= 1.5", ""), ("cnn", "", ">= 0.95")):
        ours_s, hand_s, ours_rate, hand_rate = pair(model, 20)
        row(table, f"{model}: whole process, 20 epochs", ours_s, hand_s, "s", aim_process)
        row(table, f"{model}: training, all on", ours_rate, hand_rate, "steps/s", aim_rate)
    for what, words in (("config error", ["trainer.max_epochs=ten", "model=mpl"]), ("--help", ["--help"])):
        seconds = [timed("src/train.py", *words) for _ in range(PAIRS)]
        table.add_row(f"{what} (s)", f"{statistics.median(seconds):.2f}", "", "", "", "< 0.7")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

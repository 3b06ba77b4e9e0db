"""`make bench`: the user's own data: batches against `datasets` and a stock DataLoader, memory, predictions.

python tests/bench/data.py [tables pictures predictions memories]

Both sides read the same files and give the same numbers, alternating: of a table floats and the codes of a category,
which `datasets` gives as a tensor a column and this project as one tensor; of a picture the same pixels, a JPEG decoded
no larger than is needed, bilinear. Nothing is asserted.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.console import Console
from rich.table import Table
from spine import ROOT
from torch.utils.data import DataLoader

PAIRS = 3
COLUMNS = 20
BATCH_ROWS, BATCH_PICTURES = 128, 64
CONSOLE = Console(width=110)


def write_table(path: Path, num_rows: int) -> None:
    """A CSV of numbers, one category and a target, in pieces."""
    draw = np.random.default_rng(0)
    names = [f"x{i}" for i in range(COLUMNS - 1)]
    writer = None
    for start in range(0, num_rows, 100_000):
        count = min(100_000, num_rows - start)
        x = draw.normal(size=(count, len(names))).round(4)
        kind = np.array(["red", "green", "blue"])[draw.integers(3, size=count)]
        values = {
            **dict(zip(names, x.T, strict=True)),
            "kind": kind,
            "y": (x.sum(1) + draw.normal(size=count)).round(3),
        }
        batch = pa.table({name: pa.array(value) for name, value in values.items()})
        writer = writer or pyarrow.csv.CSVWriter(str(path), batch.schema)
        writer.write_table(batch)
    assert writer
    writer.close()


def write_pictures(place: Path, count: int, size: int, suffix: str) -> None:
    draw = np.random.default_rng(0)
    blurred = draw.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    for index in range(count):
        folder = place / f"class{index % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.roll(blurred, index, 0) ^ np.uint8(index % 251)).resize((size, size))
        picture.save(folder / f"{index:06}{suffix}")


def ours(*words: str) -> Any:
    """The DataModule of a command, set up."""
    from research.engine.build import read_data

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read_data(compose("train", ["cache.max_bytes=4e10", *words]))


def batches_per_s(loader: Callable[[], Iterable[Any]]) -> float:
    start, count = time.perf_counter(), 0
    for _ in loader():
        count += 1
    return count / (time.perf_counter() - start)


def compare(table: Table, what: str, sides: tuple[Callable[[], Iterable[Any]], ...], aim: str) -> None:
    for side in sides:
        batches_per_s(side)  # both warm
    rates = [[batches_per_s(side) for side in sides] for _ in range(PAIRS)]
    ratios = [a / b for a, b in rates]
    our, peer = (statistics.median(side) for side in zip(*rates, strict=True))
    spread = f"{min(ratios):.1f} - {max(ratios):.1f}"
    table.add_row(what, f"{our:.0f}", f"{peer:.0f}", f"{statistics.median(ratios):.1f}", spread, aim)


def rates() -> Table:
    return Table("batches a second", "ours", "datasets", "times", "range", "aim")


def tables(place: Path) -> None:
    from datasets import Dataset

    path = place / "table.csv"
    write_table(path, 200_000)
    data = ours("data=table", f"data.path={path}", "data.target=y", f"cache.folder={place}/cache")
    peer: Any = Dataset.from_csv(str(path), cache_dir=str(place / "peer"))
    peer = (
        peer.class_encode_column("kind").select(range(len(data.rows["train"]))).flatten_indices().with_format("torch")
    )
    sides = (data.train_dataloader, lambda: DataLoader(peer, batch_size=BATCH_ROWS, shuffle=True))
    table = rates()
    compare(table, "table, 140,000 rows x 20, shuffled", sides, ">= 10")
    CONSOLE.print(table)


def pixels(rows: dict[str, Any]) -> dict[str, Any]:
    """What the peer makes of pictures as they are in their files."""
    x = []
    for held in rows["image"]:
        with Image.open(held["path"] if held["bytes"] is None else io.BytesIO(held["bytes"])) as picture:
            picture.draft("RGB", (64, 64))
            made = np.array(picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
        x.append(torch.from_numpy(made).permute(2, 0, 1).float() / 255)
    return {"x": x, "label": rows["label"]}


def pictures(place: Path) -> None:
    from datasets import Image as Feature
    from datasets import load_dataset

    table = rates()
    for suffix in (".jpg", ".png"):
        folder = place / suffix[1:]
        write_pictures(folder, 1500, 256, suffix)
        words = ("data.duplicates=keep", f"data.batch_size={BATCH_PICTURES}", f"cache.folder={place}/cache")
        data = ours("data=images", f"data.path={folder}", "data.num_workers=2", *words)
        found: Any = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(place / "peer"), split="train")
        found = found.cast_column("image", Feature(decode=False)).shuffle(0).select(range(len(data.rows["train"])))
        peer = found.flatten_indices().with_transform(pixels)
        settings: dict[str, Any] = {"batch_size": BATCH_PICTURES, "shuffle": True, "num_workers": 2}
        sides = (data.train_dataloader, lambda peer=peer, settings=settings: DataLoader(peer, **settings))
        compare(table, f"{suffix} of 256 x 256 to 64 x 64, 2 workers", sides, ">= 1")
    CONSOLE.print(table)


def with_children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it may have ended
            for child in task.read_text().split():
                found += with_children(int(child))
    return found


def shares(pid: int) -> dict[str, int]:
    """Of the memory of a process in kB, where what n processes have counts as an n-th for each."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {key: int(value.split()[0]) for key, value in (line.split(":", 1) for line in lines)}
    return {}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Peak memory in MB of this process and those that it started: all that is resident, and what is theirs, without
    pages of files. What several processes share is counted once.
    """
    peak = {"resident": 0.0, "own": 0.0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            held = [shares(pid) for pid in with_children(os.getpid())]
            for name, key in (("resident", "Pss"), ("own", "Pss_Anon")):
                peak[name] = max(peak[name], sum(share.get(key, 0) for share in held) / 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def memory(kind: str, path: str, cache: str) -> None:
    """In a process of its own: reads all, then one epoch of batches; prints megabytes and seconds as JSON."""
    words = (
        ("data=table", "data.target=y") if kind == "table" else ("data=images", "data.size=8", "data.duplicates=keep")
    )
    start = time.perf_counter()
    with watched() as peak:
        data = ours(*words, f"data.path={path}", f"cache.folder={cache}")
        read = time.perf_counter() - start
        batches_per_s(data.train_dataloader)
    print(json.dumps({**peak, "read_s": read}))


def memories(place: Path) -> None:
    table = Table("peak memory, set-up and one epoch", "files, MB", "own, MB", "with file pages, MB", "set-up, s")
    write_table(place / "large.csv", 5_000_000)
    write_pictures(place / "many", 100_000, 8, ".png")
    for kind, path in (("table", place / "large.csv"), ("images", place / "many")):
        words = [sys.executable, __file__, "memory", kind, str(path), str(place / "cache")]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
        found = json.loads(done.stdout.splitlines()[-1])
        size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*.png"))
        what = "5,000,000 rows x 20" if kind == "table" else "100,000 pictures"
        cells = (size / 1e6, found["own"], found["resident"], found["read_s"])
        table.add_row(what, *(f"{value:,.0f}" for value in cells))
    CONSOLE.print(table)


def predictions(place: Path) -> None:
    write_table(place / "small.csv", 20_000)
    write_table(place / "new.csv", 1_000_000)
    run = [f"hydra.run.dir={place}/run", f"cache.folder={place}/cache", "trainer.max_epochs=1"]
    train = [sys.executable, "src/train.py", "data=table", f"data.path={place}/small.csv", "data.target=y", *run]
    subprocess.run(train, cwd=ROOT, capture_output=True, check=True)
    seconds = []
    for path in ("small.csv", "new.csv"):
        words = [f"run={place}/run", f"input={place / path}", f"output={place}/out.csv"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "src/predict.py", *words], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    rate = 980_000 / (seconds[1] - seconds[0])
    CONSOLE.print(f"predict, CSV to CSV: 1,000,000 rows in {seconds[1]:.0f} s, {rate:,.0f} rows/s after the start-up")


PARTS = {part.__name__: part for part in (tables, pictures, predictions, memories)}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as place:
            PARTS[name](Path(place))


if __name__ == "__main__":
    memory(*sys.argv[2:]) if sys.argv[1:2] == ["memory"] else main(sys.argv[1:])

"""What reliability costs: saves beside the training of a BERT of 22.7 million weights with Adam, and going on from one.

Both sides of a ratio are the same command, run in turns; ratios of medians are printed, and nothing is asserted.

    python tests/bench/lasting.py [PAIRS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 300
WORDS = (
    *("model=bert", "data.packages=100", "data.max_length=64", "data.batch_size=16", "trainer.max_epochs=1"),
    *(
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "trainer.num_sanity_val_steps=0",
        "trainer.enable_progress_bar=false",
    ),
)


def child(told: str, *words: str) -> None:
    """`python src/train.py`, with the clock read at each step and around each save; STEPS=1 leaves after the first."""
    sys.path.insert(0, str(ROOT / "src"))
    begun = float(os.environ["BEGUN"])
    from research.engine.launch import launch
    from research.engine.saving import Saving
    from research.tasks.supervised import Supervised

    step, save, proceed = Supervised.training_step, Saving._save, Saving._proceed
    steps: list[float] = []
    saves: list[float] = []

    def tell() -> None:
        Path(told).write_text(json.dumps({"steps": [at - begun for at in steps], "saves_s": saves}))

    def timed_step(task: Any, *given: Any) -> Any:
        found = step(task, *given)
        steps.append(time.time())
        if os.environ.get("STEPS") == str(len(steps)):
            tell()
            os._exit(0)
        return found

    def timed_save(saving: Any, *given: Any) -> None:
        at = time.perf_counter()
        save(saving, *given)
        if len(steps) < STEPS:  # the last one belongs to the end of the run
            saves.append(time.perf_counter() - at)

    def timed_proceed(saving: Any, *given: Any) -> None:
        at, waiting = time.perf_counter(), saving.files.waiting
        proceed(saving, *given)
        if waiting and saves:  # what the training waits for until the thread has begun
            saves[-1] += time.perf_counter() - at

    setattr(Supervised, "training_step", timed_step)  # noqa: B010
    setattr(Saving, "_save", timed_save)  # noqa: B010
    setattr(Saving, "_proceed", timed_proceed)  # noqa: B010
    sys.argv = ["src/train.py", *words]
    try:
        launch("train")
    finally:
        tell()


def run(*words: str, steps: int | None = None) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as told:
        environment = {**os.environ, "BEGUN": str(time.time())} | ({"STEPS": str(steps)} if steps else {})
        command = [sys.executable, __file__, "child", told.name, *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(Path(told.name).read_text())


def main(pairs: int) -> None:
    every = "callbacks.checkpoint.every_minutes"
    with tempfile.TemporaryDirectory() as place:
        rates: dict[str, list[float]] = {"0.5": [], "null": []}
        blocked: list[float] = []
        for pair in range(pairs):
            for minutes, found in rates.items():
                length = f"trainer.max_steps={STEPS}"
                times = run(*WORDS, length, f"{every}={minutes}", f"hydra.run.dir={place}/{pair}_{minutes}")
                found.append((STEPS - 11) / (times["steps"][-1] - times["steps"][10]))
                blocked += times["saves_s"]
        medians = {name: statistics.median(found) for name, found in rates.items()}
        print(f"steps/s, saved every 30 s: {medians['0.5']:.2f}; never: {medians['null']:.2f}", end="; ")
        print(f"ratio {medians['0.5'] / medians['null']:.3f}", flush=True)
        worst, usual = 1000 * max(blocked), 1000 * statistics.median(blocked)
        print(f"a save blocks training for {usual:.0f} ms, at worst {worst:.0f} ms, of {len(blocked)}", flush=True)

        for name, words in {"bert": WORDS, "cnn": ("model=cnn",)}.items():
            seconds: dict[str, list[float]] = {"fresh": [], "resumed": []}
            subprocess.run([sys.executable, __file__, "begin", f"{place}/{name}", *words], cwd=ROOT, check=True)
            for pair in range(pairs):
                seconds["fresh"] += run(*words, f"hydra.run.dir={place}/{name}_{pair}", steps=1)["steps"]
                seconds["resumed"] += run(f"resume={place}/{name}", steps=1)["steps"]
            fresh, resumed = (statistics.median(found) for found in seconds.values())
            print(
                f"{name}: first step after {fresh:.1f} s, resumed {resumed:.1f} s: {resumed - fresh:+.1f} s", flush=True
            )


def begin(folder: str, *words: str) -> None:
    """A run that is killed within its first epoch, after a save."""
    settings = (*words, "callbacks.checkpoint.every_steps=5", f"hydra.run.dir={folder}")
    command = [sys.executable, "src/train.py", *settings]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path(folder, "checkpoints/last.ckpt").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["child", told, *words]:
            child(told, *words)
        case ["begin", folder, *words]:
            begin(folder, *words)
        case given:
            main(int(given[0]) if given else 2)

"""`make bench`: fine-tuning against transformers' Trainer: the same texts, weights, split, epochs and machine.

Whole processes, from the command to the result. One pair each: the peer's take minutes. Nothing is asserted.

    python tests/bench/finetune.py [commands sweep accuracies speed]
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from by_trainer import FRACTIONS, PACKAGES
from rich.console import Console
from rich.table import Table
from spine import ROOT, timed

DATA = (f"data.packages=[{','.join(PACKAGES)}]", f"data.fractions={FRACTIONS}".replace(" ", ""))
LIKE_FOR_LIKE = ("data.split=random", "data.duplicates=true")
CONSOLE = Console(width=110)
RATES = "1e-4,3e-4,1e-3,2e-3,3e-3,5e-3,1e-2,3e-2"


def ours(place: Path, *words: str, split: tuple[str, ...] = LIKE_FOR_LIKE) -> tuple[float, float]:
    """Seconds and test accuracy; `place` holds the cache of features."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"hydra.run.dir={folder}"
        seconds = timed("src/train.py", "model=bert", *DATA, *split, f"cache.folder={place}", run, *words)
        return seconds, json.loads((Path(folder) / "metrics.json").read_text())["test/acc"]


def commands() -> None:
    """The README's commands; bert-base-uncased for one epoch, with random weights of the real shape: no accuracy."""
    from conftest import in_cache
    from transformers import BertConfig

    base = "model.pretrained=bert-base-uncased"
    table = Table("python src/train.py", "s", "test accuracy")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        in_cache(place / "hub", "bert-base-uncased", BertConfig())
        os.environ["HF_HOME"] = str(place / "hub")
        for words in (
            ("model=bert", "optimizer=adam"),
            ("model=bert", "finetune=head"),
            ("model=bert", "finetune=gradual"),
            ("model=bert", "finetune=lora"),
            ("model=bert", base, "trainer.max_epochs=1"),
            ("experiment=bert_base_frozen_head",),
            ("experiment=pretrain_then_finetune",),
            ("model=bert", "finetune=head", "model.pooling=native"),
        ):
            run = place / str(table.row_count)
            seconds = timed("src/train.py", *words, f"cache.folder={place}/cache", f"hydra.run.dir={run}")
            accuracy = json.loads((run / "metrics.json").read_text())["test/acc"]
            random = base in words or words[0] == "experiment=bert_base_frozen_head"
            cells = " ".join(words), f"{seconds:.0f}", "random weights" if random else f"{accuracy:.3f}"
            CONSOLE.log(*cells)
            table.add_row(*cells)
        exported = timed("src/export.py", f"run={run}", "format=hf")
        assert (run / "export/hf/model.safetensors").is_file()
        table.add_row("(src/export.py run=... format=hf, of the last)", f"{exported:.0f}", "")
    CONSOLE.print(table)


def theirs(*words: str) -> tuple[float, float]:
    with tempfile.NamedTemporaryFile() as out:
        seconds = timed("tests/bench/by_trainer.py", out.name, *words)
        return seconds, json.loads(Path(out.name).read_text())["test/acc"]


def row(table: Table, what: str, our: tuple[float, float], peer: tuple[float, float], aim: str) -> None:
    cells = f"{our[0]:.0f}", f"{our[1]:.3f}", f"{peer[0]:.0f}", f"{peer[1]:.3f}", f"{peer[0] / our[0]:.1f}", aim
    CONSOLE.log(what, *cells)  # the next one takes minutes
    table.add_row(what, *cells)


def speed() -> None:
    table = Table("whole process", "ours, s", "acc", "Trainer, s", "acc", "times", "aim")
    for epochs, aims in (("3", (">= 10", ">= 4")), ("10", (">= 30", ">= 12"))):
        with tempfile.TemporaryDirectory() as cache:
            our = ours(Path(cache), "finetune=head", f"trainer.max_epochs={epochs}", "optimizer.lr=3e-3")
        for sampling, aim in zip(("default", "grouped"), aims, strict=True):
            row(table, f"frozen base, {epochs} epochs, peer {sampling}", our, theirs("frozen", epochs, sampling), aim)
    with tempfile.TemporaryDirectory() as cache:
        half = "trainer.precision=bf16-mixed"
        our = ours(Path(cache), "finetune=head", "trainer.max_epochs=3", "optimizer.lr=3e-3", half)
    row(table, "the same in bf16, 3 epochs, peer grouped", our, theirs("frozen", "3", "grouped", "bf16"), "")
    with tempfile.TemporaryDirectory() as cache:
        our = ours(Path(cache), "trainer.max_epochs=2", "optimizer.lr=5e-5")
    row(table, "everything learns, 2 epochs", our, theirs("full", "2", "default"), ">= 2")
    CONSOLE.print(table)


def sweep() -> None:
    words = ("model=bert", "finetune=head", "trainer.max_epochs=3", *DATA, *LIKE_FOR_LIKE)
    seconds = []
    for rates in ("3e-3", RATES):
        with tempfile.TemporaryDirectory() as place:
            where = (f"cache.folder={place}/cache", f"hydra.sweep.dir={place}/runs")
            seconds.append(timed("src/train.py", "-m", *words, *where, f"optimizer.lr={rates}"))
            assert len(list(Path(place).glob("runs/**/metrics.json"))) == len(rates.split(","))
    one, eight = seconds
    CONSOLE.print(
        f"8 learning rates on the frozen base: {eight:.0f} s, one: {one:.0f} s, {eight / one:.2f} (aim <= 1.5)"
    )


def accuracies() -> None:
    table = Table("test accuracy, eight packages", "random split", "duplicates out", "grouped by module")
    splits = (LIKE_FOR_LIKE, ("data.split=random",), ("data.split=grouped",))
    for what, words in (
        ("frozen head, 3 epochs, lr 3e-3", ("finetune=head", "trainer.max_epochs=3", "optimizer.lr=3e-3")),
        ("everything learns, 3 epochs", ("trainer.max_epochs=3",)),
    ):
        with tempfile.TemporaryDirectory() as cache:
            found = [ours(Path(cache), *words, split=split)[1] for split in splits]
        table.add_row(what, *(f"{accuracy:.3f}" for accuracy in found))
    CONSOLE.print(table)


def main(parts: list[str]) -> None:
    measures = {"commands": commands, "sweep": sweep, "accuracies": accuracies, "speed": speed}
    for part in parts or measures:
        measures[part]()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    main(sys.argv[1:])

"""The end of a run: `metrics.json`, the table, the row in TensorBoard, and where to look next."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from research.engine.build import Parts
from research.engine.command import shell
from research.engine.loggers import TABLE, TensorBoard
from research.engine.record import Record, write_json

log = logging.getLogger(__name__)

# What the HParams tab compares: the option of each of these groups, the settings of some, and single values.
GROUPS = ("model", "finetune", "data", "augment", "loss", "optimizer", "scheduler")
SETTINGS = ("model", "augment", "loss", "optimizer", "scheduler")
VALUES = ("seed", "data.batch_size", "trainer.max_epochs")


def report(cfg: DictConfig, record: Record, parts: Parts, metrics: dict[str, float]) -> None:
    """Writes and shows the metrics of the best checkpoint."""
    folder = record.folder
    write_json(folder / "metrics.json", metrics)
    table(metrics)
    log.info("folder       %s", os.path.relpath(folder))
    for logger in parts.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_result(_settings(cfg, record.content["choices"]), metrics, parts.trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            log.info("curves       %s", shell("tensorboard", f"--logdir={os.path.relpath(folder.parent)}"))
        elif isinstance(logger, CSVLogger):
            log.info("curves       %s", os.path.relpath(Path(logger.log_dir) / TABLE))


class Summary(ModelSummary):
    """Lightning's summary of the network as a table of those parts that have parameters."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *further: Any,
        **more: Any,
    ) -> None:
        columns = dict(summary_data)
        rows = zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        show(("part", "type", "parameters"), (row for row in rows if row[2].strip() != "0"))
        told = f"{total_parameters:,}, of which {trainable_parameters:,} learn; {model_size:.1f} MB"
        log.info("parameters %s", told)


def table(metrics: dict[str, float]) -> None:
    """Metrics by name, one column a split; on the screen and in the log."""
    places = [name.partition("/") for name in metrics]  # a metric's own name may have a slash, too
    splits = dict.fromkeys(split for split, _, _ in places)
    rows = dict.fromkeys(name for _, _, name in places)
    found = {name: [metrics.get(f"{split}/{name}") for split in splits] for name in rows}
    show(("", *splits), ((name, *("" if v is None else f"{v:.4f}" for v in found[name])) for name in rows))


def show(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table, on the screen and in the log."""
    grid = Table(*columns, box=SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*row)
    console = Console(width=80, stderr=True, force_terminal=False)  # lines as the screen has the characters for
    with console.capture() as captured:
        console.print(grid)
    log.info("%s", captured.get().rstrip())


def _settings(cfg: DictConfig, choices: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {group: str(choices.get(group)) for group in GROUPS}
    for group in SETTINGS:
        for key, value in cfg[group].items():
            if not str(key).startswith("_") and isinstance(value, bool | int | float | str):
                found[f"{group}.{key}"] = value
    return found | {key: OmegaConf.select(cfg, key) for key in VALUES}

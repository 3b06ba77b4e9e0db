"""The end of a run: `metrics.json`, the table, the row in TensorBoard, and where to look next."""

import logging
import os
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from research.engine.build import Parts
from research.engine.record import write_json
from research.engine.tensorboard import TensorBoard

log = logging.getLogger(__name__)

# What the HParams tab compares: the option of each of these groups, the settings of some, and single values.
GROUPS = ("model", "data", "augment", "loss", "optimizer", "scheduler")
SETTINGS = ("model", "optimizer", "scheduler")
VALUES = ("seed", "data.batch_size", "trainer.max_epochs")


def report(cfg: DictConfig, folder: Path, parts: Parts, metrics: dict[str, float]) -> None:
    """Writes and shows the metrics of the best checkpoint."""
    write_json(folder / "metrics.json", metrics)
    logger = parts.trainer.logger
    if isinstance(logger, TensorBoard):
        logger.log_result(_settings(cfg), metrics, parts.trainer.global_step)
    table(metrics)
    log.info("folder       %s", os.path.relpath(folder))
    log.info("curves       tensorboard --logdir %s", os.path.relpath(folder.parent))


def table(metrics: dict[str, float]) -> None:
    """Metrics by name, one column a split; on the screen and in the log."""
    splits = dict.fromkeys(name.split("/")[0] for name in metrics)
    names = dict.fromkeys(name.split("/")[1] for name in metrics)
    show(("", *splits), ((name, *(f"{metrics[f'{split}/{name}']:.4f}" for split in splits)) for name in names))


def show(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table, on the screen and in the log."""
    grid = Table(*columns, box=SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*row)
    console = Console(width=80, file=StringIO())
    console.print(grid)
    log.info("%s", console.file.getvalue().rstrip())  # pyright: ignore[reportAttributeAccessIssue]


def _settings(cfg: DictConfig) -> dict[str, Any]:
    choices = HydraConfig.get().runtime.choices
    found: dict[str, Any] = {group: str(choices.get(group)) for group in GROUPS}
    for group in SETTINGS:
        for key, value in cfg[group].items():
            if not str(key).startswith("_") and isinstance(value, bool | int | float | str):
                found[f"{group}.{key}"] = value
    return found | {key: OmegaConf.select(cfg, key) for key in VALUES}

"""The end of a run: `metrics.json`, the table, the row in TensorBoard, and where to look next."""

import logging
import os
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

COMPARED = (
    "seed",
    "model",
    "data",
    "augment",
    "loss",
    "optimizer",
    "scheduler",
    "trainer.max_epochs",
    "trainer.precision",
)


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
    grid = Table("", *splits, box=SIMPLE_HEAD)
    for name in dict.fromkeys(name.split("/")[1] for name in metrics):
        grid.add_row(name, *(f"{metrics[f'{split}/{name}']:.4f}" for split in splits))
    console = Console(width=80, file=StringIO())
    console.print(grid)
    log.info("%s", console.file.getvalue().rstrip())  # pyright: ignore[reportAttributeAccessIssue]


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What a person would compare between runs: the option of each group, and the plain values in those parts."""
    found: dict[str, Any] = {}
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for key in COMPARED:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, DictConfig):
            found[key] = choices.get(key, value.get("_target_", ""))
            found |= {f"{key}.{k}": v for k, v in _plain(value).items()}
        else:
            found[key] = value
    return found


def _plain(node: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = {str(k): v for k, v in node.items() if not str(k).startswith("_")}
    return {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}

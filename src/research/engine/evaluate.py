"""The job behind `python src/evaluate.py`: score a run from its folder alone."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from research.engine.errors import UserError
from research.engine.record import write_json
from research.engine.reopen import reopened

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Prints the metrics of a checkpoint and writes them to `evaluate.json`, beside the run's own `metrics.json`.

    Raises:
        UserError: no such checkpoint.
    """
    from research.engine.build import build  # seconds, after the folder is known to be a run
    from research.engine.report import table
    from research.engine.score import score

    if cfg.checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint={cfg.checkpoint}: a run has the checkpoints best and last.")
    saved, changes = reopened(cfg, folder, "evaluate")
    for key, (before, after) in changes.items():
        log.info("changed    %s: %s -> %s", key, before, after)
    saved.callbacks, saved.logger = {}, None
    saved.trainer.devices, saved.trainer.num_nodes, saved.trainer.strategy = 1, 1, "auto"
    parts = build(saved, folder)
    metrics = score(parts, folder, cfg.checkpoint)
    write_json(folder / "evaluate.json", metrics)
    table(metrics)

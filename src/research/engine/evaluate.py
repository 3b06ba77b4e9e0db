"""The job behind `python src/evaluate.py`: score a run from its folder alone."""

from pathlib import Path

from omegaconf import DictConfig

from research.engine.calibration import check_asked, fit_calibration
from research.engine.record import write_json


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Prints the metrics of a checkpoint and writes them to `evaluate.json`, beside the run's own `metrics.json`.

    A temperature and a threshold are fitted on val where they are asked for, and kept with the run.

    Raises:
        UserError: no such checkpoint, or one that cannot be calibrated.
    """
    way, metric = cfg.get("calibrate"), cfg.get("threshold")
    check_asked(way, metric)

    from research.engine.opened import opened  # seconds, after the folder is known to be a run
    from research.engine.report import table
    from research.engine.score import score

    parts = opened(cfg, folder, cached=True)
    asked = fit_calibration(parts, folder, cfg.checkpoint, way, metric) if way or metric else {}
    metrics = score(parts) | asked
    write_json(folder / "evaluate.json", metrics)
    table(metrics)

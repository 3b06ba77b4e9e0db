"""The job behind `python src/evaluate.py`: score a run from its folder alone."""

from pathlib import Path

from omegaconf import DictConfig

from research.engine.record import write_json


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Prints the metrics of a checkpoint and writes them to `evaluate.json`, beside the run's own `metrics.json`.

    Raises:
        UserError: no such checkpoint.
    """
    from research.engine.opened import opened  # seconds, after the folder is known to be a run
    from research.engine.report import table
    from research.engine.score import score

    metrics = score(opened(cfg, folder, cached=True))
    write_json(folder / "evaluate.json", metrics)
    table(metrics)

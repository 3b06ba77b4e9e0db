"""Scores a network on the validation and test rows of its run."""

from research.engine.build import Parts


def score(parts: Parts) -> dict[str, float]:
    """Gives the flat metrics, `val/...` and `test/...`, of the weights that the task has."""
    trainer = parts.trainer
    found: dict[str, float] = {}
    for split, run in (("val", trainer.validate), ("test", trainer.test)):
        if split not in parts.data.rows:  # of other files than the run's own, all rows are test rows
            continue
        run(parts.task, datamodule=parts.data, verbose=False)
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return found

"""The job behind `python src/train.py`: one run, from a config to a folder that holds its result."""

import os
from pathlib import Path

from omegaconf import DictConfig

from research.engine.errors import UserError
from research.engine.launch import WORKER
from research.engine.record import Record, recorded
from research.engine.reopen import Changes, record_of, reopened

# What a resumed run keeps: another network, split or order would make it another run.
FIXED = ("model", "task", "seed", "data._target_", "data.fractions", "data.split_seed")


def train(cfg: DictConfig, folder: Path) -> None:
    """Trains, scores the best checkpoint, writes `metrics.json`.

    Raises:
        UserError: parts that cannot work, or a run that cannot go on as asked.
    """
    if WORKER in os.environ:
        joined = record_of(folder)
        _run(cfg, folder, None, bool(joined["resumed"]), joined["changes"])
        return
    earlier, changes = None, {}
    if cfg.resume:
        earlier = record_of(folder)
        cfg, changes = reopened(cfg, folder, "train")
        _refuse(changes)
    elif (folder / "run.json").exists():
        raise UserError(f"'{folder}' is a run already; go on with it, resume={folder}, or take another folder.")
    with recorded(folder, cfg, earlier, changes) as record:
        _run(cfg, folder, record, earlier is not None, changes)


def _run(cfg: DictConfig, folder: Path, record: Record | None, resumed: bool, changes: Changes) -> None:
    from research.engine.fit import fit  # imported once the run is on record: these take seconds
    from research.engine.report import report
    from research.engine.score import score

    parts = fit(cfg, folder, record, resumed, changes)
    metrics = score(parts, folder, "best")
    if record:
        report(cfg, folder, parts, metrics)


def _refuse(changes: Changes) -> None:
    wrong = [key for key in changes if key.startswith(FIXED)]
    if wrong:
        asked = ", ".join(f"{key}={changes[key][1]} (was {changes[key][0]})" for key in wrong)
        raise UserError(f"a resumed run keeps its network, split and seed; this asks for {asked}. Start a new run.")

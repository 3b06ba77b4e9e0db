"""The job behind `python src/reproduce.py`: the same run again, and what differs."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.engine.errors import UserError
from research.engine.record import finite
from research.engine.reopen import changes, record_of, saved_config
from research.engine.train import train

log = logging.getLogger(__name__)


def reproduce(cfg: DictConfig, folder: Path) -> None:
    """Trains beside the run, into a folder of the same name with `_again`, and compares metrics and best weights.

    Raises:
        UserError: the run has not finished, or came out otherwise: the message says by how much, and what differs.
    """
    before, config = record_of(folder), saved_config(folder)
    if before["status"] != "finished":
        raise UserError(f"'{folder.name}' has not finished, its status is {before['status']}; go on with it first.")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in config])
    if cfg.pretrain:
        config["model"]["pretrained"] = cfg.model.pretrained = None  # which the run before it makes anew
    changed = changes(config, cfg)
    again = folder.with_name(f"{folder.name}_again_{secrets.token_hex(3)}")
    again.mkdir()
    log.info("again      %s", os.path.relpath(again))
    train(cfg, again, like=before)

    after = record_of(again)
    differs = [*_differences(before, after), *(f"setting {key}: {a} -> {b}" for key, (a, b) in changed.items())]
    for line in differs:
        log.info("differs    %s", line)
    moved = list(_moved(_metrics(folder), _metrics(again)))
    if not moved and _same_weights(folder, again):
        log.info("identical  all metrics, and the weights of the best checkpoint, bit for bit")
        return
    told = ", ".join(moved) or "no metric moved, but the weights of the best checkpoint differ"
    why = "; ".join(differs) or "nothing that is on record; set trainer.deterministic=true, and trainer.benchmark=false"
    raise UserError(f"not the same: {told}. What differs: {why}.")


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """The ingredients of two runs that are not the same."""
    if before["git"]["commit"] != after["git"]["commit"]:
        yield f"code: commit {before['git']['commit']} -> {after['git']['commit']}"
    if before["git"]["diff"] != after["git"]["diff"]:
        yield "code: changes that are not committed"
    if before["data"]["fingerprint"] != after["data"]["fingerprint"]:
        yield "data: its content"
    if before["python"] != after["python"]:
        yield f"python: {before['python']} -> {after['python']}"
    for kind, noun in (("packages", "package"), ("hardware", "hardware")):
        for name in sorted({**before[kind], **after[kind]}):
            was, now = before[kind].get(name), after[kind].get(name)
            if was != now:
                yield f"{noun} {name}: {was} -> {now}"
    for resumed in before["resumed"]:
        for key, (was, now) in resumed["changes"].items():
            yield f"history: {key} was {was} at first, and {now} when it was resumed"
    for back in before.get("rollbacks", []):
        yield f"history: it was rolled back to optimizer.lr={back['optimizer.lr']:g}"


def _metrics(folder: Path) -> dict[str, float | None]:
    return finite(json.loads((folder / "metrics.json").read_text("utf-8")))  # older ones may hold NaN


def _moved(before: dict[str, float | None], after: dict[str, float | None]) -> Iterator[str]:
    for name in {**before, **after}:
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            if was is not now:
                yield f"{name} {' -> '.join('no number' if v is None else f'{v:g}' for v in (was, now))}"
        elif was != now:
            yield f"{name} {was:g} -> {now:g} ({now - was:+.2g})"


def _same_weights(*runs: Path) -> bool:
    import torch

    from research.engine.checkpoint import load, path_of

    first, second = (load(path_of(run, "best"))["state_dict"] for run in runs)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

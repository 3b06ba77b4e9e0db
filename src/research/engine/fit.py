"""The fit: search what is to be searched, go on from a checkpoint where there is one, train."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.tuner.tuning import Tuner
from omegaconf import DictConfig, OmegaConf

from research.engine import describe
from research.engine.build import Parts, build, make
from research.engine.checkpoint import FOLDER, load, newest, path_of
from research.engine.durable import link
from research.engine.errors import UserError
from research.engine.guard import RollBack
from research.engine.loggers import boards, restart
from research.engine.pretrained import keep
from research.engine.record import Record, write_config
from research.engine.rehearsal import check_training
from research.engine.reopen import Changes, changes, tell
from research.engine.report import show
from research.engine.resume import Resume, missing_state
from research.engine.saving import Saving

log = logging.getLogger(__name__)

NUM_TOLD = 10  # rows of each table of the data that the start of a run shows
BACK = "rolled back"
BEFORE = ("find_lr", "find_batch_size", "pretrain")  # settings for what comes before the first step
ENDED = {"running": "killed", "stopped": "asked to stop"}  # statuses in words


# What counts batches: within an epoch, another one would leave rows out or show them twice.
COUNTS = (
    "data.batch_size",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.val_check_interval",
    "trainer.devices",
    "trainer.num_nodes",
)


def fit(cfg: DictConfig, folder: Path, record: Record | None, was: str | None) -> Parts:
    """Builds and trains. Every process of a multi-process run calls it; only the first has a `record`.

    Args:
        was: the status of the run that goes on, None for a new one.

    Raises:
        UserError: parts that cannot work, or nothing left to train.
    """
    while True:
        parts, start = _prepared(cfg, folder, record, was)
        try:
            parts.trainer.fit(parts.task, parts.data, ckpt_path=start, weights_only=True)
            if record:
                _tell_end(record, parts)
            _compare_last(folder, parts)
            saving: Any = parts.trainer.checkpoint_callback
            if saving.no_number and saving.best is None:
                raise UserError(
                    f"{saving.monitor} was never a finite number, so that no checkpoint is the best; the weights are "
                    "kept in checkpoints/last.ckpt. Look for the cause in the rows of the validation split and in the "
                    "metric, or watch another: monitor=..."
                )
            if record and not path_of(folder, "best").is_file():  # of a run that was never validated, the newest
                link(path_of(folder, "last"), path_of(folder, "best"))
            parts.trainer.strategy.barrier()
            return parts
        except RollBack as back:
            lr, was = cfg.optimizer.lr * back.factor, BACK
            log.warning("rolled back: %s Going on with optimizer.lr=%g", back, lr)
            cfg.optimizer.lr = lr
            if record:
                backs = [*record.content.get("rollbacks", []), {"why": str(back), "optimizer.lr": lr}]
                record.add(rollbacks=backs)
                write_config(folder, cfg)
                if len(backs) > back.times:
                    raise UserError(f"rolled back {back.times} times, and again: {back}") from None


def _prepared(cfg: DictConfig, folder: Path, record: Record | None, was: str | None) -> tuple[Parts, Path | None]:
    """All that the fit needs, and the checkpoint to go on from."""
    start, state, changed = None, None, {}
    if was and not any((folder / FOLDER).glob("*.ckpt")):
        log.info("resume     from the beginning; the run was %s before its first checkpoint", ENDED.get(was, was))
    elif was:
        start, state = newest(folder, tidy=record is not None)
        changed = changes(state["config"], cfg)
        _check_resume(cfg, folder, state, was, changed)
    callbacks = [Resume(changed, was == "finished" or bool(changed))] if start else []
    parts = build(cfg, folder, callbacks, state)
    if record:
        write_config(folder, cfg)  # in which `mode` is settled now
    check_training(parts)
    files: Any = parts.trainer.strategy.checkpoint_io
    saving: Any = parts.trainer.checkpoint_callback
    saving.config = OmegaConf.to_container(cfg, resolve=True)
    if start and state:
        files.opened = start, state
    if was:
        restart(parts.trainer.loggers, state["curves"] if state else 0)
    if record:
        _tell_data(cfg, folder, record, parts, new=start is None)
    if start is None and was != BACK:
        _search(cfg, folder, record, parts)
        saving.config = OmegaConf.to_container(cfg, resolve=True)
    if record and (parts.plan.differs or hasattr(parts.task.net, "base")):
        beside = sum(p.numel() for group in parts.task.groups_beside() for p in group["params"])
        show(("part", "parameters", "", "rate"), parts.plan.table(parts.task.net, cfg.optimizer.lr, beside))
    if record:
        record.begun = True
    return parts, start


def _tell_end(record: Record, parts: Parts) -> None:
    """Say in one line why a run ended, where it was not by its last epoch."""
    trainer = parts.trainer
    whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    epochs: Any = trainer.fit_loop.epoch_progress.current
    num_epochs = epochs.processed
    if whole and num_epochs == trainer.max_epochs:
        record.add(ended_by=None)
        return
    why = "a callback asked for it"
    if 0 <= trainer.max_steps <= trainer.global_step:
        why = f"trainer.max_steps={trainer.max_steps} reached"
    elif any(isinstance(c, Timer) and (c.time_remaining() or 1) <= 0 for c in _callbacks(trainer)):
        why = "trainer.max_time is used up"
    for callback in _callbacks(trainer):
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            why = _early(callback)
    limit = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    log.info("ended      in epoch %d%s, after %d steps: %s", num_epochs, limit, trainer.global_step, why)
    record.add(ended_by=why)


def _callbacks(trainer: Any) -> list[Any]:
    return trainer.callbacks


def _early(callback: EarlyStopping) -> str:
    if callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
        best = callback.best_score.item()
        return f"early stopping, {callback.monitor} was not better than {best:.4g} in {callback.wait_count} validations"
    return f"early stopping, {(callback.stopping_reason_message or '').removesuffix(' Signaling Trainer to stop.')}"


def _compare_last(folder: Path, parts: Parts) -> None:
    """Validate the last state of a run that did not, having ended within an epoch; it may be the best."""
    trainer, saving = parts.trainer, parts.trainer.checkpoint_callback
    assert isinstance(saving, Saving)
    if not trainer.enable_validation or saving.validated == trainer.global_step:
        return
    parts.task.load_state_dict(load(path_of(folder, "last"))["state_dict"])
    trainer.validate(parts.task, datamodule=parts.data, verbose=False)
    value = trainer.callback_metrics.get(saving.monitor)
    if value is not None and saving.improves(float(value)):
        saving.best = float(value)
        if trainer.is_global_zero:
            link(path_of(folder, "last"), path_of(folder, "best"))


def _check_resume(cfg: DictConfig, folder: Path, state: dict[str, Any], was: str, changed: Changes) -> None:
    done, batch, most = state["position"]["epoch"], state["position"]["batch"], cfg.trainer.max_epochs or -1
    if 0 < most < done + (batch > 0):
        raise UserError(
            f"'{folder.name}' is in epoch {done + (batch > 0)}, so trainer.max_epochs={most} is past; ask for more, or "
            "take the run as it is: src/evaluate.py."
        )
    if was == "finished" and cfg.trainer.max_epochs and done >= cfg.trainer.max_epochs > 0:
        raise UserError(
            f"'{folder.name}' has trained all its {done} epochs; to go on, ask for more: trainer.max_epochs={2 * done}."
        )
    steps = cfg.trainer.max_steps
    if was == "finished" and 0 <= steps <= state["global_step"]:
        raise UserError(
            f"'{folder.name}' has trained all its {steps} steps; to go on, ask for more: trainer.max_steps={2 * steps}."
        )
    if late := [key for key in BEFORE if key in changed and changed[key][1]]:
        raise UserError(f"{', '.join(late)}: this comes before the first step of a run; start a new run.")
    kept = any(name.startswith("loss.") for name in state["state_dict"])
    if kept and any(key.startswith("loss.") for key in changed):
        raise UserError("the loss of this run has weights of its own, so that it cannot be changed; start a new run.")
    same = "optimizer._target_" not in changed
    if same and (missing := sorted(missing_state(make(cfg.optimizer), state))):
        asked = ", ".join(f"{key}={changed[key][1]}" for key in changed if key.startswith("optimizer."))
        raise UserError(
            f"{asked} needs what the optimizer has not counted so far ({', '.join(missing)}); start a new run, or take "
            "another optimizer, which begins anew."
        )
    if batch and (other := [key for key in changed if key in COUNTS]):
        raise UserError(
            f"'{folder.name}' stopped within an epoch, after batch {batch}; {', '.join(other)} can be changed between "
            "epochs only. Go on without the change, to the end of an epoch."
        )
    further = f" and {batch} batches" if batch else ""
    log.info(
        "resume     after %d epochs%s, step %d; it was %s", done, further, state["global_step"], ENDED.get(was, was)
    )
    tell(changed)


def _tell_data(cfg: DictConfig, folder: Path, record: Record, parts: Parts, new: bool) -> None:
    """Puts what is known before the first step on record and on the screen."""
    device = parts.trainer.strategy.root_device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    record.content["hardware"] |= {"device": str(device), "gpu": gpu, "cuda": torch.version.cuda}
    record.content["hardware"]["threads"] = torch.get_num_threads()
    data = parts.data
    told = {"fingerprint": data.fingerprint, "source": data.source, "warnings": data.findings}
    if (before := record.content.get("data")) and before["fingerprint"] != data.fingerprint and not new:
        raise UserError(
            f"the data is not what '{folder.name}' was begun with: its content has changed. Put the files back, "
            "or start a new run."
        )
    record.add(data={**told, "spec": data.spec.plain()})
    keep(parts, folder)
    log.info("folder     %s", os.path.relpath(folder))
    _keep_data(parts, folder, new)


def _keep_data(parts: Parts, folder: Path, new: bool) -> None:
    """Which rows each split has (`splits.npz`, ids of the source's rows from 0), and what is in them."""
    ids: dict[str, Any] = {name: rows.numpy() for name, rows in parts.data.ids.items()}
    np.savez_compressed(folder / "splits.npz", **ids)
    picture = describe.figure(parts.data)
    describe.write_page(parts.data, folder, picture, describe.tell(parts.data, NUM_TOLD))
    for board in boards(parts.trainer) if new else ():
        board.experiment.add_figure("data", picture, 0)


def _search(cfg: DictConfig, folder: Path, record: Record | None, parts: Parts) -> None:
    """Lightning's finders; what they find becomes part of the run's config."""
    tuner = Tuner(parts.trainer)
    if cfg.find_batch_size:
        tuner.scale_batch_size(parts.task, datamodule=parts.data, max_trials=10)
        cfg.data.batch_size = parts.data.batch_size
        log.info("found      data.batch_size=%d", parts.data.batch_size)
    if cfg.find_lr:
        loop: Any = parts.trainer.fit_loop
        epochs, loop.max_epochs = loop.max_epochs, 100  # the search takes up to 100 steps
        finder = tuner.lr_find(parts.task, datamodule=parts.data, min_lr=1e-5)
        loop.max_epochs = epochs
        if finder is None or finder.suggestion() is None:
            raise UserError("find_lr found no learning rate: the loss never fell. Set optimizer.lr by hand.")
        cfg.optimizer.lr = parts.task.lr
        log.info("found      optimizer.lr=%.3g", parts.task.lr)
    if cfg.find_batch_size or cfg.find_lr:
        check_training(parts)
    if record and (cfg.find_batch_size or cfg.find_lr):
        write_config(folder, cfg)

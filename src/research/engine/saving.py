"""When a run is saved: after each epoch, every few minutes or steps in between, and wherever it ends or is stopped."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from research.engine.checkpoint import BEST, FOLDER, LAST, Files, path_of
from research.engine.errors import UserError
from research.engine.schedules import position
from research.engine.stop import Stopped, asked
from research.engine.values import Mode, PositiveFloat, PositiveInt

log = logging.getLogger(__name__)

# The counters of a validation that has begun and is to be run again from its first batch.
BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Saving(Checkpoint):
    """Keeps the best checkpoint by `monitor`, and the newest.

    What is saved is always the state after a whole step. A copy of it is made at once, in the host's memory, and a
    thread writes that (`checkpoint.Files`) once Lightning has logged the step, so that no checkpoint is ahead of the
    curves. A signal is heeded there as well.

    A run that ends within an epoch, because its steps or its time are used up say, is saved there, so that it can go on
    with the next batch. What such an end adds to the curves is drawn at the next step, where a run that goes on draws
    anew.

    Args:
        monitor: a logged metric; looked at after each validation and each epoch.
        mode: whether a small or a large value of it is better.
        every_minutes: also within an epoch; None for not.
        every_steps: of the optimizer, also within an epoch; None for not.
        keep: how many of the newest, beside the best.
        attempts: so many saves may fail in a row; then training stops.
    """

    def __init__(
        self,
        monitor: str,
        mode: Mode,
        every_minutes: PositiveFloat | None,
        every_steps: PositiveInt | None,
        keep: PositiveInt,
        attempts: PositiveInt,
    ) -> None:
        self.monitor, self.sign = monitor, {"min": 1, "max": -1}[mode]
        self.every_s = None if every_minutes is None else 60 * every_minutes
        self.every_steps, self.keep, self.attempts = every_steps, keep, attempts
        self.config: dict[str, Any] = {}  # of the run, as it is now
        self.best: float | None = None
        self.no_number = False  # the monitor was looked at and had none
        self.claimed: tuple[float | None, int] | None = None  # the best before the last save, if that was of a better
        self.files: Files | None = None
        self.stop: int | None = None  # the signal at which to leave
        self.ends = False  # training was to end here
        self.validated = -1  # the step whose weights were validated last
        self.validating = False  # what is saved now was being validated
        self.agreement = Agreement()
        self._last_step = 0  # the optimizer step that was looked at last

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "ends", "validated", "no_number")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.ends, self.validated = (state_dict[name] for name in ("best", "ends", "validated"))
        self.no_number = state_dict["no_number"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(trainer.strategy.checkpoint_io, Files)
            self.files = trainer.strategy.checkpoint_io
            # With max_steps Lightning would resume at the end of an epoch by an empty one.
            trainer.fit_loop._iteration_based_training = lambda: False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        asked.take()  # from Lightning, which would end the run without saving it
        asked.patient = True
        # Lightning's processes ask one another in each step whether to stop; these are asked by `Agreement`
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        trainer.should_stop = self.ends
        if not path_of(Path(trainer.default_root_dir), "best").is_file():  # damaged, and put aside
            self.best = None
        self.saved_at, self.reserved, self._last_step = time.monotonic(), False, trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._proceed(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._proceed(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if not _saves_within_epoch(pl_module) or loop._should_accumulate():
            return
        assert self.files is not None
        if self.files.failures >= self.attempts:
            raise UserError(f"training stops: {self.files.failures} saves in a row failed; {self.files.error}.")
        if not self.reserved:
            self.reserved, taken = True, trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if trainer.is_global_zero:
                self.files.reserve(taken)
        steps, self._last_step = (self._last_step, trainer.global_step), trainer.global_step
        if trainer.is_last_batch or _validates(trainer):
            return  # the validation, or the end of the epoch, belongs to the step
        self.stop, due = self.agreement.of(trainer, asked.number, self.every_s, self.saved_at)
        due |= self.every_steps is not None and steps[0] // self.every_steps < steps[1] // self.every_steps
        waits = self.files.busy and trainer.world_size == 1  # of several processes only the first knows
        if ends := _ends(trainer):
            self.ends = trainer.should_stop
            loop._skip_next_val = True  # which Lightning would add where it was asked to stop
        if self.stop or ends or (due and not waits):
            self._save(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if asked.number and asked.patient and trainer.world_size == 1 and _saves_within_epoch(pl_module):
            raise StopIteration  # leaves out the rest of the validation

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not asked.patient or not _saves_within_epoch(pl_module):
            return
        self._heed(trainer)
        if self.stop:
            self.validating = True
            self._save(trainer)
            self._proceed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not asked.patient:
            return
        self.validated = trainer.global_step
        if _saves_within_epoch(pl_module) and not trainer.is_last_batch:  # else the epoch is what is saved
            self.ends = trainer.should_stop
            self._save(trainer, self._is_best(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:
            self.ends = trainer.should_stop
            self._save(trainer, self._is_best(trainer))
        else:  # saved with its last step; what is logged of a part of an epoch is no point of its curve
            trainer.fit_loop.epoch_loop._batches_that_stepped += 1
        self._heed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heed(trainer)
        self._proceed(trainer)
        asked.patient = False
        self._insist()
        self._settle()
        trainer.strategy.barrier()  # no process reads before all is written

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        asked.patient = False
        if self.files:
            self.files.wait()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epoch, batch = position(trainer)
        checkpoint["position"], checkpoint["config"] = {"epoch": epoch, "batch": batch}, self.config
        # the step of the next point of a curve; within an epoch Lightning counts the batch only after it is saved
        checkpoint["curves"] = trainer.fit_loop.epoch_loop._batches_that_stepped + (batch > 0)
        if self.validating:
            progress = {"total": BEGUN, "current": BEGUN, "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        names = [BEST, LAST] if best else [LAST]
        self.saved_at = time.monotonic()
        path = f"{trainer.default_root_dir}/{FOLDER}/{names[0]}"
        trainer.save_checkpoint(path, storage_options={"names": names, "keep": self.keep})

    def _heed(self, trainer: Trainer) -> None:
        """Asks all processes, now, whether a signal has come."""
        self.stop = self.agreement.of(trainer, asked.number, now=True)[0]

    def _proceed(self, trainer: Trainer) -> None:
        """Has what was saved written, now that the step before is logged; then leaves where a signal asked for it."""
        assert self.files is not None
        if self.files.waiting:
            for logger in trainer.loggers:
                logger.save()
            self.files.begin()
        if self.stop:
            self.files.wait()
            while self.files.error and self.files.failures < self.attempts:
                self.files.again()
            trainer.strategy.barrier()  # the first process to end would have the others ended
            raise Stopped(self.stop)

    def improves(self, value: float) -> bool:
        """Return whether a value of the monitor is better than the best so far; only a finite number is."""
        if not math.isfinite(value):
            self.no_number = True
            return False
        return self.best is None or self.sign * value < self.sign * self.best

    def _is_best(self, trainer: Trainer) -> bool:
        """Whether the monitor is better than ever; it is then the best from now on. Only a finite number is."""
        self._settle()
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            return False
        score = float(value)
        if not self.improves(score):
            return False
        if trainer.is_global_zero:  # which alone knows what is written
            self.claimed = self.best, trainer.global_step
        self.best = score
        return True

    def _settle(self) -> None:
        """Waits for the last save; a best that could not be written is none."""
        assert self.files is not None
        self.files.wait()
        if self.claimed:
            before, step = self.claimed
            self.claimed = None
            if self.files.written.get(BEST) != step:
                self.best = before

    def _insist(self) -> None:
        """Ends with the last save in its place."""
        assert self.files is not None
        self.files.wait()
        while self.files.error:
            if self.files.failures >= self.attempts:
                raise UserError(f"the result cannot be saved: {self.files.error}.")
            self.files.again()


def _saves_within_epoch(task: LightningModule) -> bool:
    return getattr(task, "saves_within_epoch", True)


def _validates(trainer: Trainer) -> bool:
    """Return whether a validation is due after this batch, be the run to stop or not."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = stops


def _ends(trainer: Trainer) -> bool:
    """Return whether the run ends with this step, within its epoch."""
    steps_are_used_up = 0 <= trainer.max_steps <= trainer.global_step
    return steps_are_used_up or (trainer.should_stop and trainer.fit_loop._can_stop_early)


class Agreement:
    """Whether to stop or to save, the same in every process, with about one message a second."""

    def __init__(self) -> None:
        self.wait_steps, self.since = 1, (0, time.monotonic())

    def of(
        self, trainer: Trainer, number: int | None, every_s: float | None = None, saved_at: float = 0, now: bool = False
    ) -> tuple[int | None, bool]:
        """The signal that some process has had, and whether `every_s` have passed since `saved_at` in one of them.

        Args:
            now: ask at once; else only in some steps, which are the same in every process.
        """
        due = every_s is not None and time.monotonic() - saved_at >= every_s
        if trainer.world_size == 1:
            return number, due
        self.wait_steps -= 1
        if self.wait_steps > 0 and not now:
            return None, False
        step, at = self.since
        rate = (trainer.global_step - step) / max(1e-3, time.monotonic() - at)
        self.since = trainer.global_step, time.monotonic()
        told = torch.tensor([number or 0, due, -rate], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        self.wait_steps = max(1, int(-told[2]))
        return int(told[0]) or None, bool(told[1])

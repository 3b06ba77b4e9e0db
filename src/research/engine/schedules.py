"""Learning-rate schedules: each takes the optimizer and the length of the run, and gives what Lightning expects.

A schedule is a function of the place in the run, counted in intervals: `step` (optimizer steps) or `epoch`. Only
`plateau` has a state of its own. So a run that goes on with other settings is put where it would be with them (see
`resume.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from research.engine.errors import UserError
from research.engine.values import Fraction, Mode, NonNegativeInt, PositiveFloat, PositiveInt, Probability

Interval = Literal["step", "epoch"]
Schedule = dict[str, Any]


@dataclass(frozen=True)
class TrainingLength:
    """How long a run is, and how much of it is done.

    A run that goes on with larger batches, say, keeps its place by its share of the run: where epochs end the run,
    `steps_done` is what its epochs so far would have taken with the settings of now.

    Attributes:
        steps: optimizer steps, from the first epoch to the end.
        epochs: the same in epochs; the last may end early.
        steps_done: the place in `steps`.
        epochs_done: whole epochs.
        steps_per_epoch: optimizer steps of each epoch.
    """

    steps: int
    epochs: int
    steps_done: int = 0
    epochs_done: int = 0
    steps_per_epoch: int = 1


def position(trainer: Trainer) -> tuple[int, int]:
    """Return the number of whole epochs that are done, and of the batches done in the epoch after them."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    within = epoch.started > epoch.processed
    return epoch.processed, trainer.fit_loop.epoch_loop.batch_progress.current.ready if within else 0


def training_length(trainer: Trainer) -> TrainingLength:
    """Return the length of the run and the place that the trainer has reached.

    Raises:
        UserError: the run has no end.
    """
    loader: Any = trainer.train_dataloader or trainer.fit_loop.setup_data() or trainer.train_dataloader
    accumulate = trainer.accumulate_grad_batches
    num_batches = min(len(loader), trainer.num_training_batches)
    per_epoch = math.ceil(num_batches / accumulate)
    epochs_done, batches = position(trainer)
    if batches >= num_batches:  # only its validation is left, and Lightning has stepped the schedules before that
        epochs_done, batches = epochs_done + 1, 0
    within = math.ceil(batches / accumulate)
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    epochs_end = math.inf if max_epochs is None or max_epochs < 0 else max_epochs * per_epoch
    left = epochs_end - epochs_done * per_epoch - within
    steps_left = math.inf if max_steps < 0 else max_steps - trainer.global_step
    if left == steps_left == math.inf:
        raise UserError("the run has no end: set trainer.max_epochs or trainer.max_steps.")
    if left <= steps_left:
        assert max_epochs is not None
        return TrainingLength(int(epochs_end), max_epochs, epochs_done * per_epoch + within, epochs_done, per_epoch)
    epochs = epochs_done + math.ceil((within + steps_left) / per_epoch)
    return TrainingLength(max_steps, epochs, trainer.global_step, epochs_done, per_epoch)


def _total(length: TrainingLength, interval: Interval) -> int:
    return length.steps if interval == "step" else length.epochs


def _scaled(optimizer: Optimizer, interval: Interval, warmup: float, shape: Callable[[float], float]) -> Schedule:
    """A rate that rises over `warmup` intervals, then follows `shape`, a factor as a function of the count."""

    def factor(count: int) -> float:
        return (count + 1) / (warmup + 1) if count < warmup else shape(count)

    return {"scheduler": LambdaLR(optimizer, factor), "interval": interval}


def constant(optimizer: Optimizer, length: TrainingLength, interval: Interval, warmup_frac: Probability) -> Schedule:
    return _scaled(optimizer, interval, warmup_frac * _total(length, interval), lambda count: 1.0)


def linear(
    optimizer: Optimizer, length: TrainingLength, interval: Interval, warmup_frac: Probability, final_frac: Fraction
) -> Schedule:
    """Down in a straight line to `final_frac` of the rate."""
    total = _total(length, interval)
    warmup = warmup_frac * total
    return _scaled(optimizer, interval, warmup, lambda n: 1 - (1 - final_frac) * _progress(n, warmup, total))


def cosine(
    optimizer: Optimizer, length: TrainingLength, interval: Interval, warmup_frac: Probability, final_frac: Fraction
) -> Schedule:
    """Down half a cosine to `final_frac` of the rate (Loshchilov and Hutter, 2017, without restarts)."""
    total = _total(length, interval)
    warmup = warmup_frac * total

    def shape(count: float) -> float:
        return final_frac + (1 - final_frac) * (1 + math.cos(math.pi * _progress(count, warmup, total))) / 2

    return _scaled(optimizer, interval, warmup, shape)


def _progress(count: float, warmup: float, total: float) -> float:
    return min(1.0, (count - warmup) / max(1.0, total - warmup))


def onecycle(
    optimizer: Optimizer,
    length: TrainingLength,
    interval: Interval,
    pct_start: Probability,
    div_factor: PositiveFloat,
    final_div_factor: PositiveFloat,
) -> Schedule:
    """Up to the optimizer's rate and down again, momentum the other way round (Smith and Topin, 2018)."""
    total_steps = _total(length, interval) + 1
    if pct_start * total_steps == 1:  # torch would divide by the length of the rise, which is then 0
        pct_start *= 1.001
    moving = any(group.get("momentum") or "betas" in group for group in optimizer.param_groups)
    scheduler = OneCycleLR(
        optimizer,
        cycle_momentum=moving,  # where there is none, it would bring one
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    return {"scheduler": scheduler, "interval": interval}


def step(
    optimizer: Optimizer, length: TrainingLength, interval: Interval, step_size: PositiveInt, gamma: PositiveFloat
) -> Schedule:
    """Times `gamma` every `step_size` intervals."""
    return {"scheduler": LambdaLR(optimizer, lambda count: gamma ** (count // step_size)), "interval": interval}


def plateau(
    optimizer: Optimizer,
    length: TrainingLength,
    monitor: str,
    mode: Mode,
    factor: Probability,
    patience: NonNegativeInt,
) -> Schedule:
    """Times `factor` after `patience` epochs in which `monitor` did not get better."""
    # build has put min or max in the place of auto
    scheduler = ReduceLROnPlateau(optimizer, mode, factor, patience)  # pyright: ignore[reportArgumentType]
    # not strict: Lightning looks for the metric after each epoch, also after one without a validation
    return {"scheduler": scheduler, "monitor": monitor, "interval": "epoch", "strict": False}


class StepPlateau(Callback):
    """Steps plateau schedules right after validation.

    Lightning does it after the checkpoint of the epoch is saved, so a resumed run would miss one step; the task leaves
    out that one.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(trainer.callback_metrics[str(config.monitor)])


class LearningRate(LearningRateMonitor):
    """Log the learning rate once an optimizer step, also where gradients are accumulated over several batches."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

"""Learning-rate schedules: each takes the optimizer and the length of the run, and gives what Lightning expects.

`interval` is `step` (after each optimizer step) or `epoch`; horizons are counted in it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from research.engine.values import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Probability

Interval = Literal["step", "epoch"]
Schedule = dict[str, Any]


@dataclass(frozen=True)
class Horizon:
    """How long the run is: optimizer steps and epochs."""

    step: int
    epoch: int


def _scaled(optimizer: Optimizer, interval: Interval, warmup: float, shape: Callable[[float], float]) -> Schedule:
    """A rate that rises over `warmup` intervals, then follows `shape`, a factor as a function of the count."""

    def factor(count: int) -> float:
        return (count + 1) / (warmup + 1) if count < warmup else shape(count)

    return {"scheduler": LambdaLR(optimizer, factor), "interval": interval}


def constant(optimizer: Optimizer, horizon: Horizon, interval: Interval, warmup_frac: Probability) -> Schedule:
    return _scaled(optimizer, interval, warmup_frac * getattr(horizon, interval), lambda count: 1.0)


def linear(
    optimizer: Optimizer, horizon: Horizon, interval: Interval, warmup_frac: Probability, final_frac: Fraction
) -> Schedule:
    """Down in a straight line to `final_frac` of the rate."""
    total = getattr(horizon, interval)
    warmup = warmup_frac * total
    return _scaled(optimizer, interval, warmup, lambda n: 1 - (1 - final_frac) * _progress(n, warmup, total))


def cosine(
    optimizer: Optimizer, horizon: Horizon, interval: Interval, warmup_frac: Probability, final_frac: Fraction
) -> Schedule:
    """Down half a cosine to `final_frac` of the rate (Loshchilov and Hutter, 2017, without restarts)."""
    total = getattr(horizon, interval)
    warmup = warmup_frac * total

    def shape(count: float) -> float:
        return final_frac + (1 - final_frac) * (1 + math.cos(math.pi * _progress(count, warmup, total))) / 2

    return _scaled(optimizer, interval, warmup, shape)


def _progress(count: float, warmup: float, total: float) -> float:
    return min(1.0, (count - warmup) / max(1.0, total - warmup))


def onecycle(
    optimizer: Optimizer,
    horizon: Horizon,
    interval: Interval,
    pct_start: Probability,
    div_factor: PositiveFloat,
    final_div_factor: PositiveFloat,
) -> Schedule:
    """Up to the optimizer's rate and down again, momentum the other way round (Smith and Topin, 2018)."""
    moving = any(group.get("momentum") or "betas" in group for group in optimizer.param_groups)
    scheduler = OneCycleLR(
        optimizer,
        cycle_momentum=moving,  # where there is none, it would bring one
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=getattr(horizon, interval) + 1,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    return {"scheduler": scheduler, "interval": interval}


def step(
    optimizer: Optimizer, horizon: Horizon, interval: Interval, step_size: PositiveInt, gamma: PositiveFloat
) -> Schedule:
    """Times `gamma` every `step_size` intervals."""
    return {"scheduler": StepLR(optimizer, step_size, gamma), "interval": interval}


def plateau(
    optimizer: Optimizer,
    horizon: Horizon,
    monitor: str,
    mode: Literal["min", "max"],
    factor: Probability,
    patience: NonNegativeInt,
) -> Schedule:
    """Times `factor` after `patience` epochs in which `monitor` did not get better."""
    return {"scheduler": ReduceLROnPlateau(optimizer, mode, factor, patience), "monitor": monitor, "interval": "epoch"}


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

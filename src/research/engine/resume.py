"""A run that goes on: the state comes from the checkpoint, the settings from the command.

Optimizers and schedules are built anew from the settings. Then the optimizers get the state that the checkpoint has
for each parameter, and each schedule is put at the place that the run has reached, so that a resumed run follows, from
its first step, the schedule that its settings give for its length.
"""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from research.engine.averaging import TRAINED
from research.engine.errors import UserError
from research.engine.reopen import Changes
from research.engine.schedules import TrainingLength, position, training_length

PLATEAU = ("best", "num_bad_epochs", "cooldown_counter")  # what a plateau has seen of its metric
BETTER = ("scheduler.monitor", "scheduler.mode")  # settings without which that has no meaning


class Resume(Callback):
    """Honour the settings of the command, where Lightning would put the checkpoint's back.

    Args:
        changes: of the config, since the run was last saved.
        further: whether the run goes on although it had ended, by early stopping perhaps.
    """

    def __init__(self, changes: Changes, further: bool) -> None:
        self.changes, self.further = changes, further
        self._schedules: list[dict[str, Any]] = []  # as they were saved
        self._rates: list[float] = []  # of each group of parameters, as saved

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            _keep_settings(callback, checkpoint["callbacks"].get(callback.state_key, {}))
        if self.further:
            checkpoint["callbacks"]["Saving"]["ends"] = False
        if TRAINED in checkpoint:  # by now the module has the average, which was scored
            pl_module.load_state_dict(checkpoint[TRAINED])
        if not pl_module.automatic_optimization:
            _check_manual(self.changes)
            return
        self._schedules, checkpoint["lr_schedulers"] = checkpoint["lr_schedulers"], []
        self._rates = [group["lr"] for saved in checkpoint["optimizer_states"] for group in saved["param_groups"]]
        if "optimizer._target_" in self.changes:
            checkpoint["optimizer_states"] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.early_stopping_callbacks if self.further else ():
            callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        if not pl_module.automatic_optimization:
            return
        optimizers, schedules = _init_optimizers_and_lr_schedulers(pl_module)
        if "optimizer._target_" not in self.changes:
            for optimizer, loaded in zip(optimizers, trainer.optimizers, strict=True):
                optimizer.state = loaded.state
        length = training_length(trainer)
        for config, saved in zip(schedules, self._schedules or [{}] * len(schedules), strict=False):
            if isinstance(config.scheduler, ReduceLROnPlateau):
                self._continue_plateau(config.scheduler, saved)
            else:
                place(config.scheduler, _count(length, position(trainer)[1], config, trainer.accumulate_grad_batches))
        trainer.strategy.optimizers = optimizers
        trainer.strategy.lr_scheduler_configs = schedules

    def _continue_plateau(self, schedule: ReduceLROnPlateau, saved: dict[str, Any]) -> None:
        """Go on with the reductions so far, and with what was counted, if it is of the same metric."""
        if "num_bad_epochs" not in saved:  # another schedule until now
            return
        before, after = self.changes.get("optimizer.lr", (1, 1))
        for group, rate in zip(schedule.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate if before in (after, 0) else rate * after / before
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
        schedule.last_epoch = saved["last_epoch"]
        if not any(key in self.changes for key in BETTER):
            for name in PLATEAU:
                setattr(schedule, name, saved[name])


def place(schedule: Any, count: int) -> None:
    """Put a schedule where it is after so many steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        if isinstance(schedule, LambdaLR | OneCycleLR) and count > 0:  # functions of the count
            schedule.last_epoch, schedule._step_count = count - 1, count
            count = 1
        for _ in range(count):
            schedule.step()


def _count(length: TrainingLength, batches: int, config: Any, accumulate: int) -> int:
    """Return how often Lightning has stepped a schedule, by its interval and frequency."""
    if config.interval == "epoch":
        return length.epochs_done // config.frequency
    if config.frequency == 1:
        return length.steps_done
    return length.epochs_done * (length.steps_per_epoch // config.frequency) + batches // accumulate // config.frequency


def _keep_settings(callback: Callback, state: dict[str, Any]) -> None:
    """Put the arguments that a callback was made with in place of those in its saved state."""
    for name in inspect.signature(type(callback).__init__).parameters.keys() & state.keys():
        if hasattr(callback, name):
            state[name] = getattr(callback, name)


def _check_manual(changes: Changes) -> None:
    """Raise a UserError for changes that a task with manual optimization cannot follow."""
    if wrong := [key for key in changes if key.startswith(("optimizer.", "scheduler."))]:
        raise UserError(
            f"this task optimizes by hand, so that nobody else can tell what {', '.join(wrong)} means in the middle of "
            "its run; start a new run."
        )


def missing_state(make_optimizer: Any, state: dict[str, Any]) -> Iterator[str]:
    """Return the names of what an optimizer keeps for a parameter, and a checkpoint does not have.

    Args:
        make_optimizer: makes one from parameters.
        state: the checkpoint.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    optimizer = make_optimizer([parameter])
    optimizer.step()
    wanted = optimizer.state[parameter].keys()
    for saved in state["optimizer_states"][:1]:
        for values in list(saved.get("state", {}).values())[:1]:
            yield from wanted - values.keys()

"""Weight averaging: the average of the weights is what is validated, saved as the best, and tested.

Until an average has begun, that is the weights as they are trained. Batch-norm statistics are averaged with them.
"""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from research.engine.schedules import position, training_length
from research.engine.values import NonNegativeInt, Probability

Weights = dict[str, Tensor]
TRAINED = "current_model_state"  # in a checkpoint: the weights that are trained, where `state_dict` holds others


class Averaging(Callback):
    """Keep an average of the weights beside those that are trained.

    Attributes:
        average: by name; empty before averaging has begun.
        num_updates: how often the average has taken in the weights.
    """

    def __init__(self) -> None:
        self.average: Weights = {}
        self.num_updates = 0
        self._last_step = 0  # the optimizer step that was looked at last
        self._swapped: Weights | None = None  # the weights that are trained, while others are scored

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the average takes in the weights after this optimizer step."""
        raise NotImplementedError

    def share(self) -> float:
        """Return the share that the weights get in the average when they are taken in next."""
        raise NotImplementedError

    def scored(self, current: Weights) -> Weights:
        """Return the weights to validate, save and test, given those that are trained."""
        return self.average if self.num_updates else current

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        current = pl_module.state_dict()
        self.average = {name: value.to(current[name].device) for name, value in self.average.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = trainer.global_step
        if not self.is_due(trainer):
            return
        current = pl_module.state_dict()
        if self.num_updates:
            _blend(self.average, current, self.share())
        else:
            self.average = {name: value.clone() for name, value in current.items()}
        self.num_updates += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.num_updates:
            self._swapped = self.scored(pl_module.state_dict())
            _swap(pl_module.state_dict(), self._swapped)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped is not None:
            _swap(pl_module.state_dict(), self._swapped)
            self._swapped = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.num_updates:
            return
        current = checkpoint["state_dict"]
        checkpoint[TRAINED], checkpoint["state_dict"] = current, self.scored(current)
        checkpoint["averaging"] = {"kind": type(self).__name__, "num_updates": self.num_updates}
        if checkpoint["state_dict"] is not self.average:
            checkpoint["average"] = self.average

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get("averaging", {})
        if before.get("kind") == type(self).__name__:  # an average of another kind is not this one's
            self.num_updates = before["num_updates"]
            self.average = dict(checkpoint.get("average", checkpoint["state_dict"]))


@torch.no_grad()
def _blend(average: Weights, current: Weights, share: float) -> None:
    """Move an average towards the current weights by a share, in place; counters are copied."""
    moving = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [average[name] for name in moving], [current[name] for name in moving], share
    )
    for name in average.keys() - set(moving):
        average[name].copy_(current[name])


def _swap(one: Weights, other: Weights) -> None:
    """Exchange the values of tensors of the same names, in place; of tied tensors once."""
    seen: set[int] = set()
    for name, tensor in one.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        held = tensor.clone()
        tensor.copy_(other[name])
        other[name].copy_(held)


class Ema(Averaging):
    """Exponential moving average of the weights, from the first optimizer step on.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage with
    `num_updates`: with a constant decay the first epochs would be scored by weights that are far behind.

    Args:
        decay: the share of the average that stays in each step.
        start_step: the optimizer step after which averaging begins.
    """

    def __init__(self, decay: Probability, start_step: NonNegativeInt = 0) -> None:
        super().__init__()
        self.decay, self.start_step = decay, start_step

    def is_due(self, trainer: Trainer) -> bool:
        return trainer.global_step > self.start_step

    def share(self) -> float:
        return 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))


class Swa(Averaging):
    """Stochastic weight averaging (Izmailov et al., 2018): the mean of the weights at the end of each late epoch.

    What is scored within a late epoch is the mean that would be if the epoch ended there.

    Args:
        start_frac: the share of the epochs after which averaging starts.
    """

    def __init__(self, start_frac: Probability) -> None:
        super().__init__()
        self.start_frac = start_frac
        self._first_epoch = 0.0
        self._within = False  # whether the weights have moved since the end of an epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first_epoch = self.start_frac * training_length(trainer).epochs
        self._within = position(trainer)[1] > 0 and not trainer.is_last_batch

    def is_due(self, trainer: Trainer) -> bool:
        # at the last step of an epoch rather than at its end, which is after validation
        self._within = not trainer.is_last_batch
        return trainer.is_last_batch and trainer.current_epoch >= self._first_epoch

    def share(self) -> float:
        return 1 / (self.num_updates + 1)

    def scored(self, current: Weights) -> Weights:
        if not self._within or not self.num_updates:
            return super().scored(current)
        ahead = {name: value.clone() for name, value in self.average.items()}
        _blend(ahead, current, self.share())
        return ahead

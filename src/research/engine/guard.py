"""No number that is not finite reaches the weights: the loss and the gradients are looked at before each step."""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from research.engine.errors import UserError
from research.engine.memory import FitsMemory, Weight
from research.engine.randomness import DROPOUT, fold, reseed
from research.engine.values import PositiveInt, Probability

log = logging.getLogger(__name__)


EPOCH = 2**32  # more batches than an epoch has


class RollBack(Exception):
    """The run goes back to its last checkpoint, with a lower rate.

    Args:
        why: a sentence.
        factor: of the rate.
        times: how often a run may.
    """

    def __init__(self, why: str, factor: float, times: int) -> None:
        super().__init__(why)
        self.factor, self.times = factor, times


class Finite(Callback):
    """Finds a loss or a gradient that is not finite before the optimizer sees it.

    On a CPU the step is looked at when it is taken. A device is not waited for in each step: there the gradients of the
    bad step and of all after it are made zero, and the host looks every `log_every_n_steps`, before each validation, at
    the end of an epoch and before anything is saved. With 16-bit floats (`16-mixed`) gradients overflow as a rule, and
    the scaler leaves those steps out; then only the loss is looked at.

    Args:
        policy: `stop` the run, `skip` the step, or `rollback` to the last checkpoint.
        rollbacks: a run that had so many stops.
        factor: of the rate, in each rollback.
    """

    def __init__(
        self, policy: Literal["stop", "skip", "rollback"], rollbacks: PositiveInt, factor: Probability
    ) -> None:
        self.policy, self.rollbacks, self.factor = policy, rollbacks, factor
        self.skipped = 0
        self.first: Tensor | None = None  # the step and the batch that were bad first, on the device; -1 for none
        # what a bad step has changed that is put back: the loss that was counted, its weight, and the buffers
        self.good: tuple[Tensor, Weight, list[Tensor]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.waits = trainer.strategy.root_device.type != "cpu" and self.policy != "skip"
        self.good = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first = self.good = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.good is None:  # by now the task has begun to count the epoch
            self._remember(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = [p.grad for p in parameters if p.grad is not None]
        total = _counted(pl_module)[0]
        if found and not scaled:
            total = total + get_total_norm(found)
        bad = ~torch.isfinite(total)
        if not self.waits:
            if bad:
                self._act(trainer, pl_module, trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx)
                for parameter in parameters:  # by which an optimizer leaves them as they are
                    parameter.grad = None
            self._remember(pl_module)
            return
        now = torch.where(bad, trainer.global_step * EPOCH + trainer.fit_loop.epoch_loop.batch_idx, -1)
        self.first = now if self.first is None else torch.where(self.first < 0, now, self.first)
        for gradient in found:
            gradient.masked_fill_(self.first >= 0, 0)

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.first is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)
        if self.skipped:
            pl_module.log("train/skipped", float(self.skipped))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look(trainer, pl_module)

    def _remember(self, task: LightningModule) -> None:
        if self.policy == "skip":  # batch norm has seen the rows of a step before their loss is known
            loss, weight = _counted(task)
            self.good = loss.clone(), weight, [buffer.clone() for buffer in task.buffers()]

    def _look(self, trainer: Trainer, task: Any) -> None:
        if self.first is not None and (first := int(self.first)) >= 0:
            self._act(trainer, task, *divmod(first, EPOCH))

    def _act(self, trainer: Trainer, task: Any, step: int, batch_idx: int) -> None:
        told = f"step {step}, {explained(trainer, task, batch_idx)}"
        if self.policy == "skip":
            self.skipped += 1
            log.warning("skipped    %s", told)
            assert self.good is not None
            loss, weight, buffers = self.good
            if isinstance(task, FitsMemory):
                task.train_loss, task.train_weight = loss.clone(), weight
            for buffer, kept in zip(task.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            return
        if self.policy == "rollback":
            raise RollBack(told, self.factor, self.rollbacks)
        raise UserError(
            f"{told} No weight has seen it. Lower optimizer.lr, set trainer.gradient_clip_val=1, mend the rows, or "
            "take callbacks.finite.policy=skip or rollback; then resume."
        )


def _counted(task: LightningModule) -> tuple[Tensor, Weight]:
    """Return the loss of the epoch so far and its weight; nothing of a task that does not count them."""
    if isinstance(task, FitsMemory):
        return task.train_loss, task.train_weight
    return torch.zeros((), device=task.device), 0


def explained(trainer: Any, task: Any, batch_idx: int) -> str:
    """Run a batch of this epoch again, to say where its first number that is not finite comes from.

    That needs a task with one loss and a dataset that gives a batch again; of another only its parameters are named.
    """
    data = trainer.datamodule
    if not isinstance(task, FitsMemory) or not task.automatic_optimization or not hasattr(data, "batch"):
        return f"batch {batch_idx} of epoch {trainer.current_epoch}: a loss or a gradient is not finite{_worst(task)}."
    index, batch = data.batch(batch_idx)
    ids = data.ids["train"][index] if "train" in data.ids else index
    rows = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "")
    begun: list[str] = []
    handles = list(_watch(task, begun))
    reseed(fold(data.seed, trainer.current_epoch, batch_idx, trainer.global_rank, DROPOUT))
    try:
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            loss, _ = task.loss_of(batch, batch_idx)
    finally:
        for handle in handles:
            handle.remove()
    at = f"batch {batch_idx} of epoch {trainer.current_epoch} (rows {rows})"
    if not all(torch.isfinite(x).all() for x in tree_leaves(batch) if isinstance(x, Tensor) and x.is_floating_point()):
        return f"{at}: the rows themselves hold a value that is not finite."
    if begun:
        return f"{at}: the loss is {loss.item():g}; the first output that is not finite is that of {begun[0]}."
    if not torch.isfinite(loss):
        return f"{at}: the loss is {loss.item():g}, of predictions that are all finite."
    return f"{at}: the loss is {loss.item():g}, but gradients are not finite{_worst(task)}."


def _worst(task: nn.Module) -> str:
    wrong = [n for n, p in task.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return f", the nearest to the loss in {wrong[-1]}" if wrong else ""


def _watch(task: nn.Module, begun: list[str]) -> Iterator[Any]:
    """Notes the modules without parts whose output is not finite, in the order in which they are called."""
    for name, module in task.named_modules():
        if name and not any(True for _ in module.children()):

            def note(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
                if any(isinstance(x, Tensor) and not torch.isfinite(x).all() for x in tree_leaves(output)):
                    begun.append(f"{name} ({type(module).__name__})")

            yield module.register_forward_hook(note)

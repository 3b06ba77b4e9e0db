"""Out of device memory: the rows of a step are learnt from in smaller parts, and the step is done again. B rows."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_map_only

from research.engine.errors import UserError
from research.engine.randomness import DROPOUT, fold, reseed

log = logging.getLogger(__name__)


Weight = int | float | Tensor  # what a mean loss divides by: its rows, or the sum of their weights


class Redo(Exception):
    """The gradients of this step are not whole."""


class FitsMemory(LightningModule):
    """Halves the rows that go through the network at once until they fit; the optimizer step keeps all of its rows.

    Gradients are those of the whole batch up to rounding, unless rows of a batch see one another (batch norm) or draw
    random numbers. With several processes, or where a task optimizes by hand, there is no such rescue.

    Attributes:
        parts: into which each batch is cut.
        train_loss: of this epoch so far, summed over rows.
        train_weight: what their mean divides by.
    """

    parts, redo = 1, False
    train_loss: Tensor
    train_weight: Weight
    uncounted = 0  # the first batch of a step to be done again whose loss is not counted yet

    def loss_of(self, batch: Any, batch_idx: int) -> tuple[Tensor, Weight]:
        """Return the mean loss of a batch, and what it divides by."""
        raise NotImplementedError

    def weight_of(self, batch: Any) -> Weight:
        """Return what the mean loss of a batch divides by, before it is computed."""
        return _rows(batch)

    def count(self, loss: Tensor, weight: Weight) -> None:
        """Take note of the mean loss of a batch that is learnt from."""
        raise NotImplementedError

    def loss_scale(self, batch_idx: int) -> float:
        """Return the factor of the mean loss of a batch that makes the gradients of a step the mean over its rows.

        Lightning divides each loss by `accumulate_grad_batches`, and averages gradients over processes. Neither is
        right for the last step of an epoch, which has fewer batches, nor for batches or shares of unequal sizes.
        """
        trainer: Any = self.trainer
        num_batches = trainer.accumulate_grad_batches
        if num_batches == 1 and trainer.world_size == 1:
            return 1.0
        first = batch_idx - batch_idx % num_batches
        window = range(first, min(first + num_batches, trainer.num_training_batches))
        return num_batches * trainer.train_dataloader.sampler.share(batch_idx, window)

    def learn(self, batch: Any, batch_idx: int) -> tuple[Tensor, Weight] | None:
        """Return the mean loss of a batch, counted, and its weight; None when the step will be done again."""
        if self.redo:
            return None
        try:
            if self.parts > 1 and batch_idx % self.trainer.accumulate_grad_batches == 0:
                self.zero_grad()
            loss, weight = self.loss_of(batch, batch_idx) if self.parts == 1 else self._in_parts(batch, batch_idx)
        except Exception as error:
            self._fail(error, _rows(batch))
            self.uncounted = batch_idx
            return None
        self.count(loss.detach(), weight)
        return loss, weight

    def backward(self, loss: Tensor, *more: Any, **settings: Any) -> None:
        if self.parts > 1:
            return
        try:
            super().backward(loss, *more, **settings)
        except Exception as error:
            trainer: Any = self.trainer
            self._fail(error, trainer.datamodule.batch_size)
            self.uncounted = trainer.fit_loop.epoch_loop.batch_idx + 1

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.parts == 1:  # else they are, before the first part is learnt from
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.redo:
            raise Redo

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except Redo:
            self._scaled_again()
            while self.redo:
                self._again(batch_idx)
            self.optimizer_step(epoch, batch_idx, optimizer, lambda: torch.zeros((), device=self.device))

    def _scaled_again(self) -> None:
        """Has a scaler of 16-bit gradients forget that it has seen those of this step."""
        if scaler := getattr(self.trainer.precision_plugin, "scaler", None):
            scaler.update()

    def _again(self, last: int) -> None:
        """All batches of the step that ends with batch `last`."""
        self.zero_grad()
        self.redo = False
        trainer: Any = self.trainer
        data = trainer.datamodule
        for batch_idx in range(last - last % trainer.accumulate_grad_batches, last + 1):
            _, batch = data.batch(batch_idx)
            reseed(fold(data.seed, trainer.current_epoch, batch_idx, trainer.global_rank, DROPOUT))
            try:
                loss, weight = self._in_parts(batch, batch_idx)
            except Exception as error:
                self._fail(error, _rows(batch))
                return
            if batch_idx >= self.uncounted:
                self.count(loss, weight)
                self.uncounted = batch_idx + 1

    def _in_parts(self, batch: Any, batch_idx: int) -> tuple[Tensor, Weight]:
        """Adds the gradients of a batch, part by part; gives its mean loss, without a graph, and its weight."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = self.loss_scale(batch_idx) / self.trainer.accumulate_grad_batches
        whole, losses, weights = self.weight_of(batch), [], []
        for part in _cut(batch, self.parts):
            share = self.weight_of(part) / whole
            with self.trainer.precision_plugin.train_step_context():
                loss, weight = self.loss_of(part, batch_idx)
            scaled = loss * share * scale
            (scaler.scale(scaled) if scaler else scaled).backward()
            losses.append(loss.detach() * share)
            weights.append(weight)
        return torch.stack(losses).sum(), sum(weights)

    def _fail(self, error: Exception, rows: int) -> None:
        rescued = self.trainer.world_size == 1 and self.automatic_optimization
        if not isinstance(error, torch.OutOfMemoryError) or not rescued:
            raise error
        if self.parts >= rows:
            raise UserError(f"out of memory with a single row of the batch: {error}") from error
        self.parts, self.redo = 2 * self.parts, True
        log.warning("memory     ran out; batches are now learnt from in %d parts, and the step done again", self.parts)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rows(batch: Any) -> int:
    return len(batch[1])


def _cut(batch: Any, parts: int) -> Iterator[Any]:
    """Cut a batch of B rows into parts of equal size, but for the last."""
    rows = _rows(batch)
    size = -(-rows // parts)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        yield tree_map_only(Tensor, lambda x, part=part: x[part], batch)

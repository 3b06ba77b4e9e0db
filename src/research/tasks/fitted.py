"""A network that is fitted to all training rows at once, not in steps of a gradient. B rows, K outputs."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from hydra.utils import get_method
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from research.engine.averaging import Averaging
from research.engine.errors import UserError
from research.engine.schedules import constant
from research.losses import total_weight
from research.models.linear import Rows
from research.tasks.supervised import Supervised

log = logging.getLogger(__name__)

ROWS = 8192  # whose loss is measured at once


class Fitted(Supervised):
    """Collects the rows of one epoch, then calls `net.fit(train, val, seed)`; scores as any other task does.

    `train` and `val`, None where there are no validation rows, are x, y and the weights of the rows or None.

    The loss is only measured, and the class weights are taken from it: what is minimised is the network's own.

    Raises:
        ValueError: a network that cannot be fitted so.
    """

    saves_within_epoch = False  # a fit has no steps, so there is nothing to save before its end

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if not hasattr(self.net, "fit"):
            raise ValueError(f"task=fitted is for networks with a fit method; {type(self.net).__name__} has none")
        self.automatic_optimization = False
        self.rows: list[tuple[Tensor, Tensor]] = []

    def refusals(self, cfg: Any, trainer: Any) -> Iterable[str]:
        given = cfg.trainer
        rounded = given.precision.endswith("-true") and given.precision != "32-true"
        used = {
            "find_lr": cfg.find_lr,
            "find_batch_size": cfg.find_batch_size,
            "compile": cfg.compile,
            "scheduler": get_method(cfg.scheduler._target_) is not constant,
            "augment.mix": cfg.augment.get("mix"),
            "callbacks.averaging": any(isinstance(each, Averaging | WeightAveraging) for each in trainer.callbacks),
            "trainer.max_epochs": given.max_epochs != 1,
            "trainer.max_steps": given.max_steps != -1,
            "trainer.val_check_interval": given.val_check_interval is not None,
            "trainer.gradient_clip_val": given.gradient_clip_val,
            "trainer.accumulate_grad_batches": given.accumulate_grad_batches > 1,
            "trainer.precision": rounded,  # thresholds would be, too
            "trainer.devices or trainer.num_nodes": trainer.world_size > 1,
        }
        if wrong := [name for name, value in used.items() if value]:
            yield (
                f"{type(self.net).__name__} is fitted to all rows at once: in one epoch, one process, 32 bits, and "
                f"without steps of a gradient; leave out {' and '.join(wrong)}."
            )

    def on_fit_start(self) -> None:
        log.info("fitted     to all rows at once; the settings of the optimizer have no say")

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, y = batch
        if self.spec.target == "class" and y.dim() > 1:
            raise UserError(f"{type(self.net).__name__} is fitted to one class a row, not to shares: augment.mix=null.")
        self.rows.append(self._scaled(batch))
        if batch_idx + 1 < self.trainer.num_training_batches:
            return
        trainer: Any = self.trainer
        net: Any = self.net
        train, self.rows = self._weighted(self.rows), []
        net.fit(train, self._val(trainer), trainer.datamodule.seed % 2**32)
        net.to(self.device)
        for x, y in zip(train[0].split(ROWS), train[1].split(ROWS), strict=True):
            self.count(self.loss(net(x.to(self.device)), y.to(self.device)), total_weight(self.loss, y))

    def _val(self, trainer: Any) -> Rows | None:
        if not trainer.enable_validation:
            return None
        return self._weighted([self._scaled(batch) for batch in trainer.datamodule.val_dataloader()])

    def _scaled(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return self.scale_x(x.to(self.device)).cpu(), self.scale_y(y.to(self.device)).cpu()

    def _weighted(self, batches: list[tuple[Tensor, Tensor]]) -> Rows:
        """Of several batches."""
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        of_class = getattr(self.loss, "weight", None)  # (C,)
        return x, y, None if of_class is None else of_class.cpu()[y]

"""A network that is fitted to all training rows at once, not in steps of a gradient. B rows, K outputs."""

from typing import Any

import torch
from torch import Tensor

from research.engine.errors import UserError
from research.losses import total_weight
from research.tasks.supervised import Supervised

ROWS = 8192  # whose loss is measured at once


class Fitted(Supervised):
    """Collects the rows of one epoch, then calls `net.fit(x, y, seed=..., weights=...)`; scores as any other task does.

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

    def configure_callbacks(self) -> list[Any]:
        """No callbacks; the first that Lightning asks of a task, before it looks at the trainer's settings itself.

        Raises:
            UserError: settings of the trainer that are for steps of a gradient.
        """
        trainer: Any = self.trainer
        settings = {
            "trainer.gradient_clip_val": trainer.gradient_clip_val,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches - 1,
            "trainer.devices or trainer.num_nodes": trainer.world_size - 1,
        }
        if wrong := [name for name, value in settings.items() if value]:
            raise UserError(
                f"{type(self.net).__name__} is fitted to all rows at once, in one process and without gradients; leave "
                f"out {' and '.join(wrong)}."
            )
        return []

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if self.spec.target == "class" and y.dim() > 1:
            raise UserError(f"{type(self.net).__name__} is fitted to one class a row, not to shares: augment.mix=null.")
        self.rows.append((self.scale_x(x).cpu(), self.scale_y(y).cpu()))
        if batch_idx + 1 < self.trainer.num_training_batches:
            return
        trainer: Any = self.trainer
        net: Any = self.net
        xs, ys = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        self.rows = []
        of_class = getattr(self.loss, "weight", None)  # (C,)
        weights = None if of_class is None else of_class.cpu()[ys]
        net.fit(xs, ys, seed=trainer.datamodule.seed % 2**32, weights=weights)
        net.to(self.device)
        for x, y in zip(xs.split(ROWS), ys.split(ROWS), strict=True):
            self.count(self.loss(net(x.to(self.device)), y.to(self.device)), total_weight(self.loss, y))

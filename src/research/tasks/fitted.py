"""A network that is fitted to all training rows at once, not in steps of a gradient. B rows, K outputs."""

from typing import Any

import torch
from torch import Tensor

from research.tasks.supervised import Supervised


class Fitted(Supervised):
    """Collects the rows of one epoch, then calls `net.fit(x, y, seed)`; scores as any other task does.

    The loss is only measured: what is minimised is the network's own.

    Raises:
        ValueError: a network that cannot be fitted so.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if not hasattr(self.net, "fit"):
            raise ValueError(f"task=fitted is for networks with a fit method; {type(self.net).__name__} has none")
        self.automatic_optimization = False
        self.rows: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.rows.append((self.scale_x(x).cpu(), self.scale_y(y).cpu()))
        if batch_idx + 1 < self.trainer.num_training_batches:
            return
        net: Any = self.net
        xs, ys = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        self.rows = []
        net.fit(xs, ys, seed=0)
        net.to(self.device)
        self.train_loss = self.loss(net(xs.to(self.device)), ys.to(self.device)) * len(ys)
        self.train_rows = len(ys)

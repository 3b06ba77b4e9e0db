"""A task that optimizes by hand, as a user would bring it: two optimizers, each stepped for every batch."""

from typing import Any

import torch
from torch import Tensor

from research.tasks.supervised import Supervised


class TwoOptimizers(Supervised):
    """The last layer learns at a tenth of the rate of the others, by an optimizer of its own."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        parameters = list(self.net.parameters())
        return [torch.optim.SGD(parameters[:-2], lr=0.05), torch.optim.Adam(parameters[-2:], lr=1e-3)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, weight = self.loss_of(batch, batch_idx)
        self.count(loss.detach(), weight)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return loss

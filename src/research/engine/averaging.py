"""Weight averaging over the tail of a run, on Lightning's own averaging callback."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from research.engine.values import Probability


class TailAveraging(WeightAveraging):
    """Stochastic weight averaging (Izmailov et al., 2018): the mean of the weights at the end of each late epoch.

    Before the tail begins the average is a copy of the current weights, so that validation and checkpoints are right
    in every epoch. Batch-norm statistics are averaged with the weights.

    Args:
        start_frac: share of the epochs after which averaging starts.
    """

    def __init__(self, start_frac: Probability) -> None:
        super().__init__(use_buffers=True)
        self.start_frac = start_frac
        self.num_epochs, self.num_steps = 1, 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.num_steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self.num_epochs = math.ceil(trainer.estimated_stepping_batches / self.num_steps)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        # at the last step of an epoch rather than at its end, which is after validation
        if step_idx is None or (step_idx + 1) % self.num_steps:
            return False
        if step_idx // self.num_steps < self.start_frac * self.num_epochs:
            average: Any = self._average_model
            average.n_averaged.zero_()  # the next update copies
        return True

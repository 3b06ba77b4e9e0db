"""Randomness as a pure function: every draw follows from (seed, epoch, batch, process), none from hidden state.

A resumed run therefore cannot differ from one that was never stopped, and no generator state is stored.
"""

import hashlib
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

# What a seed is for: draws of one batch for different ends must not be the same draws.
WEIGHTS, AUGMENT, DROPOUT = 1, 2, 3


def fold(*numbers: int) -> int:
    """A 63-bit seed that depends on all of `numbers` and their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SeedEachBatch(Callback):
    """Seeds torch before each training batch, for dropout and augmentation.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(fold(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, DROPOUT))

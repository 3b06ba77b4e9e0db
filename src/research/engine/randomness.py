"""Randomness as a pure function: every draw follows from (seed, epoch, batch, process), none from hidden state.

A resumed run therefore cannot differ from one that was never stopped, and no generator state is stored.
"""

import hashlib
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

# What a seed is for: draws of one batch for different ends must not be the same draws.
WEIGHTS, AUGMENT, DROPOUT, MASK = 1, 2, 3, 4


def fold(*numbers: int) -> int:
    """A 63-bit seed that depends on all of `numbers` and their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(seed: int) -> None:
    """Seeds the generators that a training step draws from.

    `torch.manual_seed` also notes a stack trace for each kind of device that is not there: 2 ms a call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


class SeedEachBatch(Callback):
    """Seeds torch before each training batch, for dropout and augmentation.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        reseed(fold(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, DROPOUT))

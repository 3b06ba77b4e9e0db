"""Masked-word prediction (Devlin et al., 2019): the text is its own target. B texts, T tokens, N hidden, V words."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from research.data.spec import Spec
from research.engine.randomness import MASK, fold, reseed
from research.engine.values import Probability
from research.tasks.supervised import Supervised


class Masked(Supervised):
    """Hides words of each text and learns to predict them; labels are not looked at.

    Of the hidden words, 80 % become the mask, 10 % another word, and 10 % stay, so that the mask is no sure sign.

    Args:
        share: of the words that are hidden. In scoring the same words are hidden each time.

    Raises:
        ValueError: the network does not predict words, or the tokenizer has no mask.
    """

    special: Tensor

    def __init__(self, spec: Spec, share: Probability, **parts: Any) -> None:
        if not getattr(parts["net"], "predicts_words", False):
            raise ValueError(f"task=masked needs model=masked_bert; this run has a {type(parts['net']).__name__}")
        if spec.mask is None:
            raise ValueError("task=masked needs a tokenizer with a mask token")
        super().__init__(spec=replace(spec, classes=(), class_counts=()), **parts)
        self.share, self.mask = share, spec.mask
        self.register_buffer("special", torch.tensor(spec.special), persistent=False)

    def answer(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Gives logits (N, V) and the words that were hidden, (N,)."""
        x, _ = batch
        if not self.training:
            reseed(fold(batch_idx, self.global_rank, MASK))
        ids = x["input_ids"]  # (B, T)
        words = ~torch.isin(ids, self.special)  # (B, T)
        hidden = words & (torch.rand(ids.shape, device=ids.device) < self.share)  # (B, T)
        hidden |= words & ~hidden.any()  # a small batch may have drawn none
        draw = torch.rand(ids.shape, device=ids.device)
        other = torch.randint(self.spec.shape[0], ids.shape, device=ids.device)
        seen = ids.where(~hidden | (draw >= 0.9), torch.where(draw < 0.8, self.mask, other))
        return self.net({**x, "input_ids": seen}, hidden), ids[hidden]

    def num_classes(self) -> int:
        return self.spec.shape[0]

"""Masked-word prediction (Devlin et al., 2019): the text is its own target. B texts, T tokens, N hidden, V words."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from research.data.spec import Spec
from research.engine.randomness import MASK, fold
from research.engine.values import Probability
from research.tasks.supervised import Supervised


class Masked(Supervised):
    """Hides words of each text and learns to predict them; labels are not looked at.

    Of the hidden words, 80 % become the mask, 10 % another word, and 10 % stay, so that the mask is no sure sign.

    Args:
        share: of the words that are hidden. In scoring they follow from the text alone, and are at least one, so that
            a score depends neither on the batches nor on the number of processes.

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
        ids = x["input_ids"]  # (B, T)
        words = ~torch.isin(ids, self.special)  # (B, T)
        if self.training:
            hidden = words & (torch.rand(ids.shape, device=ids.device) < self.share)  # (B, T)
            hidden |= words & ~hidden.any()  # a small batch may have drawn none
            draw = torch.rand(ids.shape, device=ids.device)
            other = torch.randint(self.spec.shape[0], ids.shape, device=ids.device)
        else:
            hidden, draw, other = (drawn.to(ids.device) for drawn in self._of_texts(ids.cpu(), words.cpu()))
        seen = ids.where(~hidden | (draw >= 0.9), torch.where(draw < 0.8, self.mask, other))
        return self.net({**x, "input_ids": seen}, hidden), ids[hidden]

    def _of_texts(self, ids: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which words are hidden, how, and by which other words, each (B, T): a function of each text's words alone."""
        hidden, draw, other = torch.zeros_like(words), torch.zeros(ids.shape), torch.zeros_like(ids)
        for row, word in enumerate(words):
            num = int(word.sum())
            if not num:
                continue
            generator = torch.Generator().manual_seed(fold(*ids[row, word].tolist(), MASK))
            rank, draw[row, word] = torch.rand(2, num, generator=generator)
            hidden[row, word] = (rank < self.share) | (rank == rank.min())
            other[row, word] = torch.randint(self.spec.shape[0], (num,), generator=generator)
        return hidden, draw, other

    def num_classes(self) -> int:
        return self.spec.shape[0]

"""The base of text datasets: tokenised once, split by group, handed out in length buckets, padded to the batch."""

import hashlib
import logging
from abc import abstractmethod
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from research.data.base import Data
from research.data.batches import Tokens
from research.data.spec import Spec
from research.data.splits import grouped_split, random_split
from research.engine.pretrained import PACKAGED, tokenizer
from research.engine.values import Fractions, NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)


class Text(NamedTuple):
    text: str
    label: str
    group: str


class TextData(Data):
    """Give `read`; the rest follows.

    Args:
        batch_size: texts a step, over all devices together.
        max_length: tokens; longer texts are cut, counted and reported.
        fractions, split_seed: as for every dataset.
        split: `grouped`, so that texts of one group are on one side, or `random`.
        duplicates: whether a text that occurs again is kept.
        tokenizer: where it comes from, see `engine/pretrained.py`; None for the packaged one.
    """

    def __init__(
        self,
        batch_size: PositiveInt,
        max_length: PositiveInt,
        fractions: Fractions,
        split_seed: NonNegativeInt,
        split: Literal["grouped", "random"],
        duplicates: bool,
        tokenizer: str | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__(batch_size, shuffle, seed)
        self.max_length, self.fractions, self.split_seed, self.split = max_length, fractions, split_seed, split
        self.duplicates, self.tokenizer = duplicates, tokenizer

    @abstractmethod
    def read(self) -> list[Text]:
        """All texts, in an order that is always the same."""

    def setup(self, stage: str | None = None) -> None:
        """Reads, tokenises, splits; once."""
        if self.rows:
            return
        texts = self.read()
        if empty := sum(not text.text.strip() for text in texts):
            raise ValueError(f"{empty} of {len(texts)} texts are empty; remove them or give them a text")
        if not self.duplicates:
            texts = list({text.text: text for text in reversed(texts)}.values())[::-1]  # the first of each stays
        classes = tuple(sorted({text.label for text in texts}))
        y = torch.tensor([classes.index(text.label) for text in texts])
        name = self.tokenizer or PACKAGED
        made = tokenizer(name)
        ids, num_cut = _tokenised(name, self.max_length, tuple(text.text for text in texts))
        if num_cut:
            log.info("texts      %d of %d are longer than %d tokens and are cut", num_cut, len(texts), self.max_length)
        if self.split == "random":
            self.ids = random_split(y, self.fractions, self.split_seed, stratify=True)
        else:
            self.ids = grouped_split(y, [text.group for text in texts], self.fractions, self.split_seed)
        pad = made.pad_token_id or 0
        self.rows = {name: Tokens([ids[i] for i in part], y[part], pad) for name, part in self.ids.items()}
        self._check_labels(classes)
        counts = torch.bincount(self.rows["train"].y, minlength=len(classes)).tolist()
        self.spec = Spec(
            "text",
            (len(made), self.max_length),
            "class",
            classes,
            class_counts=tuple(counts),
            mask=made.mask_token_id,
            special=tuple(made.all_special_ids),
        )
        content = "\0".join(f"{text.text}\1{text.label}" for text in texts)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def _check_labels(self, classes: tuple[str, ...]) -> None:
        seen = set(self.rows["train"].y.tolist())
        missing = [name for index, name in enumerate(classes) if index not in seen]
        if missing:
            raise ValueError(
                f"no training text has the label(s) {', '.join(missing)}; they would be seen only in val or test. "
                "Take another split_seed, split=random, or leave these labels out"
            )


@lru_cache(maxsize=2)  # the runs of a sweep ask alike
def _tokenised(name: str, max_length: int, texts: tuple[str, ...]) -> tuple[tuple[Tensor, ...], int]:
    """The ids of each text, (T,), of at most as many tokens as the tokenizer takes; and how many texts were cut."""
    made = tokenizer(name)
    limit = min(max_length, made.model_max_length)
    ids = made(list(texts), verbose=False)["input_ids"]
    longer = [index for index, row in enumerate(ids) if len(row) > limit]
    if longer:
        cut = made([texts[index] for index in longer], truncation=True, max_length=limit)["input_ids"]
        for index, row in zip(longer, cut, strict=True):
            ids[index] = row
    return tuple(torch.tensor(row) for row in ids), len(longer)

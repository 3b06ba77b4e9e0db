"""The base of text datasets: tokenised once, split by group, handed out in length buckets, padded to the batch."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from research.data.base import Data, Inputs
from research.data.batches import Rows, Tokens
from research.data.files import batches
from research.data.honesty import check_classes
from research.data.spec import Spec
from research.data.splits import grouped_split, random_split
from research.engine.errors import UserError, unknown
from research.engine.pretrained import PACKAGED, tokenizer
from research.engine.values import Fractions, PositiveInt, Seed

log = logging.getLogger(__name__)


class Text(NamedTuple):
    text: str
    label: str
    group: str


class TextData(Data):
    """Texts that a program finds. Give `read`; the rest follows.

    Args:
        batch_size: texts a step, over all devices together.
        max_length: tokens; longer texts are cut, counted and reported.
        fractions, split_seed: as for every dataset.
        split: `grouped`, so that texts of one group are on one side, or `random`.
        duplicates: whether a text that occurs again is kept.
        tokenizer: where it comes from, see `engine/pretrained.py`; None for the packaged one.
    """

    text = "text"  # the column of a file to predict

    def __init__(
        self,
        batch_size: PositiveInt,
        max_length: PositiveInt,
        fractions: Fractions,
        split_seed: Seed,
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
        """Reads, splits, tokenises; once."""
        if self.rows:
            return
        texts = self.read()
        if empty := sum(not text.text.strip() for text in texts):
            raise ValueError(f"{empty} of {len(texts)} texts are empty; remove them or give them a text")
        if not self.duplicates:
            texts = list({text.text: text for text in reversed(texts)}.values())[::-1]  # the first of each stays
        classes = tuple(sorted({text.label for text in texts}))
        y = torch.tensor([classes.index(text.label) for text in texts])
        if self.split == "random":
            self.ids = random_split(y, self.fractions, self.split_seed, stratify=True)
        else:
            self.ids = grouped_split(y, [text.group for text in texts], self.fractions, self.split_seed)
        check_classes(classes, {name: y[part] for name, part in self.ids.items()}, self.findings)
        made = tuple(text.text for text in texts)
        self.rows, self.spec = tokens(made, y, classes, self.ids, self.tokenizer, self.max_length)
        content = "\0".join(f"{text.text}\1{text.label}" for text in texts)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def inputs(self, path: str) -> Iterator[Inputs]:
        return text_inputs(path, batches(path), lambda names: self.text, self.tokenizer, self.max_length)


def tokens(
    texts: tuple[str, ...],
    y: Tensor,
    classes: tuple[str, ...],
    ids: dict[str, Tensor],
    source: str | None,
    max_length: int,
) -> tuple[dict[str, Rows | Tokens], Spec]:
    """The rows of each split, tokenised, and what they are; texts that are cut are reported.

    Args:
        y: (N,) classes of the texts.
        ids: (n,) of each split.
        source: of the tokenizer; None for the packaged one.
        max_length: T.
    """
    name = source or PACKAGED
    made = tokenizer(name)
    limit = min(max_length, made.model_max_length)
    found, num_cut = _tokenised(name, limit, texts)
    if num_cut:
        log.info("texts      %d of %d are longer than %d tokens and are cut", num_cut, len(texts), limit)
    rows: dict[str, Rows | Tokens] = {
        split: Tokens([found[i] for i in part], y[part], made.pad_token_id or 0) for split, part in ids.items()
    }
    spec = Spec(
        "text",
        (len(made), limit),
        "class",
        classes,
        class_counts=tuple(torch.bincount(y[ids["train"]], minlength=len(classes)).tolist()) if "train" in ids else (),
        mask=made.mask_token_id,
        special=tuple(made.all_special_ids),
    )
    return rows, spec


def text_inputs(
    path: str,
    rows: Iterable[pa.RecordBatch],
    column_of: Callable[[list[str]], str],
    source: str | None,
    max_length: int,
) -> Iterator[Inputs]:
    """Texts of a file with their tokens, batch by batch; an empty one cannot be read.

    Args:
        column_of: which of the names is the column of texts.
    """
    name = source or PACKAGED
    made, all_cut = tokenizer(name), 0
    limit = min(max_length, made.model_max_length)
    for batch in rows:
        column = column_of(batch.schema.names)
        if column not in batch.schema.names:
            raise UserError(f"'{path}' lacks the column of texts: {unknown('column', column, batch.schema.names)}")
        texts = [str(value or "").strip() for value in batch.column(column).to_pylist()]
        good = torch.tensor([row for row, text in enumerate(texts) if text], dtype=torch.long)
        found, num_cut = _tokenised.__wrapped__(name, limit, tuple(texts[row] for row in good))
        all_cut += num_cut
        wrong = [(row, f"column '{column}' is empty") for row, text in enumerate(texts) if not text]
        x = Tokens(list(found), torch.zeros(len(good), dtype=torch.long), made.pad_token_id or 0)
        yield Inputs(batch, x, good, wrong)
    if all_cut:
        log.info("texts      %d are longer than %d tokens and are cut", all_cut, limit)


@lru_cache(maxsize=2)  # the runs of a sweep ask alike
def _tokenised(name: str, limit: int, texts: tuple[str, ...]) -> tuple[tuple[Tensor, ...], int]:
    """The ids of each text, (T,), of at most `limit` tokens; and how many texts were cut."""
    made = tokenizer(name)
    ids = made(list(texts), verbose=False)["input_ids"]
    longer = [index for index, row in enumerate(ids) if len(row) > limit]
    if longer:
        cut = made([texts[index] for index in longer], truncation=True, max_length=limit)["input_ids"]
        for index, row in zip(longer, cut, strict=True):
            ids[index] = row
    return tuple(torch.tensor(row) for row in ids), len(longer)

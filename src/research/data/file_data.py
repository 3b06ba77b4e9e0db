"""The base of datasets that are files of the user: where they are, how rows are split, what is looked at first."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from research.data import honesty
from research.data.base import Data
from research.data.dialect import Dialect, dialect_of
from research.data.files import HUB, hub, hub_splits, is_text, listed, locate
from research.data.splits import SPLITS, Listing, Rules, assign
from research.engine.errors import UserError
from research.engine.values import TAB, Delimiter, Fractions, NonNegativeInt, PositiveInt, Seed

Source = tuple[int, str, str]  # of rows: the index of their split or -1, the path, the split on the hub
HUB_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}


class FileData(Data):
    """Give `setup`, which calls `sources` and `divide`.

    Args:
        batch_size: rows a step, over all devices together.
        path: of all rows, to be split; or, with `train`, None.
        train, val, test: of the rows of a split. A test set that is given is never mixed in: val is part of train.
        fractions: of the rows for train, val and test, as far as they are not given.
        split_seed: of the split alone, so that runs over seeds share one test set.
        stratify: keep the proportions of classes.
        folds, fold: cross-validation: test on part `fold`, of parts 0 to `folds` - 1.
        duplicates: `drop` copies of rows of val or test from train, or `keep` them.
        unlabelled: rows without a target are an `error`, or `drop` leaves them out.
        checks: whether the data is looked at for what makes a number mean less than it says.
        balanced: draw training rows so that each class comes equally often.
        cache: the folder and size of what is computed from files once.
        delimiter: between the cells of text; None to see it in the file, as with the next two.
        encoding: of text.
        header: whether the first line of text names the columns.
    """

    def __init__(
        self,
        batch_size: PositiveInt,
        path: str | None,
        train: str | None,
        val: str | None,
        test: str | None,
        fractions: Fractions,
        split_seed: Seed,
        stratify: bool,
        folds: PositiveInt | None,
        fold: NonNegativeInt,
        duplicates: Literal["drop", "keep"],
        unlabelled: Literal["error", "drop"],
        checks: bool,
        balanced: bool,
        cache: dict[str, Any] | None,
        delimiter: Delimiter | None,
        encoding: str | None,
        header: bool | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__(batch_size, shuffle, seed)
        self.special: dict[str, str | None] = {}  # columns: group, time, split
        self.path, self.files = path, {"train": train, "val": val, "test": test}
        self.rules = Rules(fractions, split_seed, stratify, folds, fold)
        self.duplicates, self.unlabelled, self.checks = duplicates, unlabelled, checks
        self.balanced, self.cache = balanced, cache
        self.given = Dialect(TAB.get(delimiter or "", delimiter), encoding, header)

    def sources(self) -> list[Source]:
        """Of each file or folder: the index of its split, or -1 for rows that are to be split; its path; hub split.

        Raises:
            UserError: no path, or two kinds of them.
        """
        named = {name: path for name, path in self.files.items() if path}
        if self.fitted:
            return [self._tested(named | ({"path": self.path} if self.path else {}))]
        if self.special.get("split") and named:
            raise UserError(
                f"data.split={self.special['split']} says the split of each row, and data.train or data.test of each "
                "file; take one of them."
            )
        if self.rules.folds is None and self.rules.fold:
            raise UserError(f"data.fold={self.rules.fold}: of how many folds? data.folds=...")
        if bool(self.path) == ("train" in named) or (self.path and named):
            given = ", ".join(f"data.{name}={path}" for name, path in {"path": self.path, **named}.items() if path)
            raise UserError(
                f"{given or 'no path is given'}: give all rows, data.path=..., or data.train=... with or without "
                "data.val=... and data.test=..."
            )
        if not self.path:
            return [(SPLITS.index(name), path, "train") for name, path in named.items()]
        if not self.path.startswith(HUB):
            return [(-1, self.path, "train")]
        names, hidden = hub_splits(self.path)
        if hidden:
            text = "the split '%s' of the hub has no labels and is left out%s"
            taken = "" if len(names) > 1 and "test" in names else "; test rows are taken from train"
            honesty.warn(self.findings, text, "', '".join(hidden), taken)
        if len(names) == 1:
            return [(-1, self.path, names[0])]
        if "train" not in names:
            wanted = ", ".join(HUB_NAMES)
            raise UserError(
                f"'{self.path.removeprefix(HUB)}' has the splits {', '.join(names)}; those that are read: {wanted}."
            )
        if others := [name for name in names if name not in HUB_NAMES]:
            text = "the split '%s' of the hub is none of %s, and is left out"
            honesty.warn(self.findings, text, "', '".join(others), ", ".join(HUB_NAMES))
        return sorted((HUB_NAMES[name], self.path, name) for name in names if name in HUB_NAMES)

    @staticmethod
    def _tested(named: dict[str, str]) -> Source:
        """The source of a run that is opened on other rows: all of a file, and of a hub dataset its test split."""
        if len(named) != 1:
            given = ", ".join(f"data.{name}={path}" for name, path in named.items())
            raise UserError(f"{given or 'no path is given'}: name the rows to be scored by one path, data.path=...")
        (path,) = named.values()
        if not path.startswith(HUB):
            return 2, path, "test"
        names, hidden = hub_splits(path)
        split = names[0] if len(names) == 1 and not hidden else "test"
        if split not in names:
            why = "has no labels" if split in hidden else "is not there"
            raise UserError(
                f"the split 'test' of '{path.removeprefix(HUB)}', which would be scored, {why}; those with labels are "
                f"{', '.join(names) or 'none'}. Write the rows to be scored into a file, data.path=FILE."
            )
        return 2, path, split

    @property
    def dialect(self) -> Dialect:
        """What is known of how files of text are written."""
        before = self.fitted.file if self.fitted else None
        given = replace(self.given, names=self.expected)
        if not before:
            return given
        given = replace(given, before=before["delimiter"])
        if before["header"] or given.header:
            return given
        return replace(given, header=False, columns=tuple(before["columns"]))

    @property
    def expected(self) -> tuple[str, ...]:
        """Names of columns that a file has to have."""
        return ()

    def assumed(self, sources: list[Source]) -> dict[str, Any] | None:
        """Says how files of text are read where that is not plain; returns it, of the first file, to be recorded."""
        found = []
        for _, path, _ in sources:
            if path.startswith(HUB):
                continue
            for file in listed(Path(path)):
                if is_text(file):
                    found.append(dialect_of(file, self.dialect))
        for text in dict.fromkeys(text for seen in found for text in seen.told):
            honesty.warn(self.findings, "%s", text)
        return found[0].plain if found else None

    def content(self) -> str:
        """A hash of what the sources hold."""
        found = hashlib.sha256()
        for given, path, split in self.sources():
            found.update(f"{given}\0".encode())
            if path.startswith(HUB):
                found.update(str(hub(path)[split]._fingerprint).encode())
                continue
            for file in listed(Path(path)):
                with open(file, "rb") as stream:
                    found.update(hashlib.file_digest(stream, "sha256").digest())
        return found.hexdigest()

    def divide(self, listing: Listing) -> dict[str, Tensor]:
        """Sorted row ids of each split, without copies across them. Raises UserError as `assign` does."""
        if self.fitted:
            return {"test": self._labelled(listing)}
        ids = self._assigned(listing)
        if self.duplicates == "drop" and listing.identity is not None:
            ids = honesty.drop_copies(ids, listing, self.findings)
        if self.checks and listing.classes:
            honesty.check_classes(listing.classes, {name: listing.y[part] for name, part in ids.items()}, self.findings)
        return ids

    def _labelled(self, listing: Listing) -> Tensor:
        """Ids of the rows that have a target; says how many have none."""
        labelled = (listing.y >= 0 if listing.classes else ~listing.y.isnan().any(1)).nonzero().squeeze(1)
        if lacking := len(listing.y) - len(labelled):
            honesty.warn(self.findings, "%d of %d rows have no target and are left out", lacking, len(listing.y))
        return labelled

    def _assigned(self, listing: Listing) -> dict[str, Tensor]:
        """The split of the rows that have a target."""
        labelled = self._labelled(listing)
        if len(labelled) == len(listing.y):
            return assign(listing, self.rules)
        at = labelled.numpy()
        marks = {
            name: value[at] for name in ("given", "group", "time") if (value := getattr(listing, name)) is not None
        }
        ids = assign(Listing(listing.y[labelled], listing.classes, **marks), self.rules)
        return {name: labelled[part] for name, part in ids.items()}


def given_of(sources: list[Source], sizes: list[int]) -> np.ndarray[Any, Any] | None:
    """(N,) the split of each row, or None where rows are to be split."""
    if sources[0][0] < 0:
        return None
    return np.repeat(np.array([given for given, _, _ in sources], dtype=np.int8), sizes)


def place_of(sources: list[Source], sizes: list[int], dialect: Dialect, row: int) -> str:
    """Where a row is that was counted over all sources, in words."""
    for (_, path, split), size in zip(sources, sizes, strict=True):
        if row < size:
            return locate(path, row, split, dialect)
        row -= size
    raise IndexError(row)


def classes_of(texts: list[str], num_rows: int, target: str) -> tuple[str, ...]:
    """The classes that labels name: numbers in their order, texts in the alphabet's.

    Raises:
        UserError: labels that cannot be classes.
    """
    if len(texts) == 1:
        raise UserError(f"the target '{target}' has one value, '{texts[0]}', in all {num_rows} rows: nothing to learn.")
    if len(texts) == num_rows:
        raise UserError(f"the target '{target}' has as many classes as rows ({num_rows}): is it an id, or a number?")
    by_lower: dict[str, str] = {}
    for text in sorted(texts):
        if (other := by_lower.setdefault(text.lower(), text)) != text:
            raise UserError(f"the classes '{other}' and '{text}' of '{target}' differ in case only; make them one.")
    try:
        return tuple(sorted(texts, key=float))
    except ValueError:
        return tuple(sorted(texts))

"""Disjoint row ids for train, val and test; functions of their arguments alone, never of a global generator."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split
from torch import Tensor

from research.data.copies import Cells
from research.engine.errors import UserError

SPLITS = ("train", "val", "test")
MAX_PARTS = 20  # that groups are dealt into, some of them to be held out
_TOO_FEW = "{} rows are too few for data.fractions and as many classes; take other fractions, or data.stratify=false."


@dataclass(frozen=True)
class Rules:
    """How rows are split.

    Attributes:
    fractions: of the rows for train, val and test.
    seed: of the split alone.
    stratify: keep the proportions of classes.
    folds, fold: cross-validation: the test rows are one of `folds` parts, and val its share of the rest.
    """

    fractions: list[float]
    seed: int
    stratify: bool = True
    folds: int | None = None
    fold: int = 0


@dataclass(frozen=True)
class Listing:
    """What is known of each row before its x is looked at.

    Attributes:
    y: (N,) classes, -1 where there is none, or (N, K) values, NaN where there is none.
    classes: names; empty for values.
    identity: (N,) numbers that are equal where rows are, whatever their y.
    cells: what rows consist of, to tell copies from rows that are equal by chance.
    given: (N,) which of SPLITS a file or a column says, -1 where none does.
    group: (N,) rows that are alike belong on one side.
    time: (N,) later rows are tested.
    """

    y: Tensor
    classes: tuple[str, ...]
    identity: np.ndarray[Any, Any] | None = None
    cells: Cells | None = None
    given: np.ndarray[Any, Any] | None = None
    group: np.ndarray[Any, Any] | None = None
    time: np.ndarray[Any, Any] | None = None


def assign(listing: Listing, rules: Rules) -> dict[str, Tensor]:
    """Sorted ids (n,) of each split. What is given stays as it is; the other splits are taken from the train rows.

    Raises:
        UserError: too few rows or groups, too few of a class to stratify, or groups that given splits share.
    """
    given = np.zeros(len(listing.y), dtype=np.int8) if listing.given is None else listing.given
    ids = {name: np.flatnonzero(given == index) for index, name in enumerate(SPLITS)}
    train, val, test = rules.fractions
    if not len(ids["train"]):
        raise UserError("the split leaves no row for train: all rows are said to be of val or test.")
    if rules.folds:
        if len(ids["test"]):
            raise UserError(f"data.folds={rules.folds} makes test rows, and this data says which they are.")
        ids["train"], ids["test"] = _fold(ids["train"], listing, rules)
    elif not len(ids["test"]):
        ids["train"], ids["test"] = _hold_out(ids["train"], listing, rules, test, num_left=1 + (not len(ids["val"])))
    if not len(ids["val"]):
        ids["train"], ids["val"] = _hold_out(ids["train"], listing, rules, val / (train + val))
    if empty := [name for name in SPLITS if not len(ids[name])]:
        raise UserError(f"the split leaves no row for {' and '.join(empty)}: {len(listing.y)} rows are too few for it.")
    if listing.group is not None:
        _check_groups(ids, listing.group)
    return {name: torch.from_numpy(np.sort(part)) for name, part in ids.items()}


def random_split(y: Tensor, fractions: list[float], seed: int, stratify: bool) -> dict[str, Tensor]:
    """Sorted ids (n,) of each split, of y: (N,) classes or (N, K) values. Raises as `assign` does."""
    names = tuple(str(label) for label in range(int(y.max()) + 1)) if stratify else ()
    return assign(Listing(y, names), Rules(fractions, seed, stratify))


def grouped_split(y: Tensor, groups: list[str], fractions: list[float], seed: int) -> dict[str, Tensor]:
    """As `random_split`, with all rows of a group on one side; shares and proportions are as near as groups allow."""
    return assign(Listing(y, ("",), group=np.array(groups)), Rules(fractions, seed))


def _hold_out(ids: Any, listing: Listing, rules: Rules, share: float, num_left: int = 1) -> tuple[Any, Any]:
    """Two parts of ids, the second of about `share` of them; of the first, `num_left` parts are to be made."""
    labels = listing.y[ids].numpy() if rules.stratify and listing.classes else None
    if listing.time is not None:
        if listing.group is not None:
            raise UserError(
                "data.time and data.group exclude each other: a group has rows before and after the cut. Leave out one."
            )
        order = ids[np.argsort(listing.time[ids], kind="stable")]
        cut = listing.time[order[len(order) - max(1, round(share * len(order)))]]
        later = listing.time[ids] >= cut  # rows of one time are on one side
        if later.all():
            raise UserError("data.time: there are too few different times to split by; take data.fractions alone.")
        return ids[~later], ids[later]
    if listing.group is not None:
        return _hold_out_groups(ids, listing, labels, rules.seed, share, num_left)
    try:
        kept, held = train_test_split(ids, test_size=share, random_state=rules.seed, stratify=labels)
    except ValueError as error:
        raise _too_few(ids, listing, 2) or UserError(_TOO_FEW.format(len(listing.y))) from error
    return kept, held


def _hold_out_groups(
    ids: Any, listing: Listing, labels: Any, seed: int, share: float, num_left: int
) -> tuple[Any, Any]:
    """As `_hold_out`, with all rows of a group in one part: as near to the share as groups allow."""
    assert listing.group is not None
    _, groups, sizes = np.unique(listing.group[ids], return_inverse=True, return_counts=True)
    if len(sizes) <= num_left:
        num = len(np.unique(listing.group))
        raise UserError(f"{num} groups are too few for data.fractions: train, val and test need at least one each.")
    if labels is None:
        held = np.isin(groups, _some(sizes, seed, share, most=len(sizes) - num_left))
        return ids[~held], ids[held]
    most = min(MAX_PARTS, len(sizes), int(np.bincount(labels).max()))
    part = Fraction(share).limit_denominator(most)  # 0.15 of the rows: three parts of twenty
    part = min(max(part, Fraction(1, most)), Fraction(most - 1, most))
    maker = StratifiedGroupKFold(part.denominator, shuffle=True, random_state=seed)
    return _folded(ids, listing, maker, range(part.numerator), labels)


def _some(sizes: Any, seed: int, share: float, most: int) -> list[int]:
    """Groups, drawn one after the other, that have about a share of all rows."""
    held, num, wanted = [], 0, share * sizes.sum()
    for index in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if abs(num + sizes[index] - wanted) < abs(num - wanted) and len(held) < most:
            held.append(index)
            num += sizes[index]
    return held or [int(sizes.argmin())]


def _check_groups(ids: dict[str, Any], group: np.ndarray[Any, Any]) -> None:
    """Raises a UserError where splits that are given share groups."""
    for first, second in (("train", "test"), ("val", "test"), ("train", "val")):
        if len(both := np.intersect1d(group[ids[first]], group[ids[second]])):
            rows = int(np.isin(group[ids[first]], both).sum())
            raise UserError(
                f"{len(both)} group(s) of data.group are in {first} and in {second} ({rows} of {len(ids[first])} "
                f"{first} rows), which the data says itself. Take those rows out of {first}, or leave data.group out."
            )


def _fold(ids: Any, listing: Listing, rules: Rules) -> tuple[Any, Any]:
    folds, fold = rules.folds, rules.fold
    assert folds
    if not 1 < folds <= len(ids):
        raise UserError(f"data.folds={folds}: from 2 to as many as there are rows, which are {len(ids)}.")
    if fold >= folds:
        raise UserError(f"data.fold={fold}: the folds of data.folds={folds} are 0 to {folds - 1}.")
    if listing.time is not None:
        raise UserError("data.folds and data.time exclude each other: a fold would be tested on what came before it.")
    settings: Any = {"n_splits": folds, "shuffle": True, "random_state": rules.seed}
    stratify = rules.stratify and bool(listing.classes)
    if listing.group is not None:
        maker: Any = StratifiedGroupKFold(**settings) if stratify else GroupKFold(**settings)
    else:
        maker = StratifiedKFold(**settings) if stratify else KFold(**settings)
        if stratify and (wrong := _too_few(ids, listing, folds)):
            raise wrong
    return _folded(ids, listing, maker, [fold], listing.y[ids].numpy() if stratify else np.zeros(len(ids), dtype=int))


def _folded(ids: Any, listing: Listing, maker: Any, folds: Iterable[int], labels: Any) -> tuple[Any, Any]:
    """The rows that are in none of the folds, and those that are."""
    groups = None if listing.group is None else listing.group[ids]
    if groups is not None and (num := len(np.unique(groups))) < maker.get_n_splits():
        raise UserError(f"{num} groups are too few: the split needs {maker.get_n_splits()}.")
    with warnings.catch_warnings():  # a class that is not in every part is told by its name, see honesty.py
        warnings.filterwarnings("ignore", "The least populated class in y has only")
        parts = [held for _, held in maker.split(ids, labels, groups)]
    held = np.zeros(len(ids), dtype=bool)
    held[np.concatenate([parts[fold] for fold in folds])] = True
    return ids[~held], ids[held]


def _too_few(ids: Any, listing: Listing, least: int) -> UserError | None:
    """Of a class, to be in every part."""
    if not listing.classes:
        return None
    counts = torch.bincount(listing.y[ids], minlength=len(listing.classes)).tolist()
    rare = [f"'{name}' ({count})" for name, count in zip(listing.classes, counts, strict=True) if 0 < count < least]
    if not rare:
        return None
    return UserError(
        f"too few rows to have {', '.join(rare[:5])} in each part of the split; {least} of each are needed. Leave "
        "such classes out, join them, or do not stratify: data.stratify=false."
    )

"""Equal rows in different splits: which of them are copies, and which are equal by chance. N rows, D columns.

In a table of few different values many rows are equal that were measured apart; to leave them out would throw away
what training is about. A row is taken for a copy where so equal a row is not to be expected in the whole table. The
chance of a row is that of a tree of columns (Chow and Liu, 1968): each depends on one other, by how often two rows
that are equal in the one are equal in the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

Array = np.ndarray[Any, Any]
Cells = Callable[[Array], Array]  # of rows (n,) their cells (n, D), numbers; NaN is a value like any other
SAMPLE = 100_000  # rows in which values are counted
PAIRS = 2000  # of rows, in which it is counted how columns go together
MOST = 32  # columns that are looked at: those whose values differ most
EXPECTED = 0.05  # rows equal by chance, in the whole table, below which equal ones are copies
COMMON = 10  # rows that are equal: so many are a frequent combination
UNFAIR = 1e-3  # chance below which what is left out is not drawn evenly from the classes


@dataclass(frozen=True)
class Copies:
    """Rows of a split that are equal to rows of a later one.

    Attributes:
    copied: (n,) of the rows of the split: whether each is a copy.
    by_chance: how many are equal as chance explains.
    """

    copied: Array
    by_chance: int


def chances(cells: Cells, rows: Array, identity: Array, times: Array) -> Array:
    """Return for each of `rows` (n,) the logarithm of how many rows equal to it are to be expected by chance.

    Args:
        identity: (N,) equal where rows are.
        times: (n,) how often each of `rows` is there.
    """
    rng = np.random.default_rng(0)
    num = len(identity)
    some = np.sort(rng.choice(num, SAMPLE, replace=False)) if num > SAMPLE else np.arange(num)
    codes, at = _codes(cells(some), cells(rows))
    same = identity[some]
    alike = _alike(codes, same, rng)  # (D, D)
    by_itself, of_rare = _agreement(codes, same)
    alike = np.fmax(alike, by_itself)  # of few columns the rest differ where one agrees: the rows are not equal
    order, parents = _tree(alike, by_itself)
    total = np.zeros(len(rows))
    for column, parent in zip(order, parents, strict=True):
        counts = np.bincount(codes[:, column], minlength=int(at[:, column].max()) + 1)
        share = counts[at[:, column]] / len(some)
        if parent is None:
            total += np.log(np.maximum(share, 1 / num))
            continue
        others = share - times / num
        typical = alike[parent, column] / by_itself[column]
        total += np.log(np.minimum(np.maximum(others, of_rare[column]) * typical, 1))
    return total + np.log(num)


def _multiplicity(identity: Array, rows: Array) -> Array:
    values, counts = np.unique(identity, return_counts=True)
    return counts[np.searchsorted(values, identity[rows])]


def _codes(some: Array, rows: Array) -> tuple[Array, Array]:
    """Values as codes, of the columns that differ most."""
    both = np.concatenate([some, rows])
    found = [np.unique(column, return_inverse=True, equal_nan=True)[1] for column in both.T]
    spread = [-(np.bincount(codes) ** 2).sum() for codes in found]
    kept = np.stack([found[index] for index in np.argsort(spread, kind="stable")[::-1][:MOST]], 1)
    return kept[: len(some)], kept[len(some) :]


def _agreement(codes: Array, same: Array) -> tuple[Array, Array]:
    """(D,) the shares of pairs of rows that agree in a column, of those not equal: in any value, and in a rare one."""
    num, of_rows = len(codes), np.unique(same, return_counts=True)[1]
    counts = [np.bincount(column) for column in codes.T]
    pairs = max(1, num * (num - 1) // 2 - _pairs(of_rows))
    found = np.array([_pairs(of) - _pairs(of_rows) for of in counts]) / pairs
    rare = np.array([_pairs(of[of <= COMMON]) - _pairs(of_rows[of_rows <= COMMON]) for of in counts]) / pairs
    least = 1 / num**2
    return np.maximum(found, least), np.maximum(rare, least)


def _pairs(counts: Array) -> int:
    return int((counts.astype(np.int64) * (counts - 1) // 2).sum())


def _alike(codes: Array, same: Array, rng: np.random.Generator) -> Array:
    """(D, D) of pairs of rows that agree in the first column, and are not equal, the share that agree in the second.

    NaN where there is no such pair.
    """
    found = np.full((codes.shape[1],) * 2, np.nan)
    for column, values in enumerate(codes.T):
        order = np.lexsort((rng.random(len(values)), values))
        first, second = order[:-1], order[1:]
        pair = np.flatnonzero((values[first] == values[second]) & (same[first] != same[second]))
        pair = rng.choice(pair, min(len(pair), PAIRS), replace=False)
        if len(pair):
            found[column] = (codes[first[pair]] == codes[second[pair]]).mean(0)
    return found


def _tree(alike: Array, by_itself: Array) -> tuple[list[int], list[int | None]]:
    """Columns with the one each depends on: the most telling first, then always the closest to one that is there."""
    closeness = np.log(np.maximum(alike, 1e-12)) - np.log(by_itself)
    order: list[int] = [int(by_itself.argmin())]
    parents: list[int | None] = [None]
    while len(order) < len(by_itself):
        left = [column for column in range(len(by_itself)) if column not in order]
        close = closeness[np.ix_(order, left)]
        parent, column = np.unravel_index(close.argmax(), close.shape)
        parents.append(order[parent])
        order.append(left[column])
    return order, parents


def copies(identity: Array, ids: Array, others: Array, cells: Cells | None) -> Copies:
    """Return which rows `ids` (n,) are copies of rows among `others`.

    Args:
        identity: (N,) equal where rows are equal in all but what is to be predicted.
        cells: what rows consist of; None where equal ones are never so by chance: pictures.
    """
    equal = np.isin(identity[ids], identity[others])
    rows = ids[equal]
    copied = np.zeros(len(ids), dtype=bool)
    if len(rows):
        times = _multiplicity(identity, rows)
        is_copy = times <= COMMON
        if cells is not None:
            is_copy &= chances(cells, rows, identity, times) + np.log(len(identity)) < np.log(EXPECTED)
        copied[equal] = is_copy
    return Copies(copied, int(equal.sum() - copied.sum()))


def is_fair(labels: Array, gone: Array) -> bool:
    """Return whether rows (n,) that are left out could be drawn evenly from the classes."""
    table = np.stack([np.bincount(labels[gone == side], minlength=int(labels.max()) + 1) for side in (False, True)])
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return True
    return float(chi2_contingency(table).pvalue) >= UNFAIR  # pyright: ignore[reportAttributeAccessIssue]

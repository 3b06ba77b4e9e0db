"""What the training rows of a table say of its columns, a few of which are in memory at a time. N rows, D columns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from research.data.spec import Column

BLOCK_ROWS = 1 << 16  # that are gathered together
NUM_PIECES = 16  # of a column of numbers, see Column.quantiles
GROUP_CELLS = 1 << 24  # of the columns that are held together: 64 MB
Array = np.ndarray[Any, Any]


def measured(table: Array, ids: Array, columns: Sequence[Column], max_categories: int) -> tuple[Column, ...]:
    """The columns with their medians, scales and most frequent categories.

    Args:
        table: (N, D) cells as floats, NaN where missing, -1 where a category is not known.
        ids: (n,) of the training rows, sorted.
    """
    found: list[Column] = []
    width = max(1, GROUP_CELLS // len(ids))
    for start in range(0, len(columns), width):
        group = slice(start, start + width)
        parts = [table[ids[row : row + BLOCK_ROWS], group] for row in range(0, len(ids), BLOCK_ROWS)]
        cells = np.concatenate(parts)  # (n, width)
        found += [_fitted(*each, max_categories) for each in zip(columns[group], cells.T, strict=True)]
    return tuple(found)


def _fitted(column: Column, values: Array, most: int) -> Column:
    """Of values (n,)."""
    there = values[~np.isnan(values)].astype(np.float64)
    missing = len(there) < len(values)
    if column.kind == "categorical":
        counts = np.bincount(there.astype(np.int64), minlength=len(column.categories))
        best = np.sort(np.argsort(-counts, kind="stable")[:most])
        kept = tuple(column.categories[code] for code in best if counts[code])
        return replace(column, categories=kept, missing=missing)
    if not len(there):
        return replace(column, missing=missing)
    quantiles = np.unique(np.quantile(there, np.linspace(0, 1, NUM_PIECES + 1)).astype(np.float32))
    scale = {"median": float(np.median(there)), "mean": float(there.mean()), "std": float(there.std()) or 1.0}
    return replace(column, missing=missing, quantiles=tuple(quantiles.tolist()), **scale)

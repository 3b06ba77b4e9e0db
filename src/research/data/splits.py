"""Disjoint row ids for train, val and test; functions of their arguments alone, never of a global generator."""

import torch
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor

SPLITS = ("train", "val", "test")


def random_split(y: Tensor, fractions: list[float], seed: int, stratify: bool) -> dict[str, Tensor]:
    """Sorted ids (n,) of each split.

    Args:
        y: (N,) classes or (N, K) values.
        stratify: keep the proportions of the classes.

    Raises:
        ValueError: too few rows, or too few of a class to stratify.
    """
    ids, labels = torch.arange(len(y)).numpy(), y.numpy()
    rest, test = train_test_split(ids, test_size=fractions[2], random_state=seed, stratify=labels if stratify else None)
    share = fractions[1] / (fractions[0] + fractions[1])
    train, val = train_test_split(rest, test_size=share, random_state=seed, stratify=labels[rest] if stratify else None)
    return {name: torch.from_numpy(part).sort().values for name, part in zip(SPLITS, (train, val, test), strict=True)}


def grouped_split(y: Tensor, groups: list[str], fractions: list[float], seed: int) -> dict[str, Tensor]:
    """As `random_split`, with all rows of a group on one side; shares and proportions are as near as groups allow."""
    rest, test = _hold_out(torch.arange(len(y)), y, groups, fractions[2], seed)
    train, val = _hold_out(rest, y, groups, fractions[1] / (fractions[0] + fractions[1]), seed)
    return {"train": train, "val": val, "test": test}


def _hold_out(ids: Tensor, y: Tensor, groups: list[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    folds = StratifiedGroupKFold(max(2, round(1 / share)), shuffle=True, random_state=seed)
    kept, held = next(folds.split(ids.numpy(), y[ids].numpy(), [groups[i] for i in ids]))
    return ids[torch.from_numpy(kept)], ids[torch.from_numpy(held)]

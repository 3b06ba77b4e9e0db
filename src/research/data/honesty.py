"""What would make a number mean less than it says, looked for before training. Each finding names the fix."""

import logging
from collections.abc import Iterator, Mapping
from math import lgamma

import numpy as np
import torch
from torch import Tensor

from research.data.copies import copies, is_fair
from research.data.spec import Spec
from research.data.splits import Listing
from research.engine.errors import UserError

log = logging.getLogger(__name__)

SAMPLE = 20_000  # training rows that a column is judged by
IMBALANCE = 10  # times as many rows of the largest class as of the smallest
ALONE = 0.999  # of what there is to predict
BY_CHANCE = 1e-6  # what a column tells counts where a shuffled target would be told more seldom than this


def warn(findings: list[str], text: str, *values: object) -> None:
    """Says a finding on the screen, once, and keeps it for the run's record."""
    if text % values in findings:
        return
    findings.append(text % values)
    log.warning("warning    " + text, *values)


def drop_copies(ids: dict[str, Tensor], listing: Listing, findings: list[str]) -> dict[str, Tensor]:
    """Leaves copies of rows of another split out of train, and those of test out of val, whatever their y is.

    Rows that are equal by chance stay, and so do copies of which some class has more than its share.

    Raises:
        UserError: it would take more than half of the training rows.
    """
    assert listing.identity is not None
    kept = {name: part.numpy() for name, part in ids.items()}
    gone, by_chance = {}, 0
    for name, later in (("val", ["test"]), ("train", ["val", "test"])):
        others = np.concatenate([ids[split].numpy() for split in later])
        found = copies(listing.identity, kept[name], others, listing.cells)
        if found.copied.any() and listing.classes and not is_fair(listing.y[kept[name]].numpy(), found.copied):
            text = (
                "%d of %d rows of %s are copies of rows of another split, and stay: without them the shares of classes "
            )
            fix = "would change. Keep copies in one split by data.group, or remove them from the file"
            warn(findings, text + fix, found.copied.sum(), len(found.copied), name)
            continue
        gone[name], by_chance = int(found.copied.sum()), by_chance + found.by_chance
        kept[name] = kept[name][~found.copied]
    if gone.get("train", 0) > len(ids["train"]) / 2 or not len(kept["val"]):
        raise UserError(
            f"{gone['train']} of {len(ids['train'])} training rows are copies of rows of val or test. Remove the "
            "copies, or group what belongs together (data.group); data.duplicates=keep goes on with them."
        )
    if any(gone.values()):
        what = " and ".join(f"{count} of {name}" for name, count in gone.items() if count)
        text = "%s left out: they are copies of rows of another split, which chance does not explain "
        warn(findings, text + "(data.duplicates=keep keeps them)", what)
    if by_chance:
        text = "%d rows of train or val equal rows of another split, as so few different values do by chance; they stay"
        warn(findings, text, by_chance)
    return {name: torch.from_numpy(part) for name, part in kept.items()}


def check_classes(classes: tuple[str, ...], y: Mapping[str, Tensor], findings: list[str]) -> None:
    """Classes that a split has no row of, and classes of which there are few.

    Raises:
        UserError: no training row has a class.
    """
    counts = {name: torch.bincount(labels, minlength=len(classes)).tolist() for name, labels in y.items()}
    for name, of_each in counts.items():
        absent = [classes[index] for index, count in enumerate(of_each) if not count]
        if absent and name == "train":
            raise UserError(
                f"no training row has the class(es) {', '.join(absent)}; they would be seen only in val or test. "
                "Take another data.split_seed, data.stratify=true where that is off, or leave these classes out."
            )
        if absent:
            warn(findings, "%s has no row of the class(es) %s; metrics say nothing of them", name, ", ".join(absent))
    most, least = max(counts["train"]), min(counts["train"])
    if most > IMBALANCE * least:
        names = classes[counts["train"].index(most)], classes[counts["train"].index(least)]
        text = "class '%s' has %d training rows and '%s' %d; read f1, not acc alone, and consider class weights "
        fix = "(loss=cross_entropy loss.class_weights=balanced) or a balanced sampler (data.balanced=true)"
        warn(findings, text + fix, names[0], most, names[1], least)


def check_columns(x: np.ndarray, y: np.ndarray, spec: Spec, findings: list[str]) -> None:
    """Columns that are the target, or predict it alone.

    Args:
        x: (n, D) of training rows.
        y: (n,).

    Raises:
        UserError: a column that is the target.
    """
    for name, score, same in _alone(x, y, spec):
        if same:
            raise UserError(f"column '{name}' is the target in other words; leave it out: data.drop=[{name}].")
        text = "column '%s' alone predicts the target (%.4f of it); if it is known only afterwards, data.drop=[%s]"
        warn(findings, text, name, score, name)


def _alone(x: np.ndarray, y: np.ndarray, spec: Spec) -> Iterator[tuple[str, float, bool]]:
    """Name, held-out score, whether the column is the target, of each column that explains all there is."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    index = np.random.default_rng(0).permutation(len(x))
    x, y = np.nan_to_num(x[index].astype(np.float64), nan=-1e30), y[index]
    half = len(x) // 2
    classes = spec.target == "class"
    counts = np.unique(y, return_counts=True)[1]
    is_telling = _log_orders(counts, any_names=classes) > -np.log(BY_CHANCE)
    held = np.unique(y[half:], return_counts=True)[1]  # what a column of noise would have to hit
    is_enough = half >= 50 and _log_orders(held, any_names=False) > -np.log(BY_CHANCE)
    for column, values in zip(spec.columns, x.T, strict=True):
        if is_telling and (_one_to_one(values, y) if classes else _linear(values, y)):
            yield column.name, 1, True
        elif is_enough:
            # a leaf a class: what is the target in other words needs no more, and a measurement seldom does as well
            most = len(spec.classes) + 1 if classes else 256
            tree = (DecisionTreeClassifier if classes else DecisionTreeRegressor)(max_leaf_nodes=most, random_state=0)
            rows = values[:, None]
            score = float(tree.fit(rows[:half], y[:half]).score(rows[half:], y[half:]))
            if score >= ALONE:
                yield column.name, score, False


def _log_orders(counts: np.ndarray, any_names: bool) -> float:
    """The logarithm of in how many orders values can be of which each is there so many times.

    Args:
        any_names: whether orders are the same that differ in what the values are called.
    """
    orders = lgamma(counts.sum() + 1) - sum(lgamma(count + 1) for count in counts)
    return orders - (lgamma(len(counts) + 1) if any_names else 0)


def _one_to_one(values: np.ndarray, y: np.ndarray) -> bool:
    return len(np.unique(values)) == len(np.unique(y)) == len(np.unique(np.c_[values, y], axis=0))


def _linear(values: np.ndarray, y: np.ndarray) -> bool:
    """Whether points are on a line: all of them, not a few that are far away from the others."""
    ranks = [np.unique(numbers, return_inverse=True)[1] for numbers in (values, y)]
    if not all(rank.any() for rank in ranks):  # a number that is always the same
        return False
    return abs(np.corrcoef(values, y)[0, 1]) > 1 - 1e-9 and abs(np.corrcoef(ranks[0], ranks[1])[0, 1]) > ALONE

"""Gradient-boosted trees: the baseline that a network on a table is held against.

scikit-learn grows the trees (histogram gradient boosting, after LightGBM, Ke et al., 2017); here they are tensors, so
they are saved, scored, exported and used for predictions as any network is. B rows, F numbers or codes a row, K
outputs; T trees of at most N nodes; S splits by category, of W - 1 codes and what is missing.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import NonNegativeFloat, PositiveFloat, PositiveInt
from research.models.linear import Rows, with_every_class

CHECKED = 1024  # training rows on which the tensors are held against the library
MAX_CATEGORIES = 255  # of a column that the library splits by category; a column of more is split as numbers
NODES = {"feature": torch.long, "left": torch.long, "right": torch.long, "by": torch.long}  # (T, N) each; and
NODES |= {"threshold": torch.float32, "value": torch.float32, "missing_left": torch.bool}


class Boosting(nn.Module):
    """Trees that are fitted to all rows at once, see `tasks/fitted.py`.

    They take the cells of a table as they are: categories by their codes, NaN where a cell is missing. A category that
    is not known counts as missing.

    Args:
        num_rounds: trees, for each output; at most so many where `patience` ends them.
        learning_rate: of each tree's say.
        max_leaf_nodes: of a tree.
        min_samples_leaf: training rows in a leaf.
        l2: regularisation of the leaves' values.
        patience: rounds without a lower loss on the validation rows, after which the best round is taken; None for all.

    Raises:
        ValueError: x is no table of numbers.
    """

    takes = "cells"

    def __init__(
        self,
        spec: Spec,
        num_rounds: PositiveInt,
        learning_rate: PositiveFloat,
        max_leaf_nodes: Annotated[int, Field(ge=2)],
        min_samples_leaf: PositiveInt,
        l2: NonNegativeFloat,
        patience: PositiveInt | None,
    ) -> None:
        super().__init__()
        spec.need("model=boosting", kind=("features", "image"))
        if spec.target == "value" and spec.num_outputs > 1:
            raise ValueError(f"model=boosting predicts one number; this data has {spec}")
        self.classes, self.patience = len(spec.classes), patience
        self.settings: dict[str, Any] = {"max_iter": num_rounds, "learning_rate": learning_rate}
        self.settings |= {"max_leaf_nodes": max_leaf_nodes, "min_samples_leaf": min_samples_leaf}
        self.settings |= {"l2_regularization": l2, "n_iter_no_change": patience or 10}
        self.codes = [i for i, column in enumerate(spec.columns) if column.kind == "categorical"]
        self.by_category = [i for i in self.codes if len(spec.columns[i].categories) <= MAX_CATEGORIES]
        num_raw = self.classes if self.classes > 2 else 1  # trees of a round
        for name, kind in NODES.items():
            self.register_buffer(name, torch.zeros(num_raw, 1, dtype=kind))
        self.register_buffer("left_codes", torch.zeros(1, 1, dtype=torch.bool))  # (S, W): which go left
        self.register_buffer("baseline", torch.zeros(num_raw))
        self.register_buffer("levels", torch.zeros((), dtype=torch.long))
        self.depth = 0  # the same as a number: forward goes down so many levels

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) of F numbers and codes a row -> (B, K) logits or values."""
        table: dict[str, Any] = {name: getattr(self, name).flatten() for name in NODES}
        left: Any = self.left
        num_trees, num_nodes = left.shape
        first = torch.arange(num_trees, device=x.device) * num_nodes  # (T,)
        at, cells = first.expand(len(x), num_trees), self._known(x.flatten(1))  # (B, T): the node each row is at
        for _ in range(self.depth):
            cell = cells.gather(1, table["feature"][at])
            goes_left = cell.isnan() & table["missing_left"][at] | (cell <= table["threshold"][at])
            if self.by_category:
                by, last = table["by"][at], self.left_codes.shape[1] - 1  # pyright: ignore
                code = cell.nan_to_num(last).clamp(0, last).long()
                goes_left = (by > 0) & self.left_codes[by, code] | (by == 0) & goes_left  # pyright: ignore
            at = first + torch.where(goes_left, table["left"][at], table["right"][at])
        baseline: Any = self.baseline
        raw = table["value"][at].unflatten(1, (-1, len(baseline))).sum(1) + baseline  # (B, K)
        if self.classes == 2:  # one tree says how much more likely the second class is
            raw = torch.cat([torch.zeros_like(raw), raw], 1)
        return raw.to(x.dtype)

    def _known(self, cells: Tensor) -> Tensor:
        """(B, F) with NaN in place of the code -1, of what is not known."""
        if not self.codes:
            return cells
        coded = torch.zeros(cells.shape[1], dtype=torch.bool, device=cells.device)
        coded[self.codes] = True
        return cells.masked_fill(coded & (cells < 0), torch.nan)

    def fit(self, train: Rows, val: Rows | None, seed: int) -> None:
        """Grow the trees.

        Args:
            train, val: x (N, ...), y (N,) classes or (N, 1) values, and weights (N,) of the rows.
            seed: of the library's draws.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind: Any = HistGradientBoostingClassifier if self.classes else HistGradientBoostingRegressor
        stops = self.patience is not None and val is not None
        made: Any = kind(
            **self.settings, random_state=seed, early_stopping=stops, categorical_features=self.by_category or None
        )
        x, y, weights = self._arrays(*with_every_class(train, self.classes))
        names = ("X_val", "y_val", "sample_weight_val")
        made.fit(x, y, weights, **dict(zip(names, self._arrays(*val), strict=True)) if stops and val else {})
        if stops:  # which the library only uses to end
            made._predictors = made._predictors[: max(1, int(np.argmax(made.validation_score_)))]
        self._read(made)
        some = torch.linspace(0, len(train[0]) - 1, min(len(train[0]), CHECKED)).long()
        expected = torch.from_numpy((made.decision_function if self.classes else made.predict)(x[some.numpy()]))
        found = self(train[0][some])
        found = (found[:, 1] if self.classes == 2 else found).double().reshape(expected.shape)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):  # its trees are no public interface
            raise RuntimeError("the trees of this release of scikit-learn are not of the form that is expected")

    def _arrays(self, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Any, Any, Any]:
        return self._known(x.flatten(1)).numpy(), y.flatten().numpy(), None if weights is None else weights.numpy()

    def _read(self, made: Any) -> None:
        """Take over the trees of the library."""
        trees = [tree for trees in made._predictors for tree in trees]
        columns, categories = _columns(made)
        width = max((int(codes.max()) + 1 for codes in categories if len(codes)), default=0) + 1
        tables, sets = [], [torch.zeros(width, dtype=torch.bool)]
        for tree in trees:
            tables.append(_table(tree.nodes, columns, len(sets)))
            sets += _left_codes(tree, categories, width)
        size = max(len(tree.nodes) for tree in trees)
        for name in NODES:
            setattr(self, name, torch.stack([nn.functional.pad(t[name], (0, size - len(t[name]))) for t in tables]))
        self.left_codes = torch.stack(sets)
        self.baseline = torch.from_numpy(made._baseline_prediction).flatten().float()
        self.depth = max(int(tree.nodes["depth"].max()) for tree in trees)
        self.levels = torch.tensor(self.depth)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **more: Any) -> None:
        for name in (*NODES, "left_codes", "baseline"):
            if (given := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)
        self.depth = int(self.levels)  # pyright: ignore


def _columns(made: Any) -> tuple[Any, list[Any]]:
    """The library's order of columns, (F,), those of categories first; and the codes of each of these, in its order."""
    by_category = made.is_categorical_
    if by_category is None:
        return np.arange(made.n_features_in_), []
    codes = made._preprocessor.named_transformers_["encoder"].categories_
    order = np.concatenate([np.flatnonzero(by_category), np.flatnonzero(~by_category)])
    return order, [each[~np.isnan(each)].astype(np.int64) for each in codes]


def _table(nodes: Any, columns: Any, first: int) -> dict[str, Tensor]:
    """(N,) of one tree. A leaf is its own child, so that a row that has arrived stays.

    Args:
        columns: (F,) in the library's order.
        first: the place of the tree's first split by category among those of all trees.
    """
    leaf, own = torch.from_numpy(nodes["is_leaf"]).bool(), torch.arange(len(nodes))
    by = torch.from_numpy(nodes["bitset_idx"].astype(np.int64)) + first
    return {
        "feature": torch.from_numpy(columns[np.where(nodes["is_leaf"], 0, nodes["feature_idx"])]),
        "threshold": rounded_down(torch.from_numpy(nodes["num_threshold"].copy())),
        "missing_left": torch.from_numpy(nodes["missing_go_to_left"]).bool(),
        "by": torch.where(torch.from_numpy(nodes["is_categorical"]).bool() & ~leaf, by, 0),
        "left": torch.where(leaf, own, torch.from_numpy(nodes["left"].astype(np.int64))),
        "right": torch.where(leaf, own, torch.from_numpy(nodes["right"].astype(np.int64))),
        "value": torch.where(leaf, torch.from_numpy(nodes["value"].copy()), 0.0).float(),
    }


def _left_codes(tree: Any, categories: list[Any], width: int) -> Iterator[Tensor]:
    """(W,) of each split by category of a tree: the codes that go left, and last whether what is missing does.

    What the library has not seen goes where what is missing goes.
    """
    splits = tree.nodes[(tree.nodes["is_categorical"] == 1) & (tree.nodes["is_leaf"] == 0)]
    for node in sorted(splits, key=lambda node: node["bitset_idx"]):
        bits = np.unpackbits(tree.raw_left_cat_bitsets[node["bitset_idx"]].view(np.uint8), bitorder="little")
        codes = categories[node["feature_idx"]]
        goes_left = np.full(width, bool(node["missing_go_to_left"]))
        goes_left[codes] = bits[: len(codes)]
        yield torch.from_numpy(goes_left)


def rounded_down(thresholds: Tensor) -> Tensor:
    """float64 as the next float32 that is not above: what is in float32 lies on the same side of both."""
    nearest = thresholds.float()
    return torch.where(nearest.double() > thresholds, nearest.nextafter(torch.tensor(-torch.inf)), nearest)

"""Gradient-boosted trees: the baseline that a network on a table is held against. B rows, F numbers, K outputs.

scikit-learn grows the trees (histogram gradient boosting, after LightGBM, Ke et al., 2017); here they are tensors, so
they are saved, scored, exported and used for predictions as any network is. T trees of at most N nodes.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import NonNegativeFloat, PositiveFloat, PositiveInt

CHECKED = 1024  # training rows on which the tensors are held against the library
TABLES = ("feature", "threshold", "left", "right", "value")  # (T, N) each


class Boosting(nn.Module):
    """Trees that are fitted to all rows at once, see `tasks/fitted.py`.

    Args:
        num_rounds: trees, for each output.
        learning_rate: of each tree's say.
        max_leaf_nodes: of a tree.
        min_samples_leaf: training rows in a leaf.
        l2: regularisation of the leaves' values.

    Raises:
        ValueError: x is no table of numbers.
    """

    def __init__(
        self,
        spec: Spec,
        num_rounds: PositiveInt,
        learning_rate: PositiveFloat,
        max_leaf_nodes: Annotated[int, Field(ge=2)],
        min_samples_leaf: PositiveInt,
        l2: NonNegativeFloat,
    ) -> None:
        super().__init__()
        spec.need("model=boosting", kind=("features", "image"))
        if spec.target == "value" and spec.num_outputs > 1:
            raise ValueError(f"model=boosting predicts one number; this data has {spec}")
        self.classes = len(spec.classes)
        self.settings: dict[str, Any] = {"max_iter": num_rounds, "learning_rate": learning_rate}
        self.settings |= {"max_leaf_nodes": max_leaf_nodes, "min_samples_leaf": min_samples_leaf}
        self.settings |= {"l2_regularization": l2, "early_stopping": False}
        num_raw = self.classes if self.classes > 2 else 1  # trees of a round
        kinds = {"feature": torch.long, "left": torch.long, "right": torch.long}
        for name in TABLES:
            self.register_buffer(name, torch.zeros(num_raw, 1, dtype=kinds.get(name, torch.float32)))
        self.register_buffer("baseline", torch.zeros(num_raw))
        self.register_buffer("levels", torch.zeros((), dtype=torch.long))
        self.depth = 0  # the same as a number: forward goes down so many levels

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) of F numbers a row -> (B, K) logits or values."""
        table: dict[str, Any] = {name: getattr(self, name).flatten() for name in TABLES} | {"shape": self.left.shape}
        num_trees, num_nodes = table["shape"]
        first = torch.arange(num_trees, device=x.device) * num_nodes  # (T,)
        at, numbers = first.expand(len(x), num_trees), x.flatten(1)  # (B, T): the node each row is at
        for _ in range(self.depth):
            goes_left = numbers.gather(1, table["feature"][at]) <= table["threshold"][at]
            at = first + torch.where(goes_left, table["left"][at], table["right"][at])
        baseline: Any = self.baseline
        raw = table["value"][at].unflatten(1, (-1, len(baseline))).sum(1) + baseline  # (B, K)
        if self.classes == 2:  # one tree says how much more likely the second class is
            raw = torch.cat([torch.zeros_like(raw), raw], 1)
        return raw.to(x.dtype)

    def fit(self, x: Tensor, y: Tensor, seed: int, weights: Tensor | None = None) -> None:
        """Grows the trees. x: (N, ...); y: (N,) classes or (N, 1) values; weights: (N,) of the rows, None for 1."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if self.classes else HistGradientBoostingRegressor
        made: Any = kind(**self.settings, random_state=seed)
        x = x.flatten(1)
        made.fit(x.numpy(), y.flatten().numpy(), None if weights is None else weights.numpy())
        trees = [tree.nodes for trees in made._predictors for tree in trees]
        size = max(map(len, trees))
        for name in TABLES:
            setattr(self, name, torch.stack([_column(nodes, name, size) for nodes in trees]))
        self.baseline = torch.from_numpy(made._baseline_prediction).flatten().float()
        self.depth = max(int(nodes["depth"].max()) for nodes in trees)
        self.levels = torch.tensor(self.depth)
        some = x[torch.linspace(0, len(x) - 1, min(len(x), CHECKED)).long()]
        expected = torch.from_numpy((made.decision_function if self.classes else made.predict)(some.numpy()))
        found = self(some)[:, 1] if self.classes == 2 else self(some)
        found = found.double().reshape(expected.shape)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):  # its trees are no public interface
            raise RuntimeError("the trees of this release of scikit-learn are not of the form that is expected")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **more: Any) -> None:
        for name in (*TABLES, "baseline"):
            if (given := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)
        self.depth = int(self.levels)  # pyright: ignore


def _column(nodes: Any, name: str, size: int) -> Tensor:
    """(N,) of one tree. A leaf is its own child, so that a row that has arrived stays."""
    own = torch.arange(len(nodes))
    leaf = torch.from_numpy(nodes["is_leaf"]).bool()
    names = {"feature": "feature_idx", "threshold": "num_threshold"}
    values = torch.from_numpy(nodes[names.get(name, name)].copy())
    if name in ("left", "right"):
        values = torch.where(leaf, own, values.long())
    elif name == "feature":
        values = torch.where(leaf, 0, values.long())
    elif name == "value":
        values = torch.where(leaf, values, 0.0).float()
    elif name == "threshold":
        values = rounded_down(values)
    return nn.functional.pad(values, (0, size - len(values)))


def rounded_down(thresholds: Tensor) -> Tensor:
    """float64 as the next float32 that is not above: what is in float32 lies on the same side of both."""
    nearest = thresholds.float()
    return torch.where(nearest.double() > thresholds, nearest.nextafter(torch.tensor(-torch.inf)), nearest)

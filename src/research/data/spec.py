"""What a dataset says of itself, in plain values: enough to build a network, a loss and metrics without the data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Column:
    """What a network sees of one column of a table, as fitted on the training rows.

    Attributes:
    kind: a date counts as days since 1970, a boolean as 0 and 1.
    categories: texts, in the order of their codes; a text that is not among them counts as unknown.
    missing: whether training rows lack it; the network then sees an indicator.
    median: what stands for a missing number.
    mean, std: of the numbers that are there.
    quantiles: of these, from the least to the largest, each once: the ends of pieces that hold as many rows each.
    """

    name: str
    kind: Literal["numeric", "boolean", "date", "categorical"]
    categories: tuple[str, ...] = ()
    missing: bool = False
    median: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    quantiles: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Numbers that the network sees."""
        return (len(self.categories) if self.kind == "categorical" else 1) + self.missing


@dataclass(frozen=True)
class Spec:
    """Attributes:
    kind: what x is: `features` (D,), an `image` (C, H, W) in [0, 1], ...
    shape: of one x, without the batch.
    target: what y is: `class` (one of `classes`) or `value` (a vector of numbers).
    classes: names, in the order of the labels; empty for `value`.
    x_mean, x_std: over the training rows, one number a feature or channel; empty where x is not scaled.
    y_mean, y_std: over the training rows, one number a target; empty for `class`.
    class_counts: training rows of each class; empty for `value`.
    columns: of a table: x is then (D,) numbers and codes as in the file, and `shape` what the network sees of them.
    mask, special: of texts: the id that hides a word, if there is one, and those that are no words (padding, ...).
    text: of texts of the user: their column.
    """

    kind: Literal["features", "image", "text"]
    shape: tuple[int, ...]
    target: Literal["class", "value"]
    classes: tuple[str, ...] = ()
    x_mean: tuple[float, ...] = ()
    x_std: tuple[float, ...] = ()
    y_mean: tuple[float, ...] = ()
    y_std: tuple[float, ...] = ()
    class_counts: tuple[int, ...] = ()
    columns: tuple[Column, ...] = ()
    mask: int | None = None
    special: tuple[int, ...] = ()
    text: str | None = None

    @property
    def num_outputs(self) -> int:
        """Numbers that a network predicts for one row."""
        return len(self.classes) if self.target == "class" else len(self.y_mean)

    def __str__(self) -> str:
        target = f"{len(self.classes)} classes" if self.target == "class" else f"{self.num_outputs} numeric target(s)"
        return f"{self.kind} {' x '.join(map(str, self.shape))} -> {target}"

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "Spec":
        """Of what `plain` has written."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        lists = ("categories", "quantiles")
        columns = [
            Column(**{**column, **{key: tuple(column[key]) for key in lists if key in column}})
            for column in plain.get("columns", ())
        ]
        return cls(**{**values, "columns": tuple(columns)})

    def plain(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)

    def need(self, what: str, *, kind: tuple[str, ...] = (), target: str = "") -> None:
        """Raises a ValueError that names `what` unless x or y is as given."""
        if kind and self.kind not in kind:
            raise ValueError(f"{what} takes x of kind {' or '.join(kind)}; this data has {self}")
        if target and self.target != target:
            raise ValueError(f"{what} is for targets that are a {target}; this data has {self}")

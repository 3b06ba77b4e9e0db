"""`make bench`: tables: the default network over 5 seeds against boosting, a linear model, and scikit-learn's own.

python tests/bench/tables.py [NAME ...] [model.depth=1 ...]    # of some tables, with other settings of the network

Each seed is a split of its own, and all see its rows: the network, scikit-learn's linear model behind imputing, scaling
and one-hot encoding, and its HistGradientBoosting with native categories; on the first split also `model=linear` and
`model=boosting`, of which the largest difference from the library's is shown. Accuracy or R2 on the test rows, means
over the seeds. The tables are those that scikit-learn bundles, and made ones with 2,000 more rows to test on. Nothing
is asserted.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table as Grid
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from spine import ROOT

sys.path.insert(0, str(ROOT / "src"))
from research.engine.build import Parts
from research.engine.checkpoint import load, path_of
from research.engine.fit import fit
from research.engine.score import score

SEEDS = range(5)
TEST_ROWS = 2000  # of made tables
NEAR = 0.02  # that the network may be below the linear model
BARE = ("logger=none", "callbacks.progress=null", "callbacks.summary=null", "callbacks.learning_rate=null")
BARE += ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0")
Frame = pd.DataFrame
Make = Callable[[np.random.Generator, int], dict[str, Any]]  # columns, and `y`


def frame(x: Any, y: Any) -> dict[str, Any]:
    return {**{f"x{i}": column for i, column in enumerate(np.asarray(x).T)}, "y": y}


def labels(score: Any, noise: Any = 0) -> Any:
    """Two classes of equal size, the second where a score with noise is high."""
    found = score + noise
    return np.where(found > np.median(found), "yes", "no")


def linear(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 8))
    return frame(x, x @ np.linspace(1, -1, 8) + draw.normal(size=n))


def logistic(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 8))
    return frame(x, labels(x @ np.linspace(1, -1, 8), draw.logistic(size=n)))


def wide(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 40))
    return frame(x, x[:, :5].sum(1) + draw.normal(size=n))


def noise(draw: np.random.Generator, n: int) -> dict[str, Any]:
    return frame(draw.normal(size=(n, 6)), draw.normal(size=n))


def noise_classes(draw: np.random.Generator, n: int) -> dict[str, Any]:
    return frame(draw.normal(size=(n, 6)), labels(draw.normal(size=n)))


def collinear(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 3)) @ draw.normal(size=(3, 12)) + 0.1 * draw.normal(size=(n, 12))
    return frame(x, x.sum(1) + draw.normal(size=n))


def friedman1(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.random((n, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return frame(x, y + draw.normal(size=n))


def friedman2(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.random((n, 4)) * [100, 520 * np.pi, 1, 10] + [0, 40 * np.pi, 0, 1]
    return frame(x, np.hypot(x[:, 0], x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])) + 100 * draw.normal(size=n))


def product(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 5))
    return frame(x, labels(x[:, 0] * x[:, 1], 0.2 * draw.normal(size=n)))


def ring(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 4))
    return frame(x, labels((x[:, :2] ** 2).sum(1), 0.3 * draw.normal(size=n)))


def stairs(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.random((n, 5)) * 100
    return frame(x, np.floor(x[:, 0] / 12) % 3 + (x[:, 1] > 70) * 2 + 0.2 * draw.normal(size=n))


def tails(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = np.exp(2 * draw.normal(size=(n, 5)))
    return frame(x, np.log(x[:, 0]) + 0.5 * np.log(x[:, 1]) + 0.5 * draw.normal(size=n))


def tail_classes(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.standard_t(1.5, (n, 6))
    return frame(x, labels(np.arctan(x[:, 0]) + np.arctan(x[:, 1]), 0.5 * draw.normal(size=n)))


def dear(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """A target with a heavy tail."""
    x = draw.normal(size=(n, 5))
    return frame(x, np.exp(x[:, 0] + 0.5 * x[:, 1] + 0.3 * draw.normal(size=n)))


def frequent(draw: np.random.Generator, n: int) -> dict[str, Any]:
    codes = draw.integers(0, [3, 4, 5], (n, 3))
    effects = np.array([[0, 1, 3, 0, 0], [2, 0, 1, -1, 0], [0.5, -2, 0, 1, 2]])
    y = effects[np.arange(3), codes].sum(1) + draw.normal(size=n)
    return {**{f"c{i}": [f"v{code}" for code in codes[:, i]] for i in range(3)}, "u": draw.normal(size=n), "y": y}


def rare(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """Eighty makes, half of them rare, each with an effect of its own."""
    make, size = (80 * draw.random(n) ** 2).astype(int), draw.normal(size=n)
    effect = np.random.default_rng(1).normal(size=80) * 2
    return {"make": [f"m{code}" for code in make], "size": size, "y": effect[make] + size + 0.5 * draw.normal(size=n)}


def rare_classes(draw: np.random.Generator, n: int) -> dict[str, Any]:
    columns = rare(draw, n)
    return {**columns, "y": labels(columns["y"])}


def by_group(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """A slope that differs from category to category."""
    code, x = draw.integers(0, 6, n), draw.normal(size=(n, 3))
    y = np.array([2, -2, 1, 0, -1, 3])[code] * x[:, 0] + x[:, 1] + 0.5 * draw.normal(size=n)
    return {"group": [f"g{each}" for each in code], **frame(x, y)}


def missing(draw: np.random.Generator, n: int) -> dict[str, Any]:
    columns = linear(draw, n)
    for name in list(columns)[:-1]:
        columns[name] = np.where(draw.random(n) < 0.2, np.nan, columns[name])
    return columns


def missing_tells(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """That a cell is missing says more than its value."""
    x, gone = draw.normal(size=(n, 5)), draw.random((n, 2)) < 0.3
    y = labels(x[:, 0] + 2 * gone[:, 0] - 2 * gone[:, 1], 0.5 * draw.normal(size=n))
    x[:, 1:3][gone] = np.nan
    return frame(x, y)


def unbalanced(draw: np.random.Generator, n: int) -> dict[str, Any]:
    x = draw.normal(size=(n, 6))
    score = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * draw.normal(size=n)
    return frame(x, np.where(score > np.quantile(score, 0.9), "yes", "no"))


def many_classes(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """Eight classes, two clouds each."""
    code = draw.integers(0, 16, n)
    centers = np.random.default_rng(2).normal(size=(16, 6)) * 2
    return frame(centers[code] + draw.normal(size=(n, 6)), [f"k{each}" for each in code % 8])


def mixed(draw: np.random.Generator, n: int) -> dict[str, Any]:
    """A little of everything."""
    town, kind, x = draw.integers(0, 30, n), draw.integers(0, 3, n), draw.normal(size=(n, 4))
    effect = np.random.default_rng(3).normal(size=30)
    y = effect[town] + np.array([1, 0, -1])[kind] * x[:, 0] + np.abs(x[:, 1]) + 0.5 * draw.normal(size=n)
    x[:, 2] = np.exp(2 * x[:, 2])
    x[draw.random((n, 4)) < 0.05] = np.nan
    return {"town": [f"t{each}" for each in town], "kind": [f"k{each}" for each in kind], **frame(x, y)}


def bundled(name: str, target: int = 0) -> Frame:
    given: Any = getattr(datasets, f"load_{name}")()
    y = given.target if given.target.ndim == 1 else given.target[:, target]
    names = getattr(given, "target_names", None)
    return Frame(frame(given.data, [f"c{each}" for each in y] if names is not None and given.target.ndim == 1 else y))


SMALL: tuple[Make, ...] = (linear, logistic, wide, noise, noise_classes, collinear, friedman1, friedman2, product, ring)
SMALL += (tails, tail_classes, dear, frequent, by_group, missing, missing_tells, unbalanced, mixed, stairs)
LARGE: tuple[Make, ...] = (linear, friedman1, product, stairs, tails, rare, rare_classes, by_group, missing_tells)
LARGE += (unbalanced, many_classes, mixed)
SIZES = {**{(make.__name__, n): make for make in SMALL for n in (100, 250)}, ("wide", 60): wide}
SIZES |= {(make.__name__, 1500): make for make in LARGE}
BUNDLED = ("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud")
NAMES = [*BUNDLED, *(f"{name}_{n}" for name, n in SIZES)]


def write(name: str, folder: Path, seed: int) -> list[str]:
    """The words that give a run the table. Train and val of a made one share `n` rows."""
    path = folder / f"{name}_{seed}.csv"
    if name in BUNDLED:
        bundled(name).to_csv(path, index=False)
        return [f"data.path={path}", "data.fractions=[0.6,0.15,0.25]"]
    kind, n = name.rsplit("_", 1)
    whole = Frame(SIZES[kind, int(n)](np.random.default_rng(seed), int(n) + TEST_ROWS))
    whole[: int(n)].to_csv(path, index=False)
    whole[int(n) :].to_csv(folder / "test.csv", index=False)
    return [f"data.train={path}", f"data.test={folder / 'test.csv'}", "data.fractions=[0.8,0.2,0]"]


def trained(folder: Path, *words: str) -> tuple[Parts, float, float]:
    """A run in this process; gives its accuracy or R2 on the test rows, and the seconds it took."""
    start = time.perf_counter()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*BARE, *words])
    OmegaConf.set_struct(cfg, False)
    folder.mkdir(parents=True)
    parts = fit(cfg, folder, None, None)
    parts.task.load_state_dict(load(path_of(folder, "best"))["state_dict"])
    metrics = score(parts)
    return parts, metrics.get("test/acc", metrics.get("test/r2", np.nan)), time.perf_counter() - start


def theirs(parts: Parts) -> tuple[float, float]:
    """Accuracy or R2 of scikit-learn's linear model and boosting on the rows of a run."""
    spec = parts.data.spec
    rows: Any = parts.data.rows
    (x, y), (test_x, test_y) = (rows[split][torch.arange(len(rows[split]))] for split in ("train", "test"))
    codes = [i for i, column in enumerate(spec.columns) if column.kind == "categorical"]
    numbers = [i for i in range(x.shape[1]) if i not in codes]
    to_numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    prepared = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), codes), (to_numbers, numbers))
    grow: Any = HistGradientBoostingClassifier if spec.classes else HistGradientBoostingRegressor
    trees = grow(categorical_features=codes or None, random_state=0)
    flat: Any = make_pipeline(prepared, LogisticRegression(max_iter=1000) if spec.classes else Ridge())
    found = [each.fit(x.numpy(), y.numpy().ravel()).score(test_x.numpy(), test_y.numpy()) for each in (flat, trees)]
    return found[0], found[1]


def measured(name: str, folder: Path, words: list[str]) -> dict[str, list[float]]:
    """Scores over the seeds, the network's seconds, and by how much our two baselines differ on the first seed."""
    found: dict[str, list[float]] = {key: [] for key in ("network", "linear", "boosting", "s", "apart")}
    for seed in SEEDS:
        given = ["data=table", "data.target=y", "data.cache=null", "data.checks=false", f"data.split_seed={seed}"]
        given += [*write(name, folder, seed), f"seed={seed}"]
        parts, result, seconds = trained(folder / f"{name}_{seed}", *given, *words)
        baselines = theirs(parts)
        for key, value in zip(found, (result, *baselines, seconds), strict=False):
            found[key].append(value)
        if seed == SEEDS[0]:
            ours = [trained(folder / f"{name}_{side}", *given, f"model={side}")[1] for side in ("linear", "boosting")]
            found["apart"] += [abs(one - other) for one, other in zip(ours, baselines, strict=True)]
    return found


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    below = "below linear" if mean["network"] < mean["linear"] - NEAR else ""
    values = (mean["network"], np.std(found["network"]), mean["linear"], mean["boosting"], max(found["apart"]))
    return [name, *(f"{value:.3f}" for value in values), f"{mean['s']:.1f}", below]


def main(words: list[str]) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    settings = [word for word in words if "=" in word]
    names = [word for word in words if word not in settings] or NAMES
    grid = Grid("table", "network", "± seeds", "linear", "boosting", "ours apart", "s", "")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            cells = row(name, measured(name, Path(folder), settings))
            print(*cells, sep=" | ", flush=True)  # a table takes its time
            grid.add_row(*cells)
    Console(width=110).print(grid)


if __name__ == "__main__":
    main(sys.argv[1:])

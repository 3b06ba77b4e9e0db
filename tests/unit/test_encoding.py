"""What a network takes of a table, and how the default network starts on one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import a_spec, quick
from torch import nn

from research.data.measure import NUM_PIECES, measured
from research.data.spec import Column, Spec
from research.engine.build import Parts, build
from research.engine.checkpoint import load, path_of
from research.engine.export import write
from research.models.boosting import Boosting
from research.models.linear import Linear
from research.models.mlp import Mlp
from research.tasks.encoding import Encode, Pieces, encoding

TREES: Any = {"num_rounds": 3, "learning_rate": 0.1, "max_leaf_nodes": 4, "min_samples_leaf": 5, "l2": 0.0}


def columns(cells: Any, *kinds: Any) -> tuple[Column, ...]:
    categories = ("a", "b", "c")
    given = [Column(f"x{i}", kind, categories if kind == "categorical" else ()) for i, kind in enumerate(kinds)]
    return measured(cells, np.arange(len(cells)), given, 100)


def of_table(folder: Path, *words: str) -> Parts:
    """A run on 200 rows of a heavy tail, a category and missing cells."""
    draw = np.random.default_rng(0)
    x, kind = np.exp(2 * draw.normal(size=200)), draw.integers(0, 3, 200)
    y = np.log(x) + kind + 0.1 * draw.normal(size=200)
    lines = [f"{'' if i % 9 == 0 else x[i]},{'abc'[kind[i]] if i % 7 else ''},{y[i]}" for i in range(200)]
    (folder / "t.csv").write_text("\n".join(["x,kind,y", *lines]))
    table = ("data=table", f"data.path={folder / 't.csv'}", "data.target=y", "cache=null", "data.batch_size=32")
    return build(quick(*table, *words, steps=100), folder / "run")


def test_quantiles_part_the_rows_into_pieces_that_hold_as_many() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=(1600, 1))).astype(np.float32)
    (column,) = columns(values, "numeric")
    counts, _ = np.histogram(values, column.quantiles)
    assert len(column.quantiles) == NUM_PIECES + 1
    assert counts == pytest.approx(100, abs=2)
    assert (column.quantiles[0], column.quantiles[-1]) == (values.min(), values.max())


@pytest.mark.parametrize(("values", "ends"), [([0, 1] * 8, (0, 1)), ([3.0] * 16, (3,)), ([np.nan] * 16, ())])
def test_quantiles_that_fall_together_are_there_once(values: list[float], ends: tuple[float, ...]) -> None:
    (column,) = columns(np.array(values, np.float32)[:, None], "numeric")
    assert {*ends} <= {*column.quantiles}
    assert len({*column.quantiles}) == len(column.quantiles)
    layer = Pieces((column,))
    assert layer(torch.tensor([[torch.nan], [-1e30], [0.5], [1e30]])).isfinite().all()


def test_pieces_are_passed_one_after_the_other() -> None:
    column = Column("x", "numeric", median=2.0, quantiles=(0.0, 2.0, 10.0))
    passed = Pieces((column,))(torch.tensor([[-5.0], [1.0], [6.0], [99.0], [torch.nan]]))[:, 1:]
    assert passed.tolist() == [[0, 0], [0.5, 0], [1, 0.5], [1, 1], [1, 0]]


def test_each_network_gets_what_it_takes() -> None:
    cells = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(np.float32)
    fitted = columns(cells, "numeric", "categorical")
    spec = replace(a_spec(), columns=fitted, shape=(sum(column.width for column in fitted),))
    nets = (Boosting(spec, **TREES, patience=None), Linear(spec, 1.0), Mlp(spec, 8, 1, 0.0))
    assert [type(encoding(spec, net)) for net in nets] == [nn.Identity, Encode, Pieces]


def test_quantiles_come_back_from_the_record_of_a_run() -> None:
    spec = replace(a_spec(), columns=(Column("x", "numeric", quantiles=(0.0, 1.0)),))
    assert Spec.read({**spec.plain(), "columns": [{**spec.plain()["columns"][0], "quantiles": [0.0, 1.0]}]}) == spec


@pytest.mark.parametrize("words", [("data=diabetes",), ()], ids=["diabetes", "table"])
def test_the_default_network_starts_as_the_linear_model(tmp_path: Path, words: tuple[str, ...]) -> None:
    parts = build(quick(*words), tmp_path) if words else of_table(tmp_path)
    task, rows = parts.task.eval(), parts.data.rows["train"]
    x, y = rows[torch.arange(len(rows))]
    task.trainer = parts.trainer
    parts.trainer.datamodule = parts.data  # pyright: ignore
    task.on_fit_start()
    spec = parts.data.spec
    seen = task.scale_x(x)[:, : spec.shape[0]].clamp(-4, 4)
    linear = Linear(spec, 1.0)
    linear.fit((seen, task.scale_y(y), None), None, seed=0)
    assert torch.allclose(task.net(task.scale_x(x)), linear(seen), atol=0.05)
    assert task.net.started


def test_a_network_that_has_started_does_not_start_again(tmp_path: Path) -> None:
    parts = of_table(tmp_path, "callbacks=default", "callbacks.checkpoint.every_minutes=null")
    parts.trainer.fit(parts.task, parts.data)
    state = load(path_of(tmp_path / "run", "last"))["state_dict"]
    assert state["net.started"]
    again = of_table(tmp_path)
    again.task.load_state_dict(state)
    again.task.trainer = again.trainer
    again.trainer.datamodule = again.data  # pyright: ignore
    again.task.on_fit_start()
    assert torch.equal(again.task.net.skip.weight, state["net.skip.weight"])


@pytest.mark.slow  # the export takes seconds
@pytest.mark.parametrize("words", [("model=mlp",), ("model=linear",), ("model=boosting", "model.num_rounds=5")])
def test_onnx_takes_the_cells_of_a_table(tmp_path: Path, words: tuple[str, ...]) -> None:
    parts = of_table(tmp_path, *words, *(() if "model=mlp" in words else ("trainer.limit_train_batches=null",)))
    parts.trainer.fit(parts.task, parts.data)
    write(parts, "onnx", tmp_path / "out")
    assert (tmp_path / "out/model.onnx").is_file()

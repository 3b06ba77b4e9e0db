"""Which equal rows are left out: copies, never rows that are equal by chance, and never by what their target is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import data_of

from research.data.copies import copies

Array = np.ndarray[Any, Any]
fast = settings(max_examples=60, deadline=None)
T = "data=table data.path=t.csv data.target=y"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(cells: Array, seed: int = 0) -> tuple[int, int, int]:
    """Of rows split at random: how many of train are copies, how many equal by chance, how many equal at all."""
    identity = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    train, test = np.split(np.random.default_rng(seed).permutation(len(cells)), [int(0.7 * len(cells))])
    found = copies(identity, train, test, lambda ids: cells[ids])
    assert len(found.copied) == len(train)
    return int(found.copied.sum()), found.by_chance, int(np.isin(identity[train], identity[test]).sum())


def of_few_values(rng: np.random.Generator, num: int, kind: str) -> Array:
    """Rows that are drawn one by one, of columns with few values."""
    age, part = rng.integers(18, 65, num), rng.integers(1, 11, num)
    made: dict[str, Callable[[], list[Any]]] = {
        "two columns": lambda: [age, rng.integers(1, 6, num)],
        "one column": lambda: [rng.integers(0, 60, num)],
        "a column twice": lambda: [part, part * 7],
        "a column from others": lambda: [part, age // 8, part * (age // 8)],
        "a coarser column": lambda: [age, age // 10, rng.integers(1, 6, num)],
        "flags": lambda: list(rng.integers(0, 2, (8, num))),
        "rare flags": lambda: list(rng.random((30, num)) < 0.05),
        "flags of one cause": lambda: list(rng.normal(size=num) + 0.5 * rng.normal(size=(20, num)) > 0),
        "days": lambda: [d := rng.integers(0, 365, num), d // 30, d % 7, rng.integers(0, 3, num)],
        "mostly zero": lambda: list(np.where(rng.random((6, num)) < 0.02, rng.normal(size=(6, num)), 0)),
    }
    return np.stack(made[kind](), 1).astype(float)


KINDS = ["two columns", "one column", "a column twice", "a column from others", "a coarser column", "flags",
         "rare flags", "flags of one cause", "days", "mostly zero"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [200, 1000, 3000])
def test_rows_that_are_equal_by_chance_are_no_copies(kind: str, num: int) -> None:
    cells = of_few_values(np.random.default_rng(num), num, kind)
    found, by_chance, equal = judged(cells)
    assert equal > 0.02 * num, "or there is nothing to tell apart"
    assert found == 0
    assert by_chance == equal


@given(num=st.integers(150, 600), width=st.integers(4, 12), share=st.floats(0.1, 1), seed=st.integers(0, 99))
@fast
def test_copies_of_measurements_are_found(num: int, width: int, share: float, seed: int) -> None:
    """In smaller and narrower tables fewer of them are certain."""
    rng = np.random.default_rng(seed)
    cells = np.c_[rng.normal(size=(num, width)), rng.integers(0, 3, (num, 2))]
    cells[rng.random(cells.shape) < 0.05] = -1  # what is missing, say
    found, _, equal = judged(np.r_[cells, cells[: int(share * num)]], seed)
    assert equal
    assert found >= 0.9 * equal


def table(columns: dict[str, Any], place: Path) -> None:
    pd.DataFrame(columns).to_csv(place / "t.csv", index=False)


def test_a_table_of_few_values_loses_no_row_and_no_class(place: Path) -> None:
    rng = np.random.default_rng(0)
    bought = np.where(rng.random(500) < 0.75, "yes", "no")
    table({"age": rng.integers(18, 65, 500), "dose": rng.integers(1, 5, 500), "y": bought}, place)
    data = data_of(T)
    assert sum(data.num_rows.values()) == 500
    assert any("rows of so few different values" in text or "so few different values" in text for text in data.findings)


def test_rows_that_differ_in_a_column_that_is_left_out_are_no_copies(place: Path) -> None:
    num = 1000
    columns = {"tail": [f"N{i}" for i in range(num)], "type": [f"t{i % 40}" for i in range(num)]}
    columns["y"] = ["ab"[i % 40 % 2] for i in range(num)]
    table(columns, place)
    for words in (T, f"{T} data.drop=[tail]"):
        data = data_of(words)
        assert [column.name for column in data.spec.columns] == ["type"]
        assert sum(data.num_rows.values()) == num
        assert not any("equal" in text or "copies" in text for text in data.findings)


@given(seed=st.integers(0, 999), noisy=st.booleans())
@settings(max_examples=15, deadline=None)
def test_copies_go_whatever_their_target_is(tmp_path_factory: pytest.TempPathFactory, seed: int, noisy: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 3)).round(6)
    y = np.where(rng.random(400) < 0.3, "a", "b")
    again = rng.permutation(400)[:80]
    y_again = np.where(rng.random(80) < 0.3, "a", "b") if noisy else y[again]
    rows = np.r_[x, x[again]]
    folder = tmp_path_factory.mktemp("t")
    table({"p": rows[:, 0], "q": rows[:, 1], "r": rows[:, 2], "y": np.r_[y, y_again]}, folder)
    data = data_of(f"data=table data.path={folder}/t.csv data.target=y")
    kept = {name: {tuple(row) for row in data.rows[name][:][0].tolist()} for name in data.rows}
    if any(
        "stay" in text for text in data.findings
    ):  # by a rare draw the copies were of one class more than of another
        return
    assert not kept["train"] & (kept["val"] | kept["test"])
    assert not kept["val"] & kept["test"]
    assert any("left out: they are copies" in text for text in data.findings)
    before = data_of(f"data=table data.path={folder}/t.csv data.target=y data.duplicates=keep")
    gone = before.num_rows["train"] - data.num_rows["train"]
    assert gone == sum(tuple(row) in kept["val"] | kept["test"] for row in before.rows["train"][:][0].tolist())


def test_copies_of_one_class_stay(place: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = np.where(np.arange(400) < 60, "rare", "often")
    rows, labels = np.r_[x, x[:60], x[:60]], np.r_[y, y[:60], y[:60]]  # the rare class three times
    table({"p": rows[:, 0], "q": rows[:, 1], "r": rows[:, 2], "y": labels}, place)
    data = data_of(T)
    assert sum(data.num_rows.values()) == 520
    assert any("and stay: without them the shares of classes would change" in text for text in data.findings)


def test_equal_texts_that_are_short_stay_and_long_ones_go(place: Path) -> None:
    rng = np.random.default_rng(0)
    short = [("ok", "thank you", "no", "yes", "what")[i] for i in rng.integers(0, 5, 60)]
    long = [" ".join(f"word{word}" for word in rng.integers(0, 500, 12)) for _ in range(60)]
    texts = [*short, *long, *long[:30]]
    pd.DataFrame({"text": texts, "label": ["xy"[i] for i in rng.integers(0, 2, 150)]}).to_csv("x.csv", index=False)
    data = data_of("data=text data.path=x.csv")
    ids = torch.cat(list(data.ids.values())).tolist()
    assert {i for i, text in enumerate(texts) if text in short} <= set(ids)
    assert any("left out: they are copies" in text for text in data.findings)

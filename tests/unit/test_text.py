"""Texts: which are left out, which side each is on, and what of a long one the network sees."""

import csv
import logging
from pathlib import Path

import pytest
from composing import composed

from research.data.text import Text, TextData
from research.engine.build import make, read_data
from research.engine.errors import UserError

SETTINGS = {"batch_size": 4, "max_length": 16, "fractions": (0.5, 0.25, 0.25), "split_seed": 0, "split": "grouped"}
LONG = "word " * 600


class Given(TextData):
    """Eighty texts of twenty files, each twice."""

    def read(self) -> list[Text]:
        texts = [Text(f"text number {i}", "ab"[i % 2], f"file {i % 20}") for i in range(80)]
        return texts + [Text(text, label, "copy") for text, label, _ in texts]


def given(**changes: object) -> Given:
    data = Given(**{**SETTINGS, "duplicates": False, "tokenizer": None, "shuffle": True, "seed": 0, **changes})  # pyright: ignore
    data.setup()
    return data


def test_a_text_that_occurs_again_is_left_out() -> None:
    once, twice = given(), given(duplicates=True, split="random")
    assert sum(once.num_rows.values()) == 80
    assert sum(twice.num_rows.values()) == 160
    texts = [tuple(row.tolist()) for rows in once.rows.values() for row in rows.ids]  # pyright: ignore
    assert len(set(texts)) == 80


def test_the_texts_of_one_file_are_on_one_side() -> None:
    sides = {name: {int(row) % 20 for row in part} for name, part in given().ids.items()}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == 20
    apart = {name: {int(row) % 20 for row in part} for name, part in given(split="random").ids.items()}
    assert sum(map(len, apart.values())) > 20


def long_ones(folder: Path, *words: str) -> list[str]:
    rows = [(f"text number {i}" if i % 8 else f"{i} {LONG}", "xy"[i % 2]) for i in range(80)]
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return ["data=text", f"data.path={folder / 't.csv'}", *words]


@pytest.mark.parametrize(("asked", "limit"), [(1024, 512), (16, 16)])
def test_a_long_text_is_cut_counted_and_told_with_the_limit_that_holds(
    asked: int, limit: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = read_data(composed(*long_ones(tmp_path, f"data.max_length={asked}", "data.stratify=false")))
    assert f"10 of 80 are longer than {limit} tokens and are cut" in caplog.text
    assert max(int(rows.lengths.max()) for rows in data.rows.values()) == limit  # pyright: ignore
    assert data.spec.shape[1] == limit
    caplog.clear()
    (found,) = data.inputs(str(tmp_path / "t.csv"))  # as predict does
    assert f"10 are longer than {limit} tokens and are cut" in caplog.text
    assert int(found.x.lengths.max()) == limit  # pyright: ignore


def test_a_label_that_only_test_has_is_told(tmp_path: Path) -> None:
    for name, labels in (("train", "xy"), ("test", "xz")):
        lines = [f"{name} text {i},{labels[i % 2]}" for i in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    paths = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "test")]
    with pytest.raises(UserError, match=r"no training row has the class\(es\) z"):
        read_data(composed("data=text", *paths))


def test_empty_texts_are_told() -> None:
    class Empty(Given):
        def read(self) -> list[Text]:
            return [*super().read(), Text(" \n", "a", "file")]

    with pytest.raises(ValueError, match="1 of 161 texts are empty"):
        Empty(**{**SETTINGS, "duplicates": False, "tokenizer": None, "shuffle": True, "seed": 0}).setup()  # pyright: ignore


def test_the_docstrings_have_no_copies_and_keep_files_together() -> None:
    cfg = composed("data=docstrings", "data.packages=[json,html]")
    data = make(cfg.data)(shuffle=True, seed=0)
    data.setup()
    texts = {text.text: text for text in reversed(data.read())}
    assert sum(data.num_rows.values()) == len(texts)
    order = list(texts.values())[::-1]
    files = {name: {order[row].group for row in part} for name, part in data.ids.items()}
    assert not files["train"] & files["test"]
    assert not files["train"] & files["val"]

"""What a frozen base outputs, kept: by content, limited, safe between processes, and what the network computes."""

import errno
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import own_files, quick
from faults import ended, forked
from filelock import FileLock
from torch import Tensor, nn

from research.data.augment import Nothing
from research.data.batches import Tokens
from research.data.text_files import TextFiles
from research.engine.build import Parts, build, read_data
from research.engine.disk_cache import kept
from research.engine.errors import UserError
from research.engine.features import _key, usable
from research.models.bert import Bert


def told(caplog: pytest.LogCaptureFixture) -> str:
    """How the last features came: computed or read."""
    found = [r.getMessage() for r in caplog.records if r.getMessage().startswith("features")]
    return found[-1].split("frozen base ")[1].split()[0]


def made(texts: list[str], *words: str, folder: Path) -> Parts:
    return build(quick(*texts, "finetune=head", *words), folder / "run")


def test_features_are_what_the_network_computes_of_each_text(texts: list[str], tmp_path: Path) -> None:
    parts = made(texts, folder=tmp_path)
    assert set(parts.data.features) == {"train", "val", "test"}
    net = parts.task.net.eval()
    lengths = set()
    for split, found in parts.data.features.items():
        rows: Any = parts.data.rows[split]
        lengths |= set(rows.lengths.tolist())
        for index in range(len(rows)):
            x, _ = rows[torch.tensor([index])]
            torch.testing.assert_close(found[[index]], net.features(x), atol=1e-5, rtol=1e-5)
    assert len(lengths) > 2  # in another order than the rows


def test_the_key_is_the_content_and_not_the_split(
    texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = made(texts, folder=tmp_path)
    assert told(caplog) == "computed"
    again = made(texts, "data.split_seed=7", folder=tmp_path)
    assert told(caplog) == "read"
    assert not torch.equal(first.data.ids["train"], again.data.ids["train"])
    for other in ("trainer.precision=bf16-mixed", "model.pooling=cls", "seed=1"):  # the seed gives other weights
        made(texts, other, folder=tmp_path)
        assert told(caplog) == "computed"
    (tmp_path / "texts.csv").write_text((tmp_path / "texts.csv").read_text().replace("number 7,", "number seven,"))
    made(texts, folder=tmp_path)
    assert told(caplog) == "computed"


def test_the_key_changes_with_the_code_of_the_network(texts: list[str], tmp_path: Path) -> None:
    parts = made(texts, "cache=null", folder=tmp_path)
    net = parts.task.net
    path = tmp_path / "mine.py"
    path.write_text("from research.models.bert import Bert\n\n\nclass Mine(Bert):\n    pass\n")
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec
    assert spec.loader
    sys.modules["mine"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net.__class__ = module.Mine
    keys = [_key(net, [b"text"], parts.trainer)]
    path.write_text(path.read_text() + "\n    # another way to pool\n")
    keys.append(_key(net, [b"text"], parts.trainer))
    del sys.modules["mine"]
    assert keys[0] != keys[1]


def test_features_need_a_frozen_base_and_the_same_texts_in_each_epoch(texts: list[str], tmp_path: Path) -> None:
    parts = made(texts, "cache=null", folder=tmp_path)
    net, data, plan = parts.task.net, parts.data, parts.plan
    assert usable(net, data, plan)
    data.augment = Nothing(data.spec)
    assert usable(net, data, plan)
    data.augment = nn.Identity()
    assert not usable(net, data, plan)
    data.augment = None
    plan.never.remove("base.encoder.layer.0.output.dense.bias")
    assert not usable(net, data, plan)


class Pairs(Tokens):
    """Says of each token which of two texts it is of: the first four, and the rest."""

    boundary = 4

    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        after = torch.arange(x["input_ids"].shape[1]) >= self.boundary
        return {**x, "token_type_ids": after * x["attention_mask"]}, y


class Located(Pairs):
    """Gives positions, counted from the end."""

    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        positions = (x["attention_mask"].sum(1, keepdim=True) - x["attention_mask"].cumsum(1)).clamp(min=0)
        return {**x, "position_ids": positions}, y


class LeftPadded(Tokens):
    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        return {name: value.flip(1) for name, value in x.items()}, y


class Forgetful(Tokens):
    """Loses words, others each time."""

    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        return {**x, "input_ids": torch.randint_like(x["input_ids"], 1000)}, y


class Crowded(Tokens):
    """Says how many texts there are in the batch."""

    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        return {**x, "token_type_ids": torch.full_like(x["input_ids"], int(len(index) > 1))}, y


class Bare(Tokens):
    def __getitem__(self, index: Tensor) -> Any:
        x, y = super().__getitem__(index)
        return x["input_ids"], y


def losses(texts: list[str], folder: Path, *words: str) -> list[float]:
    """Of the validation after each of three epochs in which the head learns."""
    words = ("optimizer=sgd", "optimizer.lr=0.5", *words)
    parts = build(quick(*texts, "finetune=head", *words, epochs=3, steps=4), folder / "run")
    found: list[float] = []
    parts.task.on_validation_end = lambda: found.append(parts.trainer.callback_metrics["val/loss"].item())
    parts.trainer.fit(parts.task, parts.data)
    return found


@pytest.mark.parametrize("kind", [Tokens, Pairs, Located])
def test_cached_losses_are_those_of_every_input(
    kind: type[Tokens],
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("research.data.text.Tokens", kind)
    plain = losses(texts, tmp_path / "plain", "cache=null")
    assert losses(texts, tmp_path / "cached") == pytest.approx(plain, abs=1e-5)
    assert told(caplog) == "computed"
    assert plain[0] != plain[2]
    monkeypatch.setattr("research.data.text.Tokens", Tokens if kind is not Tokens else Pairs)
    assert losses(texts, tmp_path / "other") != pytest.approx(plain, abs=1e-4)
    assert told(caplog) == "computed"


def test_the_key_holds_every_input(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("research.data.text.Tokens", Pairs)
    made(texts, folder=tmp_path)
    made(texts, "data.split_seed=7", folder=tmp_path)
    assert told(caplog) == "read"
    monkeypatch.setattr(Pairs, "boundary", 3)
    made(texts, folder=tmp_path)
    assert told(caplog) == "computed"


@pytest.mark.parametrize("kind", [LeftPadded, Forgetful, Crowded, Bare])
def test_rows_that_are_not_alone_what_they_are_in_a_batch_have_no_features(
    kind: type[Tokens],
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("research.data.text.Tokens", kind)
    assert made(texts, folder=tmp_path).data.features == {}
    lines = [text for text in caplog.messages if text.startswith("features")]
    assert lines == [
        "features   of the frozen base are computed anew in each epoch: x of a batch is not a dict of its rows' "
        "tensors, padded at their ends"
    ]


class Learns(Bert):
    """Part of what makes its features learns."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.scale = nn.Parameter(torch.ones(1))

    def features(self, x: dict[str, Tensor]) -> Tensor:
        return self.scale * super().features(x)


class Looks(Bert):
    """Looks at the texts beside their features."""

    def forward(self, x: Any) -> Tensor:
        return super().forward(x) + x["attention_mask"].sum(1, keepdim=True)


class Guesses(Bert):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x) + (1.0 if isinstance(x, Tensor) else 0.0)


class Careful(TextFiles):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("model._target_=test_cache.Learns", "Learns.features makes them with weights that learn"),
        ("model._target_=test_cache.Looks", "Supervised with Looks takes no features: "),
        ("model._target_=test_cache.Guesses", "Guesses predicts something else from them"),
        ("data._target_=test_cache.Careful", "Careful.on_after_batch_transfer may change a batch"),
    ],
)
def test_a_network_or_data_of_ones_own_that_features_do_not_fit_has_none(
    words: str, why: str, texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = made(texts, words, folder=tmp_path)
    assert parts.data.features == {}
    lines = [text for text in caplog.messages if text.startswith("features")]
    assert len(lines) == 1
    assert lines[0].startswith(f"features   of the frozen base are computed anew in each epoch: {why}")
    assert not list((tmp_path / "cache").glob("*.safetensors")) or "Learns" not in words
    parts.trainer.fit(parts.task, parts.data)


class Scaled(Bert):
    """A setting of its own says what its features are."""

    factor = 1.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.factor = Scaled.factor

    def features(self, x: dict[str, Tensor]) -> Tensor:
        return self.factor * super().features(x)


def test_the_key_holds_the_settings_of_a_network_of_ones_own(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = (*texts, "model._target_=test_cache.Scaled")
    first = made(list(words), folder=tmp_path)
    made(list(words), folder=tmp_path)
    assert told(caplog) == "read"
    monkeypatch.setattr(Scaled, "factor", 2.0)
    second = made(list(words), folder=tmp_path)
    assert told(caplog) == "computed"
    torch.testing.assert_close(second.data.features["val"], 2 * first.data.features["val"])


@pytest.mark.parametrize("option", ["table", "images"])
def test_what_is_read_of_files_is_keyed_by_the_code_that_reads_it(option: str, tmp_path: Path) -> None:
    words = [*own_files(tmp_path)[option], f"cache.folder={tmp_path / 'cache'}"]
    name = {"table": "TableData", "images": "ImageData"}[option]
    path = tmp_path / f"own_{option}.py"
    path.write_text(f"from research.data.{option} import {name}\n\n\nclass Own({name}):\n    pass\n")
    entries = []
    for line in ("", "", "    # reads otherwise\n"):
        path.write_text(path.read_text() + line)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec
        assert spec.loader
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cfg = quick(*words)
        cfg.data._target_ = f"{path.stem}.Own"
        read_data(cfg)
        entries.append({p.name for p in (tmp_path / "cache").iterdir() if p.suffix in (".table", ".pictures")})
    del sys.modules[path.stem]
    assert [len(found) for found in entries] == [1, 1, 2]


@pytest.mark.parametrize("words", [(), ("model.pooling=native",)], ids=["mean", "native"])
def test_features_give_the_outputs_of_texts(texts: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    parts = made(texts, *words, folder=tmp_path)
    rows: Any = parts.data.rows["val"]
    x, _ = rows[torch.arange(8)]
    task = parts.task.eval()
    torch.testing.assert_close(task(parts.data.features["val"][:8]), task(x), atol=1e-5, rtol=1e-5)


# files on the disk


def entry(folder: Path, name: str, size: int = 10, most: int = 10**9) -> str:
    return kept(folder / f"{name}.txt", most, lambda path: path.write_text(name * size), lambda path: path.read_text())[
        0
    ]


def test_the_least_recently_used_goes_but_not_one_that_is_in_use(tmp_path: Path) -> None:
    for name in "abc":
        entry(tmp_path, name)
    with FileLock(tmp_path / "a.lock"):
        entry(tmp_path, "d", most=10)
        assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["a.txt", "d.txt"]
    entry(tmp_path, "d", most=10)
    assert [path.name for path in tmp_path.glob("*.txt")] == ["d.txt"]


def test_processes_that_share_a_cache_that_is_too_small_get_what_they_ask_for(tmp_path: Path) -> None:
    def job() -> None:
        for turn in range(150):
            name = "abcdefg"[turn % 7]
            assert entry(tmp_path / "cache", name, most=25) == name * 10

    children = [forked(job, tmp_path / f"out{index}") for index in range(3)]
    for index, child in enumerate(children):
        assert ended(child) == 0, (tmp_path / f"out{index}").read_text()
    entry(tmp_path / "cache", "a", most=25)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.txt")) <= 25


def test_a_process_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.txt.part").mkdir()
    assert entry(tmp_path, "a") == "a" * 10
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written_is_told(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError) as error:
        made(texts, folder=tmp_path)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(f"cache: the cache '{tmp_path / 'cache'}' cannot be written")
    assert "cache=null" in error.value.problems[0]


def test_a_full_disk_is_told(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        made(texts, folder=tmp_path)


def test_what_cannot_be_read_to_make_an_entry_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        kept(tmp_path / "a.txt", 10, lambda path: (tmp_path / "nowhere").read_text(), Path.read_text)

"""Splits, scaling statistics, the order of batches over processes, and augmentation."""

import io
import random
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import a_spec, composed, quick
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from research.data.augment import Images
from research.data.batches import BatchOrder, Rows, Tokens
from research.data.diabetes import Diabetes
from research.data.digits import Digits
from research.data.images import pixels_of
from research.data.splits import Listing, Rules, assign
from research.data.tensors import TensorData
from research.engine.build import Parts, build, make
from research.engine.errors import UserError

BOTH = pytest.mark.parametrize("kind", [Digits, Diabetes])


def ready(kind: type[TensorData], **changes: Any) -> Any:
    given_values = {"batch_size": 64, "fractions": [0.7, 0.15, 0.15], "split_seed": 0, "shuffle": True, "seed": 0}
    data = kind(**given_values | changes)
    data.setup()
    return data


def ids(data: TensorData) -> dict[str, list[int]]:
    return {name: part.tolist() for name, part in data.ids.items()}


# splits


@BOTH
def test_splits_are_disjoint_and_cover_every_row(kind: type[TensorData]) -> None:
    data = ready(kind)
    num_rows = len(data.read()[0])
    assert list(data.rows) == ["train", "val", "test"]
    assert sorted(chain(*ids(data).values())) == list(range(num_rows))
    assert abs(data.num_rows["val"] - data.fractions[1] * num_rows) <= 1
    assert abs(data.num_rows["test"] - data.fractions[2] * num_rows) <= 1


@BOTH
def test_a_split_holds_the_rows_that_it_names(kind: type[TensorData]) -> None:
    data = ready(kind)
    x, y, _ = data.read()
    for name, rows in data.rows.items():
        assert torch.equal(rows.x, x[data.ids[name]])
        assert torch.equal(rows.y, y[data.ids[name]])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@BOTH
def test_split_follows_from_its_seed_alone(kind: type[TensorData]) -> None:
    seed_everything(1)
    first = ids(ready(kind, seed=1, batch_size=7))
    seed_everything(2)
    assert ids(ready(kind, seed=2, shuffle=False)) == first
    assert ids(ready(kind, split_seed=1)) != first


@pytest.mark.parametrize("split_seed", range(5))
def test_classes_are_shared_out_within_a_row_of_proportional(split_seed: int) -> None:
    rows = ready(Digits, split_seed=split_seed).rows
    counts = {name: torch.bincount(part.y, minlength=10) for name, part in rows.items()}
    rest = counts["train"] + counts["val"]
    for part, whole in ((counts["test"], rest + counts["test"]), (counts["val"], rest)):  # cut off one after another
        assert (part - whole * part.sum() / whole.sum()).abs().max() <= 1


# statistics


def test_digits_say_what_their_training_rows_are() -> None:
    data = ready(Digits)
    raw: Any = load_digits()
    chosen = data.ids["train"].numpy()
    pixels, labels = raw.images[chosen] / 16, raw.target[chosen]
    assert data.spec.x_mean == pytest.approx([pixels.mean()])
    assert data.spec.x_std == pytest.approx([pixels.std()])
    assert data.spec.class_counts == tuple(np.bincount(labels))
    assert (data.spec.kind, data.spec.shape, data.spec.target) == ("image", (1, 8, 8), "class")
    assert data.spec.classes == tuple("0123456789")
    assert data.spec.y_mean == data.spec.y_std == ()


def test_diabetes_say_what_their_training_rows_are() -> None:
    data = ready(Diabetes)
    raw: Any = load_diabetes(scaled=False)
    x, y = raw.data, raw.target
    chosen = data.ids["train"].numpy()
    assert data.spec.x_mean == pytest.approx(x[chosen].mean(0), rel=1e-5)
    assert data.spec.x_std == pytest.approx(x[chosen].std(0), rel=1e-5)
    assert data.spec.y_mean == pytest.approx([y[chosen].mean()], rel=1e-5)
    assert data.spec.y_std == pytest.approx([y[chosen].std()], rel=1e-5)
    assert (data.spec.kind, data.spec.shape, data.spec.target) == ("features", (10,), "value")
    assert data.spec.class_counts == ()


class Spoilt(Diabetes):
    """Diabetes with nonsense in the rows of one split."""

    split: str

    def read(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        x, y, classes = super().read()
        spoilt = ready(Diabetes).ids[self.split]
        x[spoilt], y[spoilt] = 1e6, -1e6
        return x, y, classes


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_only_training_rows_count_in_the_statistics(split: str) -> None:
    Spoilt.split = split
    assert (ready(Spoilt).spec == ready(Diabetes).spec) == (split != "train")


# batches


def test_rows_take_a_vector_of_indices() -> None:
    rows = Rows(torch.arange(8.0).view(4, 2), torch.tensor([9, 4, 2, 7]))
    x, y = rows[torch.tensor([3, 0, 0])]
    assert len(rows) == 4
    assert y.tolist() == [7, 9, 9]
    assert x.tolist() == [[6, 7], [0, 1], [0, 1]]


def test_tokens_are_padded_to_the_longest_of_a_batch() -> None:
    texts = [torch.tensor(row) for row in ([1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11])]
    x, y = Tokens(texts, torch.tensor([0, 1, 2, 3]), pad=99)[torch.tensor([3, 0, 1])]
    assert x["input_ids"].tolist() == [[10, 11, 99], [1, 2, 3], [4, 99, 99]]
    assert x["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert y.tolist() == [3, 0, 1]


@dataclass(frozen=True)
class Setting:
    """Of an order of batches; `lengths` of texts, or None."""

    num_rows: int
    batch_size: int
    world_size: int
    seed: int | None
    epoch: int
    lengths: Tensor | None

    def order(self, rank: int, world_size: int, *, train: bool) -> BatchOrder:
        place = {"rank": rank, "world_size": world_size, "lengths": self.lengths}
        made = BatchOrder(self.num_rows, self.batch_size, seed=self.seed, train=train, **place)
        made.set_epoch(self.epoch)
        return made

    def orders(self, *, train: bool) -> list[BatchOrder]:
        return [self.order(rank, self.world_size, train=train) for rank in range(self.world_size)]


@st.composite
def drawn(draw: st.DrawFn, enough: bool = False) -> Setting:
    """`enough`: at least one row of a full batch for each process."""
    num_rows, world_size = draw(st.integers(1, 150)), draw(st.integers(1, 8))
    batch_size = draw(st.integers(world_size if enough else 1, 40))
    seed, epoch = draw(st.none() | st.integers(-(2**31), 2**63)), draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    lengths = torch.randint(1, 9, (num_rows,), generator=generator) if draw(st.booleans()) else None
    return Setting(num_rows, batch_size, world_size, seed, epoch, lengths)


@settings(deadline=None)
@given(drawn(), st.booleans())
def test_one_process_sees_every_row_once_an_epoch(setting: Setting, train: bool) -> None:
    order = setting.order(0, 1, train=train)
    batches = list(order)
    sizes = sorted(map(len, batches))
    assert sorted(torch.cat(batches).tolist()) == list(range(setting.num_rows))
    assert 0 < sizes[0] <= setting.batch_size
    assert set(sizes[1:]) <= {setting.batch_size}
    assert len(order) == len(batches)


@settings(deadline=None)
@given(drawn())
def test_processes_evaluate_each_row_once(setting: Setting) -> None:
    seen = []
    for order in setting.orders(train=False):
        batches = list(order)
        assert len(order) == len(batches)
        assert all(len(batch) for batch in batches)
        seen += [row for batch in batches for row in batch.tolist()]
    assert sorted(seen) == list(range(setting.num_rows))


@settings(deadline=None)
@given(drawn(enough=True))
def test_processes_share_out_each_training_batch(setting: Setting) -> None:
    orders = setting.orders(train=True)
    shares = [list(order) for order in orders]
    whole = list(setting.order(0, 1, train=True))
    kept = [batch for batch in whole if len(batch) >= setting.world_size]
    assert [len(order) for order in orders] == [len(kept)] * setting.world_size
    assert len(whole) - len(kept) <= 1
    for batch, parts in zip(kept, zip(*shares, strict=True), strict=True):
        assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(drawn(enough=True), st.integers(1, 5))
def test_losses_of_batches_and_processes_add_up_to_the_mean_over_the_rows_of_a_step(setting: Setting, num: int) -> None:
    losses = torch.rand(setting.num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orders = setting.orders(train=True)
    batches = list(zip(*orders, strict=True))
    for first in range(0, len(batches), num):  # steps of `num` batches, the last perhaps of fewer
        window = range(first, min(first + num, len(batches)))
        shared = [
            order.share(index, window) * losses[part].mean().item()
            for index in window
            for order, part in zip(orders, batches[index], strict=True)
        ]
        rows = torch.cat([part for index in window for part in batches[index]])
        assert sum(shared) / setting.world_size == pytest.approx(losses[rows].mean().item(), rel=1e-12)


def test_batches_of_texts_are_of_like_length() -> None:
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0))

    def padded(given_lengths: Tensor | None) -> int:
        order = BatchOrder(512, 16, seed=0, train=True, lengths=given_lengths)
        return sum(int(lengths[batch].max()) * len(batch) for batch in order)

    assert padded(lengths) < 1.1 * lengths.sum() < padded(None)


def test_a_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        BatchOrder(100, 3, seed=0, train=True, rank=0, world_size=4)


def rows_of(seed: int, epoch: int) -> list[int]:
    order = BatchOrder(100, 32, seed=seed, train=True)
    order.set_epoch(epoch)
    return torch.cat(list(order)).tolist()


@settings(deadline=None)
@given(st.tuples(st.integers(), st.integers(0, 10**6)), st.tuples(st.integers(), st.integers(0, 10**6)))
def test_order_follows_from_seed_and_epoch_alone(one: tuple[int, int], other: tuple[int, int]) -> None:
    torch.manual_seed(1)
    first = rows_of(*one)
    torch.manual_seed(2)
    assert rows_of(*one) == first
    assert (rows_of(*other) == first) == (one == other)


def test_an_order_without_a_seed_is_the_given_one() -> None:
    order = BatchOrder(10, 4, seed=None, train=True)
    for epoch in (0, 1):
        order.set_epoch(epoch)
        assert [batch.tolist() for batch in order] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@BOTH
def test_loaders_give_the_rows_of_their_split(kind: type[TensorData]) -> None:
    data = ready(kind, shuffle=False, batch_size=50)
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in loaders.items():
        xs, ys = zip(*loader, strict=True)
        assert len(loader) == len(xs)
        assert torch.equal(torch.cat(xs), data.rows[name].x)
        assert torch.equal(torch.cat(ys), data.rows[name].y)


def test_only_the_training_rows_are_shuffled() -> None:
    data = ready(Digits)
    x, _ = zip(*data.train_dataloader(), strict=True)
    assert not torch.equal(torch.cat(x), data.rows["train"].x)
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        assert torch.equal(torch.cat([x for x, _ in loader]), data.rows[name].x)


# augmentation

IMAGES = a_spec("image", (3, 12, 8), num_classes=10)


def augmentation(*overrides: str) -> Any:
    return make(composed(*overrides).augment)(spec=IMAGES)


def test_transforms_keep_shape_type_and_labels() -> None:
    x, y = torch.rand(16, 3, 12, 8), torch.arange(16) % 10
    torch.manual_seed(0)
    changed, labels = augmentation("augment=images")(x, y)
    assert (changed.shape, changed.dtype) == (x.shape, x.dtype)
    assert labels is y
    assert changed.isfinite().all()
    assert 0 <= changed.min() < changed.max() <= 1
    per_image = (changed - x).abs().amax((1, 2, 3))
    assert (per_image > 0.01).sum() > 8  # most are moved, each by its own draw


def test_nothing_is_nothing() -> None:
    x, y = torch.rand(4, 3, 12, 8), torch.arange(4)
    assert augmentation("augment=none")(x, y) == (x, y)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("rows", [1, 2, 31])
def test_mixed_labels_are_the_shares_of_what_is_in_the_image(mix: str, rows: int) -> None:
    augment = augmentation(f"augment={mix}")
    y = torch.arange(rows) % 10
    x = y.float().view(-1, 1, 1, 1).expand(-1, 3, 12, 8).clone()  # an image is its class, as a grey
    mixed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        changed, shares = augment(x, y)
        assert (changed.shape, changed.dtype, shares.shape) == (x.shape, x.dtype, (rows, 10))
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(1), torch.ones(rows))
        torch.testing.assert_close(changed.mean((1, 2, 3)), (shares * torch.arange(10)).sum(1))
        mixed += int((shares.amax(1) < 0.99).sum())
    assert mixed > 0 or rows == 1


def test_mixes_are_of_the_transformed_images() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    augment = Images(IMAGES, [Twice()], "mixup")
    y = torch.arange(10)
    changed, shares = augment(y.float().view(-1, 1, 1, 1).expand(-1, 3, 12, 8).clone(), y)
    torch.testing.assert_close(changed.mean((1, 2, 3)), 2 * (shares * y).sum(1))


def test_images_refuse_data_that_has_none() -> None:
    with pytest.raises(ValueError, match="augment=images takes x of kind image"):
        Images(a_spec("features"), [], None)


def test_mixing_refuses_data_without_classes() -> None:
    with pytest.raises(ValueError, match=r"augment\.mix=mixup is for targets that are a class"):
        Images(a_spec("image", (1, 8, 8), num_values=1), [], "mixup")


class Spy(nn.Module):
    """Marks what goes through, and notes it with a draw of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[float] = []
        self.rows: list[list[float]] = []

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.draws.append(torch.rand(()).item())
        self.rows.append(x.sum((1, 2, 3)).tolist())
        return x + 1000, y


def spied(folder: Path, *overrides: str, epochs: int = 1, steps: int = 2) -> tuple[Parts, Spy]:
    parts, spy = build(quick(*overrides, epochs=epochs, steps=steps), folder), Spy()
    parts.data.augment = spy
    return parts, spy


def test_only_training_batches_are_augmented(tmp_path: Path) -> None:
    parts, spy = spied(tmp_path, epochs=2)
    seen: dict[bool, list[bool]] = {True: [], False: []}
    parts.task.scale_x.register_forward_pre_hook(lambda _, x: seen[parts.task.net.training].append(x[0].min() >= 1000))
    parts.trainer.fit(parts.task, parts.data)
    parts.trainer.validate(parts.task, datamodule=parts.data, verbose=False)
    parts.trainer.test(parts.task, datamodule=parts.data, verbose=False)
    assert len(spy.draws) == len(seen[True]) == 4
    assert all(seen[True])
    assert len(seen[False]) > 4
    assert not any(seen[False])


def draws(folder: Path, *overrides: str) -> list[float]:
    parts, spy = spied(folder, *overrides, epochs=2)
    parts.trainer.fit(parts.task, parts.data)
    return spy.draws


def test_draws_of_augmentation_follow_from_seed_epoch_and_batch(tmp_path: Path) -> None:
    first = draws(tmp_path / "first", "seed=1")
    assert len(set(first)) == len(first) == 4
    assert draws(tmp_path / "deeper", "seed=1", "model.depth=5", "model.dropout=0.7") == first
    assert not set(draws(tmp_path / "other", "seed=2")) & set(first)


def test_each_epoch_trains_on_every_row_in_a_new_order(tmp_path: Path) -> None:
    parts, spy = spied(tmp_path, "data.batch_size=100", epochs=2, steps=13)
    parts.trainer.fit(parts.task, parts.data)
    first, second = list(chain(*spy.rows[:13])), list(chain(*spy.rows[13:]))
    expected: Any = parts.data
    assert sorted(first) == sorted(second) == sorted(expected.rows["train"].x.sum((1, 2, 3)).tolist())
    assert first != second


def test_pictures_of_16_bits_have_one_scale() -> None:
    seen = []
    for most in (1, 200, 300, 65535):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), most, dtype=np.uint16)).save(file, "PNG")
        seen.append(int(pixels_of(file.getvalue(), 1, 8)[0].max()))
    assert seen == [0, 1, 1, 255]


def test_groups_and_time_exclude_each_other() -> None:
    listing = Listing(torch.arange(20) % 2, ("a", "b"), group=np.arange(20) // 4, time=np.arange(20))
    with pytest.raises(UserError, match=r"data\.time and data\.group exclude each other"):
        assign(listing, Rules([0.6, 0.2, 0.2], 0))

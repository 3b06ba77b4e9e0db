"""The supervised task: metrics that share nothing, names that do not collide, everything that learns in a group."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import a_spec, quick
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback
from torch import nn
from torch.nn.functional import one_hot

from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.engine.report import table
from research.tasks.supervised import Supervised

CLASSES = 5
METRICS = {
    "acc": "MulticlassAccuracy, average: micro",
    "top3": "MulticlassAccuracy, average: micro, top_k: 3",
    "top2": "MulticlassAccuracy, average: macro, top_k: 2",
    "f1": "MulticlassF1Score, average: macro",
    "precision": "MulticlassPrecision, average: macro",
    "recall": "MulticlassRecall, average: weighted",
    "class": "MulticlassHammingDistance, average: micro",
    "value": "MulticlassSpecificity, average: macro",
    "ece": "MulticlassCalibrationError, n_bins: 15",
    "ece5": "MulticlassCalibrationError, n_bins: 5, norm: max",
    "a/b": "MulticlassJaccardIndex, average: macro",
}


def word(name: str, what: str | None = None) -> str:
    node = f"_target_: torchmetrics.classification.{what or METRICS[name]}"
    return f"+metrics.{name}={{{node}, _partial_: true}}"


def alone(name: str) -> Any:
    kind, _, rest = METRICS[name].partition(", ")
    import torchmetrics.classification
    import yaml

    settings = yaml.safe_load(f"{{{rest}}}")
    return getattr(torchmetrics.classification, kind)(num_classes=CLASSES, validate_args=False, **settings)


class Identity(nn.Module):
    """Takes logits for x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@settings(deadline=None, max_examples=25)
@given(
    names=st.lists(st.sampled_from(sorted(METRICS)), min_size=2, unique=True),
    errors=st.lists(st.integers(0, 3), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_every_metric_is_what_it_is_alone(names: list[str], errors: list[int], seed: int) -> None:
    """Whatever batches come first: all right, all wrong, or drawn."""
    made: dict[str, Any] = {name: lambda name=name, **known: alone(name) for name in names}
    task: Any = Supervised(Identity(), a_spec(num_classes=CLASSES), nn.CrossEntropyLoss(), made, None, 0.1, None, None)  # pyright: ignore
    generator = torch.Generator().manual_seed(seed)
    single = {name: alone(name) for name in names}
    for error in errors:
        y = torch.randint(CLASSES, (16,), generator=generator)
        logits = 20.0 * one_hot((y + (error == 1)) % CLASSES, CLASSES)
        logits = logits + (torch.randn(16, CLASSES, generator=generator) * 15 if error > 1 else 0)
        predicted = task._score("val", (logits, y), 0)
        for metric in single.values():
            metric.update(predicted, y)
    found = task.metrics["val"].compute()
    assert set(found) == {f"val/{name}" for name in names}
    for name, metric in single.items():
        assert torch.equal(found[f"val/{name}"], metric.compute()), name


def names_of(folder: Path, *words: str) -> set[str]:
    return {name.removeprefix("val/") for name in build(quick(*words), folder).task.logged if name.startswith("val/")}


def test_metrics_named_class_and_value_are_metrics(tmp_path: Path) -> None:
    words = ("~metrics.f1", "~metrics.auroc", "~metrics.ece", word("class"), word("value"))
    assert names_of(tmp_path, *words) == {"loss", "acc", "class", "value"}


def test_a_metric_beside_those_of_an_auto_option_counts_for_each_kind_of_target(tmp_path: Path) -> None:
    mse = "+metrics.mse={_target_: torchmetrics.regression.MeanSquaredError, _partial_: true}"
    auto = ("metrics=auto", "loss=auto")
    assert names_of(tmp_path, *auto, word("top3")) == {"loss", "acc", "f1", "auroc", "ece", "top3"}
    assert names_of(tmp_path, "data=diabetes", *auto, mse) == {"loss", "mae", "rmse", "r2", "mse"}


def test_a_metric_that_is_null_is_none(tmp_path: Path) -> None:
    assert names_of(tmp_path, "metrics.f1=null") == {"loss", "acc", "auroc", "ece"}


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ((word("loss", "MulticlassAccuracy"),), "metrics.loss: the loss is logged under this name"),
        (("metrics=auto", "+metrics.acc.average=macro"), "'acc' is no metric, as it has no _target_; .* class\\.\\*"),
        (("+metrics.odd=3",), "'odd' is no metric"),
    ],
)
def test_what_is_no_metric_of_its_own_is_told(words: tuple[str, ...], fragment: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=fragment):
        build(quick(*words), tmp_path)


def test_a_table_holds_every_metric_under_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    table({"val/loss": 1.0, "val/a/b": 2.0, "val/a/c": 3.0, "test/loss": float("nan"), "test/a/b": 4.0})
    rows = [line.split() for line in caplog.messages[-1].splitlines() if line.strip()]
    assert rows[0] == ["val", "test"]
    assert rows[2:] == [["loss", "1.0000", "nan"], ["a/b", "2.0000", "4.0000"], ["a/c", "3.0000"]]


# what learns


def with_centres(folder: Path, *words: str, more: tuple[Callback, ...] = (), **sizes: int) -> Parts:
    cfg = quick(*words, **sizes)  # pyright: ignore
    cfg.loss = {"_target_": "scripted.Centres", "_partial_": True}
    return build(cfg, folder, more)


@pytest.mark.parametrize("words", [(), ("finetune.layer_decay=0.5",), ("finetune.freeze=[hidden.*]",)], ids=str)
def test_all_that_requires_a_gradient_is_in_one_group(words: tuple[str, ...], tmp_path: Path) -> None:
    parts = with_centres(tmp_path, *words, "optimizer.weight_decay=0.1")
    before = {name: p.detach().clone() for name, p in parts.task.named_parameters()}
    parts.trainer.fit(parts.task, parts.data)
    groups = parts.trainer.optimizers[0].param_groups
    handed = [p for group in groups for p in group["params"]]
    learns = [p for p in parts.task.parameters() if p.requires_grad]
    assert sorted(map(id, handed)) == sorted(map(id, learns))
    loss: Any = parts.task.loss
    of = {id(p): group for group in groups for p in group["params"]}
    assert (of[id(loss.centres)]["weight_decay"], of[id(loss.temperature)]["weight_decay"]) == (0.1, 0.0)
    assert of[id(loss.centres)]["lr"] == of[id(loss.temperature)]["lr"] == parts.task.lr
    for name, p in parts.task.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_what_learns_beside_the_network_is_in_the_table(tmp_path: Path) -> None:
    parts = with_centres(tmp_path, "finetune.freeze=[hidden.0.*]")
    beside = sum(p.numel() for group in parts.task.groups_beside() for p in group["params"])
    *_, row = parts.plan.table(parts.task.net, 0.5, beside)
    assert row == ("beside the network", "101", "learns", "0.5")


def test_a_parameter_that_the_network_and_the_loss_share_is_handed_over_once(tmp_path: Path) -> None:
    parts = with_centres(tmp_path)
    parts.task.loss.head = parts.task.net.head
    parts.trainer.fit(parts.task, parts.data)  # an optimizer refuses one that is in two groups
    names = [group["name"] for group in parts.trainer.optimizers[0].param_groups]
    assert names == ["decayed", "kept", "task/decayed", "task/kept"]


def test_what_is_left_out_of_the_optimizer_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = with_centres(tmp_path / "a")
    parts.trainer.fit(parts.task, parts.data)
    assert "not learnt" not in caplog.text
    parts = with_centres(tmp_path / "b", "finetune.freeze=[hidden.0.*]")
    parts.task.groups_beside = list
    parts.trainer.fit(parts.task, parts.data)
    lines = [text for text in caplog.messages if text.startswith("not learnt")]
    assert len(lines) == 1
    assert "not learnt loss.centres, loss.temperature: in no optimizer" in lines[0]


def test_a_network_that_is_unfrozen_later_is_not_left_out(
    texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = build(quick(*texts, "finetune.unfreeze=[0,1]", epochs=2), tmp_path)
    parts.trainer.fit(parts.task, parts.data)
    assert "not learnt" not in caplog.text

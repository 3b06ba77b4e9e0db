"""Which parts of a network learn, when, and how fast."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed, quick
from lightning import Callback
from omegaconf import OmegaConf
from torch import nn

from research.data.spec import Spec
from research.engine.build import Parts, build, make
from research.engine.errors import UserError
from research.engine.finetune import Finetune, depths
from research.engine.train import train
from research.engine.warm_start import own_settings

SPEC = Spec("text", (50, 16), "class", ("a", "b"), class_counts=(1, 1))
SIZES = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16}"


def planned(*words: str) -> tuple[nn.Module, Finetune]:
    """A BERT of two layers with a plan."""
    cfg = composed("model=bert", "model.pretrained=null", f"model.architecture={SIZES}", *words)
    net, plan = make(cfg.model)(spec=SPEC), make(cfg.finetune)
    plan.prepare(net)
    return net, plan


def of(net: nn.Module, part: str) -> list[nn.Parameter]:
    found = [value for name, value in net.named_parameters() if part in name]
    assert found
    return found


class Watch(Callback):
    """Notes in which epoch which modules are in train mode, at the first batch of it."""

    def __init__(self) -> None:
        self.modes: list[dict[str, bool]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.modes.append({name: module.training for name, module in pl_module.net.named_modules()})


def fitted(*words: str, folder: Path, epochs: int = 2) -> tuple[Parts, list[dict[str, bool]]]:
    watch = Watch()
    parts = build(quick(*words, epochs=epochs), folder, [watch])
    parts.trainer.fit(parts.task, parts.data)
    return parts, watch.modes


def test_each_depth_has_its_rate() -> None:
    net, plan = planned("finetune.layer_decay=0.5")
    share = {id(p): group["share"] for group in plan.groups(net) for p in group["params"]}
    expected = {"base.embeddings": 0.125, "layer.0.": 0.25, "layer.1.": 0.5, "head.": 1.0}
    for part, rate in expected.items():
        assert {share[id(p)] for p in of(net, part)} == {rate}
    assert len(share) == len(list(net.parameters()))
    rows = list(plan.table(net, 0.8))
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("before the layers", "learns", "0.1"),
        ("layer 1", "learns", "0.2"),
        ("layer 2", "learns", "0.4"),
        ("head", "learns", "0.8"),
    ]
    assert sum(int(row[1].replace(",", "")) for row in rows) == sum(p.numel() for p in net.parameters())


def test_the_table_says_what_learns_and_from_when() -> None:
    net, plan = planned("finetune.unfreeze=[0,1]", "finetune.freeze=['*.layer.1.attention.*']")
    rows = [(row[0], row[2]) for row in plan.table(net, 1.0)]
    assert rows == [
        ("before the layers", "frozen"),
        ("layer 1", "frozen"),
        ("layer 2", "frozen"),
        ("layer 2", "learns from epoch 1"),
        ("head", "learns"),
    ]


def test_only_layers_that_have_parameters_count() -> None:
    net = make(own_settings(composed("model=mlp").model))(spec=Spec("features", (5,), "class", ("a", "b")))
    assert {name: depth for name, depth in depths(net).items() if "weight" in name} == {
        "hidden.0.weight": 1,
        "hidden.1.weight": 2,
        "hidden.4.weight": 3,
        "hidden.5.weight": 4,
        "head.weight": 5,
        "skip.weight": 4,
    }


def test_what_never_learns_has_no_optimizer_state_and_no_gradient(texts: list[str], tmp_path: Path) -> None:
    parts, _ = fitted(*texts, "finetune.unfreeze=[0,1]", folder=tmp_path)
    net = parts.task.net
    state = parts.trainer.optimizers[0].state
    reached = [*of(net, "head."), *of(net, "layer.1.")]
    assert {id(p) for p in state} == {id(p) for p in reached}
    for parameter in net.parameters():
        assert parameter.requires_grad == any(parameter is other for other in reached)
        assert parameter.requires_grad or parameter.grad is None


def test_parts_are_in_train_mode_from_when_they_learn(texts: list[str], tmp_path: Path) -> None:
    _, (first, second) = fitted(*texts, "finetune.unfreeze=[0,1]", folder=tmp_path)
    for name, before in first.items():
        if name.startswith(("base.embeddings", "base.encoder.layer.0")):
            assert not before, name
            assert not second[name], name
        if name.startswith("base.encoder.layer.1"):
            assert not before, name
            assert second[name], name  # though each epoch ends with a validation, in eval mode
        if name.startswith("head"):
            assert before, name
            assert second[name], name


def test_statistics_of_frozen_norms_stay(tmp_path: Path) -> None:
    words = ("model=cnn", "model.width=4", "finetune.freeze=[stem.*]")
    fresh = build(quick(*words), tmp_path / "a").task.net.state_dict()
    parts, _ = fitted(*words, folder=tmp_path / "b")
    moved = {name for name, value in parts.task.net.state_dict().items() if not torch.equal(value, fresh[name])}
    assert not [name for name in moved if name.startswith("stem.")]
    assert "blocks.0.norm1.running_mean" in moved


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("finetune.freeze=['*']",), r"leaves nothing that learns in epoch 0"),
        (("finetune.freeze=[head.*]", "finetune.unfreeze=[1,0]"), "leaves nothing that learns in epoch 1"),
        (("finetune.freeze=[base.encodr.*]",), r"'base.encodr.\*' matches no parameter; near: base.encoder"),
        (("finetune=gradual",), "epoch 2 asks for 4 layers; this network has 2"),
        (("finetune=lora", "finetune.lora.targets=[queri]"), "no linear layer is called 'queri'"),
    ],
)
def test_a_plan_that_cannot_be_is_told(words: tuple[str, ...], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        planned(*words)


def test_what_learns_cannot_change_under_several_processes(texts: list[str], tmp_path: Path) -> None:
    words = (*texts, "trainer.devices=2", "trainer.strategy=ddp")
    with pytest.raises(UserError, match=r"finetune.unfreeze changes what learns during the run"):
        build(quick(*words, "finetune.unfreeze=[0,1]"), tmp_path)
    build(quick(*words, "finetune=head"), tmp_path)


def test_a_resume_that_changes_what_learns_is_refused_and_leaves_the_run(tmp_path: Path) -> None:
    cfg = quick("finetune.layer_decay=0.5")
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    (tmp_path / "run.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    cfg.finetune.layer_decay, cfg.resume = 0.9, str(tmp_path)
    with pytest.raises(UserError, match=r"finetune.layer_decay=0.9 \(was 0.5\)"):
        train(cfg, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before

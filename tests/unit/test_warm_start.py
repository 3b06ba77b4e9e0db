"""A run's network is a start for another: what fits is taken, the rest is told, and nothing fits by mistake."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import quick, sealed, told
from torch import Tensor

from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.engine.pretrained import keep, locate
from research.engine.record import write_json
from research.engine.warm_start import own_settings

SIZES = "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16"
NETWORKS = {
    "mlp": ("model=mlp", "model.width=8"),
    "cnn": ("model=cnn", "model.width=4"),
    "value": ("data=diabetes", "model=mlp", "model.width=8"),
    "vision": ("model=vision", f"model.architecture={{{SIZES}}}"),
    "native": ("model=vision", f"model.architecture={{{SIZES}}}", "model.pooling=native"),
}
RANDOM = ("model.pretrained=null", "cache=null")


@pytest.fixture(autouse=True)
def forgotten() -> None:
    locate.cache_clear()


def finished(folder: Path, *words: str, classes: list[str] | None = None) -> dict[str, Tensor]:
    """Leaves a run of random weights in a folder; gives the weights of its network."""
    parts = build(quick(*words, *RANDOM, "seed=7"), folder)
    spec = parts.data.spec.plain() | ({"classes": classes} if classes else {})
    folder.mkdir(exist_ok=True)
    write_json(folder / "run.json", {"data": {"spec": spec}})
    (folder / "config.yaml").write_text("seed: 7\n")
    keep(parts, folder)
    sealed(folder / "checkpoints/best.ckpt", {"state_dict": parts.task.state_dict()})
    return dict(parts.task.net.state_dict())


def started(folder: Path, *words: str, **settings: Any) -> Parts:
    return build(quick(*words, f"model.pretrained={folder}", "cache=null"), folder.parent / "second", **settings)


def same(parts: Parts, weights: dict[str, Tensor]) -> dict[str, bool]:
    """Of each parameter, whether it is that of the run."""
    return {name: torch.equal(value, weights[name]) for name, value in parts.task.net.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_starts_from_a_run_of_its_kind(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights = finished(tmp_path / "first", *NETWORKS[name])
    assert all(same(started(tmp_path / "first", *NETWORKS[name]), weights).values())
    num = sum(message.startswith("pretrained ") for message in caplog.messages)
    assert num == 1
    assert "weights are those of first" in caplog.text
    assert "; new:" not in caplog.text


def test_text_encoders_take_the_head_as_well(texts: list[str], tmp_path: Path) -> None:
    weights = finished(tmp_path / "first", *texts)
    assert all(same(started(tmp_path / "first", *texts), weights).values())


@pytest.mark.parametrize("name", ["mlp", "vision"])
def test_the_head_of_other_classes_is_new(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    weights = finished(tmp_path / "first", *NETWORKS[name], classes=list("qwertzuiop"))
    found = same(started(tmp_path / "first", *NETWORKS[name]), weights)
    norms = {"head.0.weight", "head.0.bias"}  # which are ones and zeros in both
    assert all(taken != parameter.startswith("head.") for parameter, taken in found.items() if parameter not in norms)
    line = next(message for message in caplog.messages if message.startswith("pretrained "))
    assert "head." in line
    assert line.endswith("(the head is of other classes)")


def test_weights_of_other_shapes_are_new_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    weights = finished(tmp_path / "first", *NETWORKS["value"])  # 10 numbers in, 1 out
    found = started(tmp_path / "first", *NETWORKS["mlp"])  # 64 in, 10 out
    assert torch.equal(found.task.net.hidden[4].weight, weights["hidden.4.weight"])
    assert "pretrained 7 of 10 weights are those of first; new: head.bias, head.weight, hidden.0.weight" in caplog.text


def test_statistics_of_norms_come_along(tmp_path: Path) -> None:
    finished(tmp_path / "first", *NETWORKS["cnn"])
    path = tmp_path / "first/checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["net.stem.1.running_mean"].fill_(3.5)
    sealed(path, content)
    assert started(tmp_path / "first", *NETWORKS["cnn"]).task.net.stem[1].running_mean.tolist() == [3.5] * 4


def test_what_cannot_be_a_start_is_told(tmp_path: Path) -> None:
    finished(tmp_path / "first", *NETWORKS["mlp"])
    with pytest.raises(UserError, match=r"model: nothing of the run '.*first' fits this Cnn"):
        started(tmp_path / "first", *NETWORKS["cnn"])
    with pytest.raises(UserError, match=r"model\.pretrained=.*/nowhere is not the folder of a run, which a Mlp starts"):
        started(tmp_path / "nowhere", *NETWORKS["mlp"])
    (tmp_path / "first/checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match="first' has no checkpoint; did it finish an epoch"):
        started(tmp_path / "first", *NETWORKS["mlp"])
    finished(tmp_path / "mlp", *NETWORKS["mlp"])
    with pytest.raises(UserError, match="nothing of the run"):
        build(quick("model=boosting", f"+model.pretrained={tmp_path / 'mlp'}"), tmp_path / "second")


def test_a_run_opens_without_the_one_it_started_from(tmp_path: Path) -> None:
    finished(tmp_path / "first", *NETWORKS["mlp"])
    parts = started(tmp_path / "first", *NETWORKS["mlp"])
    (tmp_path / "first").rename(tmp_path / "gone")
    state = {"state_dict": parts.task.state_dict()}
    again = started(tmp_path / "first", *NETWORKS["mlp"], state=state)
    assert all(same(again, dict(parts.task.net.state_dict())).values())


def test_a_network_of_ones_own_may_be_given_a_run_with_a_plus(tmp_path: Path) -> None:
    assert told("model=boosting", "+model.pretrained=logs/RUN") == []
    assert "model.pretrained=5" in told("model=boosting", "+model.pretrained=5")[0]
    cfg = quick("model=boosting", "+model.pretrained=logs/RUN")
    assert "pretrained" not in own_settings(cfg.model)
    assert "pretrained" in own_settings(quick("model=vision").model)

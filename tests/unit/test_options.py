"""Every option of every group builds and trains; what every network and every yaml must keep to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import CONF, a_spec, composed, options, own_files, quick
from omegaconf import OmegaConf
from torch import nn

from research.engine.build import Parts, build, make
from research.engine.errors import UserError
from research.engine.warm_start import own_settings

ELSEWHERE = {"hydra", "trainer", "experiment"}  # what is no part of a network's training, or takes long
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ELSEWHERE)
OPTIONS = [(group, option) for group in GROUPS for option in options(group)]
NETWORKS = options("model")
SUPERVISED = [name for name in NETWORKS if "Supervised" in composed(f"model={name}").task._target_]
LEARNING = [name for name in NETWORKS if "Fitted" not in composed(f"model={name}").task._target_]
# reading the standard library takes seconds
TEXT = ("model=bert", "model=masked_bert", "task=masked", "data=docstrings", "finetune=head", "finetune=lora")


def named(group: str, option: str) -> Any:
    name = f"{group}={option}"
    return pytest.param(group, option, id=name, marks=[pytest.mark.slow] if name in TEXT else [])


def built(group: str, option: str, folder: Path) -> Parts:
    """With the partners that the option pulls along, else with the first data or model that it accepts."""
    own = own_files(folder)
    partners = [[f"model={name}"] for name in options("model") if group != "model"]
    partners += [own.get(name, [f"data={name}"]) for name in options("data") if group != "data"]
    words = own[option] if group == "data" and option in own else [f"{group}={option}"]
    refusals = []
    for partner in ([], *partners):
        try:
            return build(quick(f"cache.folder={folder / 'cache'}", *partner, *words), folder / "run")
        except UserError as error:
            refusals.append(f"{partner}: {error}")
    pytest.fail(f"{group}={option} fits nothing: {refusals}")


@pytest.mark.parametrize(("group", "option"), [named(*pair) for pair in OPTIONS])
def test_every_option_trains(group: str, option: str, tmp_path: Path) -> None:
    parts = built(group, option, tmp_path)
    before = {name: value.detach().clone() for name, value in parts.task.net.named_parameters()}
    parts.trainer.fit(parts.task, parts.data)
    assert parts.trainer.global_step == (0 if "Fitted" in type(parts.task).__name__ else 2)
    for name, value in parts.task.net.named_parameters():
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) != value.requires_grad, name
    assert parts.trainer.callback_metrics["val/loss"].isfinite()


def test_no_logger_goes_with_the_default_callbacks(tmp_path: Path) -> None:
    parts = build(quick("callbacks=default", "logger=none"), tmp_path)
    parts.trainer.fit(parts.task, parts.data)
    assert parts.trainer.global_step == 2


def test_callbacks_may_be_stacked(tmp_path: Path) -> None:
    parts = build(quick("callbacks=[default,ema]"), tmp_path)
    callbacks: list[Any] = vars(parts.trainer)["callbacks"]
    kinds = [type(callback).__name__ for callback in callbacks]
    assert kinds.count("EarlyStopping") == kinds.count("Ema") == 1


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("trainer.precision=odd", "trainer: Precision 'odd' is invalid"),
        ("trainer.strategy=ddpp", "trainer:"),
        ("monitor=val/los", "did you mean 'val/loss'?"),
        ("scheduler=plateau scheduler.monitor=val/f2", "scheduler.monitor: no logged metric 'val/f2'"),
        ("loss=mse metrics=regression", "loss: loss=mse is for targets that are a value"),
        ("data=diabetes model=cnn", "model: model=cnn takes x of kind image"),
        ("data=diabetes augment=mixup", "augment: augment=images takes x of kind image"),
        ("data=diabetes metrics=classification", "does not score a value"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("optimizer.betas=[0.9,2]", "optimizer: Invalid beta parameter"),
        ("optimizer=sgd optimizer.momentum=0", "optimizer: Nesterov momentum requires"),
        ("callbacks=default trainer.limit_val_batches=0", "leaves no val/ metrics"),
        ("callbacks=default trainer.check_val_every_n_epoch=2", "no epoch would be validated"),
        ("scheduler=plateau monitor=train/loss", "looks right after each validation; take a metric of val/"),
        (
            "trainer.accumulate_grad_batches=3 trainer.val_check_interval=7",
            "within a step of accumulate_grad_batches=3",
        ),
        ("trainer.accumulate_grad_batches=3 trainer.val_check_interval=0.5", "a multiple of it, 30 say"),
        ("trainer=ddp finetune.unfreeze=[0]", "finetune.unfreeze changes what learns"),
        ("trainer=ddp callbacks=default callbacks.finite.policy=rollback", "begins the fit anew"),
        ("trainer=ddp find_lr=true", "find_lr searches in one process"),
        ("trainer=ddp find_batch_size=true", "find_batch_size searches in one process"),
        ("callbacks=default ~callbacks.checkpoint", "callbacks.checkpoint saves what every run needs"),
    ],
)
def test_parts_that_cannot_work_are_told(words: str, fragment: str, tmp_path: Path) -> None:
    chosen = words.split()
    if words.startswith("monitor"):
        chosen.append("callbacks=default")
    with pytest.raises(UserError) as told:
        build(quick(*chosen), tmp_path)
    assert fragment in str(told.value)


MINE = """
class Reads:
    def __init__(self, *given, path=None, read=open, **rest):
        read(path or "in the code.txt")
"""


@pytest.mark.parametrize(
    "part", ["augment", "model", "finetune", "loss", "optimizer", "task", "data", "callbacks.x", "logger"]
)
@pytest.mark.parametrize(
    ("path", "fragment"),
    [("words.txt", "path=..."), ("a/b", "path=..."), ("", "No setting names it"), ("{tmp}", "Is a directory")],
)
def test_a_file_that_a_class_of_the_user_reads_is_told_with_its_setting(
    part: str, path: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reader.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = quick("callbacks=default")
    node: dict[str, Any] = {"_target_": "own_reader.Reads", "path": path.format(tmp=tmp_path)}
    if part == "optimizer":
        node["lr"] = 1
    OmegaConf.update(
        cfg, part, {**node, "_partial_": part not in ("finetune", "callbacks.x")}, merge=False, force_add=True
    )
    with pytest.raises(UserError) as told:
        build(cfg, tmp_path)
    assert "cannot be read" in str(told.value)
    assert fragment in str(told.value)
    assert not path or f"{part}.path" in str(told.value)
    assert "\n" not in str(told.value)


def test_parts_that_cannot_work_together_are_told_at_once(tmp_path: Path) -> None:
    cfg = quick("data=diabetes", "model=cnn", "loss=focal", "augment=images", "optimizer.lr=-1")
    with pytest.raises(UserError) as told:
        build(cfg, tmp_path)
    assert [problem.split(":")[0] for problem in told.value.problems] == ["augment", "model", "loss", "optimizer"]


# networks

INPUTS: dict[str, list[tuple[int, ...]]] = {
    "features": [(1,), (7,)],
    "image": [(1, 8, 8), (3, 17, 9), (2, 1, 1)],
    "text": [(1000, 16)],  # words, and tokens at most
}
SPECS = [
    a_spec(kind, shape, num_values=num_values)
    for kind, shapes in INPUTS.items()
    for shape in shapes
    for num_values in (0, 2)
]


def networks(option: str) -> list[tuple[Any, nn.Module]]:
    """One for each spec that it takes."""
    torch.manual_seed(0)
    node = own_settings(composed(f"model={option}").model)
    if "image_size" in node:
        node.image_size = 32  # which takes a moment, and its own seconds
    partial = make(node)
    taken = []
    for spec in SPECS:
        try:
            taken.append((spec, partial(spec=spec)))
        except ValueError as error:
            if not str(error).startswith(f"model={option} "):
                raise
    assert taken
    return taken


def batch(spec: Any, rows: int = 8, first: int = 0) -> Any:
    """The same for each call, but for the first row when `first` is another number."""
    generator = torch.Generator().manual_seed(1)
    if spec.kind != "text":
        x = torch.rand(rows, *spec.shape, generator=generator)
        x[0] += first
        return x
    words, tokens = spec.shape
    ids = torch.randint(words, (rows, tokens), generator=generator)
    ids[0] = (ids[0] + first) % words
    lengths = torch.randint(2, tokens + 1, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths).long()}


@pytest.mark.parametrize("option", SUPERVISED)
def test_network_gives_the_outputs_of_its_spec(option: str) -> None:
    for spec, net in networks(option):
        assert net(batch(spec)).shape == (8, spec.num_outputs)
        assert net.eval()(batch(spec, rows=1)).shape == (1, spec.num_outputs)


def learning(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a network does not hold fixed itself."""
    return [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("option", LEARNING)
def test_network_has_a_finite_gradient_everywhere(option: str) -> None:
    for spec, net in networks(option):
        net(batch(spec)).square().sum().backward()
        for name, parameter in learning(net):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or spec.shape[-1] == 1, name  # one pixel reaches one tap of a kernel


@pytest.mark.parametrize("option", LEARNING)
def test_network_keeps_rows_apart(option: str) -> None:
    for spec, net in networks(option):
        net.eval()
        before, after = net(batch(spec)), net(batch(spec, first=1))
        assert torch.equal(before[1:], after[1:])
        assert not torch.equal(before[0], after[0])


# parameter groups

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def groups(net: nn.Module, *overrides: str) -> list[dict[str, Any]]:
    plan = make(composed(*overrides).finetune)
    plan.prepare(net)
    return plan.groups(net)


@pytest.mark.parametrize("option", LEARNING)
def test_every_parameter_is_in_one_group_and_biases_and_norms_never_decay(option: str) -> None:
    for _, net in networks(option):
        found = {group["name"]: group for group in groups(net)}
        handed = [id(p) for group in found.values() for p in group["params"]]
        assert sorted(handed) == sorted(id(p) for _, p in learning(net))
        spared = {id(p) for module in net.modules() if isinstance(module, NORMS) for p in module.parameters()}
        spared |= {id(p) for name, p in learning(net) if "bias" in name.rpartition(".")[2]}
        assert {id(p) for p in found["kept"]["params"]} == spared
        assert found["kept"]["weight_decay"] == 0.0
        assert "weight_decay" not in found["decayed"]


@pytest.mark.parametrize("option", options("optimizer"))
def test_an_optimizer_shrinks_kernels_alone(option: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = [p.detach().clone() for p in net.parameters()]
    partial = make(composed(f"optimizer={option}", "optimizer.weight_decay=0.5").optimizer)
    optimizer = partial(groups(net), lr=0.01)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kernel, *others = zip(net.parameters(), before, strict=True)
    assert kernel[0].norm() < kernel[1].norm()
    assert all(torch.equal(new, old) for new, old in others)


def test_frozen_parameters_are_not_handed_over() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    handed = [p for group in groups(net, "finetune.freeze=[0.*]") for p in group["params"]]
    assert [id(p) for p in handed] == [id(net[1].weight), id(net[1].bias)]
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert [group["name"] for group in groups(net, "finetune.freeze=[0.*,1.bias]")] == ["decayed"]


# yaml


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_a_yaml_is_short(path: Path) -> None:
    primary = path.parent == CONF  # holds the list of groups as well
    assert len(path.read_text("utf-8").splitlines()) <= (30 if primary else 25)

"""Which parts of a network learn, from when on, and at which rate.

Freezing is data: name patterns. What is frozen has no gradient, no optimizer state, and is in eval mode.
"""

import logging
import re
from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated, Any, TypedDict

from lightning import Callback, LightningModule, Trainer
from pydantic import Field
from torch import nn

from research.engine.values import Fraction, NonNegativeInt, PositiveInt, Probability

log = logging.getLogger(__name__)

QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")
NUM_TOLD = 8  # names of parameters that a warning holds


class Lora(TypedDict):
    """Low-rank adapters (Hu et al., 2022): rank, scale, dropout, and the names of the layers that get one.

    None for the layers of queries and values, as encoders call them.
    """

    r: PositiveInt
    alpha: PositiveInt
    dropout: Probability
    targets: list[str] | None


class Finetune(Callback):
    """A plan for the parameters of a network.

    Depth counts the layers of the network's longest stack, those that have parameters: 0 is before the stack, 1 its
    first layer, and so on; what comes after the stack in the base has the depth of its last layer, the head one more.

    Args:
        freeze: patterns of parameter names (`*` matches anything) that never learn.
        unfreeze: how many layers from the top learn, in each epoch from the first one on, and as at last in all later
            ones; the head always does. None for all layers, always.
        layer_decay: the rate of a layer, as a share of that of the layer above it (Howard and Ruder, 2018).
        lora: adapters to put into the base, whose own weights are then frozen.
    """

    def __init__(
        self,
        freeze: list[str],
        unfreeze: Annotated[list[NonNegativeInt], Field(min_length=1)] | None,
        layer_decay: Fraction,
        lora: Lora | None,
    ) -> None:
        self.freeze, self.unfreeze, self.layer_decay, self.lora = freeze, unfreeze, layer_decay, lora

    def prepare(self, network: nn.Module) -> None:
        """Puts adapters in and freezes; once, before the optimizer is made.

        Raises:
            ValueError: a pattern or a target that matches nothing, a stage past the last layer, or one in which
            nothing learns.
        """
        if not any(True for _ in network.parameters()) and (
            self.freeze or self.lora or self.unfreeze or self.layer_decay != 1
        ):
            raise ValueError("this network has no parameters that learn step by step; take finetune=full")
        if self.lora:
            _adapt(network, self.lora)
        names = [name for name, _ in network.named_parameters()]
        for pattern in self.freeze:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"freeze: '{pattern}' matches no parameter; near: {', '.join(_near(pattern, names))}")
        self.frozen = {
            name
            for name, parameter in network.named_parameters()
            if not parameter.requires_grad or any(fnmatchcase(name, pattern) for pattern in self.freeze)
        }
        self.depths = depths(network)
        self.top = max(self.depths.values(), default=0)
        for epoch, layers in enumerate(self.unfreeze or ()):
            if layers > self.top - 1:
                raise ValueError(f"unfreeze: epoch {epoch} asks for {layers} layers; this network has {self.top - 1}")
        stages = [{name for name in names if self._learns(name, epoch)} for epoch in range(len(self.unfreeze or [0]))]
        if names and not all(stages):
            raise ValueError(f"freeze={self.freeze} leaves nothing that learns in epoch {stages.index(set())}")
        self.never = set(names).difference(*stages)
        self._set(network, 0)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups with their share of the rate, for what learns at any time of the run."""
        made: dict[str, dict[str, Any]] = {}
        for name, parameter in network.named_parameters():
            if name in self.never:
                continue
            share = self.layer_decay ** (self.top - self.depths[name])
            kind = "decayed" if parameter.dim() > 1 else "kept"  # biases and norms never decay
            key = kind if self.layer_decay == 1 else f"depth_{self.depths[name]}/{kind}"
            group = made.setdefault(key, {"name": key, "params": [], "share": share})
            group["params"].append(parameter)
            if kind == "kept":
                group["weight_decay"] = 0.0
        return list(made.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run that goes on within an epoch does not start one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.net
        self._set(network, trainer.current_epoch)

    def _set(self, network: nn.Module, epoch: int) -> None:
        """A function of the epoch alone, so that a resumed run has the same parts frozen."""
        for name, parameter in network.named_parameters():
            parameter.requires_grad = self._learns(name, epoch)
            if not parameter.requires_grad:
                parameter.grad = None
        _set_modes(network)

    def _learns(self, name: str, epoch: int) -> bool:
        layers = self.top if self.unfreeze is None else self.unfreeze[min(epoch, len(self.unfreeze) - 1)]
        return name not in self.frozen and self.depths[name] > self.top - 1 - layers

    @property
    def differs(self) -> bool:
        """Whether parts differ in when or how fast they learn, so that a table is worth reading."""
        return bool(self.never) or self.unfreeze is not None or self.layer_decay != 1

    def table(self, network: nn.Module, lr: float, beside: int = 0) -> Iterator[tuple[str, str, str, str]]:
        """Rows of part, number of parameters, when it learns, rate; `beside` parameters learn outside the network."""
        for depth in range(self.top + 1):
            parts = [(n, p) for n, p in network.named_parameters() if self.depths[n] == depth]
            for label, chosen in (
                ("frozen", [p for n, p in parts if n in self.never]),
                (self._when(depth), [p for n, p in parts if n not in self.never]),
            ):
                if chosen:
                    name = "head" if depth == self.top else f"layer {depth}" if depth else "before the layers"
                    rate = "" if label == "frozen" else f"{lr * self.layer_decay ** (self.top - depth):.2g}"
                    yield name, f"{sum(p.numel() for p in chosen):,}", label, rate
        if beside:
            yield "beside the network", f"{beside:,}", "learns", f"{lr:.2g}"

    def _when(self, depth: int) -> str:
        if self.unfreeze is None or depth == self.top:
            return "learns"
        epochs = [epoch for epoch, layers in enumerate(self.unfreeze) if depth > self.top - 1 - layers]
        return f"learns from epoch {min(epochs)}" if epochs else ""


class LeftOut(Callback):
    """Names what requires a gradient and is in no optimizer: it looks as if it learnt, and does not."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        given = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        left = [name for name, p in pl_module.named_parameters() if p.requires_grad and p not in given]
        if left and trainer.is_global_zero:
            log.warning(
                "not learnt %s%s: in no optimizer, though a gradient is asked for; give it to one in "
                "configure_optimizers, or set requires_grad=False",
                ", ".join(left[:NUM_TOLD]),
                f" and {len(left) - NUM_TOLD} more" if len(left) > NUM_TOLD else "",
            )


def depths(network: nn.Module) -> dict[str, int]:
    """The depth of each parameter, by name."""
    modules = [(name, module) for name, module in network.named_modules() if name and name.split(".")[0] != "head"]
    stacks = {
        name: [place for place, layer in enumerate(module) if any(True for _ in layer.parameters())]
        for name, module in modules
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    stack = max(stacks, key=lambda name: len(stacks[name]), default="")
    layers = stacks.get(stack, [])
    found, passed = {}, False
    for name, _ in network.named_parameters():
        inside = re.match(rf"{re.escape(stack)}\.(\d+)\.", name) if stack else None
        passed = passed or inside is not None
        if name.split(".")[0] == "head":
            found[name] = len(layers) + 1
        elif inside:
            found[name] = layers.index(int(inside[1])) + 1
        else:
            found[name] = len(layers) if passed else 0
    return found


def _set_modes(module: nn.Module) -> None:
    """Eval mode for the largest modules that are wholly frozen, train mode for the rest."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        _set_modes(child)


def _adapt(network: nn.Module, lora: Lora) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base: Any = getattr(network, "base", network)
    linear = sorted({name.split(".")[-1] for name, m in base.named_modules() if isinstance(m, nn.Linear)})
    targets = [name for name in linear if name in QUERY_VALUE] if lora["targets"] is None else lora["targets"]
    if not targets:
        raise ValueError(
            "lora: no linear layer is one of queries or values; name layers, finetune.lora.targets=[...]: "
            f"there are {', '.join(linear) or 'none'}"
        )
    for target in targets:
        if target not in linear:
            raise ValueError(f"lora.targets: no linear layer is called '{target}'; there are {', '.join(linear)}")
    config = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets)
    inject_adapter_in_model(config, base)


def _near(pattern: str, names: list[str]) -> list[str]:
    parts = {".".join(name.split(".")[:end]) + ".*" for name in names for end in range(1, name.count(".") + 1)}
    return get_close_matches(pattern, [*names, *parts], n=3, cutoff=0.0)

"""A run's own network as the start of another: of any model, the weights whose names and shapes fit."""

import logging
from copy import deepcopy
from inspect import isclass, signature
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.checkpoint import load, path_of
from research.engine.reopen import record_of

log = logging.getLogger(__name__)

KEY = "pretrained"  # of conf/model/*.yaml: a run's folder, for every model
NUM_TOLD = 5


def own_settings(node: DictConfig) -> DictConfig:
    """The node of a model without `pretrained`, where its class does not take it."""
    if KEY not in node or _takes_it(node):
        return node
    node = deepcopy(node)
    OmegaConf.set_struct(node, False)
    del node[KEY]
    return node


def start_from_run(net: nn.Module, node: DictConfig, spec: Spec) -> None:
    """Take from the run that `model.pretrained` names, if it names one, what fits; tell what does not.

    The head is taken where the classes are the same.

    Raises:
        ValueError: it is no run and the network takes nothing else, or nothing of it fits.
    """
    source = node.get(KEY)
    if source is None:
        return
    run = Path(str(source)).expanduser()
    if not (run / "run.json").is_file():
        if _takes_it(node):
            return
        raise ValueError(f"model.{KEY}={source} is not the folder of a run, which a {type(net).__name__} starts from")
    theirs = _weights(run)
    same = _says(run) == (spec.target, list(spec.classes))
    fits = {
        name: theirs[name]
        for name, value in net.state_dict().items()
        if name in theirs and theirs[name].shape == value.shape and (same or not _of_head(name))
    }
    learnt = {name for name, _ in net.named_parameters()}
    body = {name for name in learnt if not _of_head(name)} or learnt  # a head alone may fit by chance
    if not body & fits.keys():
        raise ValueError(f"nothing of the run '{run}' fits this {type(net).__name__}: no weight of one name and shape")
    net.load_state_dict(fits, strict=False)
    left = sorted(learnt - fits.keys())
    told = ", ".join(left[:NUM_TOLD]) + (f" and {len(left) - NUM_TOLD} more" if len(left) > NUM_TOLD else "")
    why = "" if same else " (the head is of other classes)"
    rest = f"; new: {told}{why}" if left else ""
    log.info("pretrained %d of %d weights are those of %s%s", len(learnt & fits.keys()), len(learnt), run.name, rest)


def _takes_it(node: DictConfig) -> bool:
    """Whether the class of a model, or one it builds on, has an argument for it."""
    made: Any = get_object(node["_target_"])
    makers = [kind.__init__ for kind in made.__mro__ if "__init__" in vars(kind)] if isclass(made) else [made]
    return any(KEY in signature(each).parameters for each in makers)


def _of_head(name: str) -> bool:
    return name.split(".")[0] == "head"


def _weights(run: Path) -> dict[str, Tensor]:
    """Of the network of a run, by name, at its best checkpoint."""
    if not path_of(run, "best").is_file():
        raise ValueError(f"the run '{run}' has no checkpoint; did it finish an epoch?")
    found: dict[str, Any] = load(path_of(run, "best"))["state_dict"]
    return {name.removeprefix("net."): value for name, value in found.items() if name.startswith("net.")}


def _says(run: Path) -> tuple[str | None, list[str]]:
    """The kind of target and the classes of a run's data."""
    data = record_of(run).get("data") or {}
    spec = data.get("spec") or {}
    return spec.get("target"), list(spec.get("classes") or ())

"""Which way a metric is better, and the `mode` of all that watches one."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

Ways = Mapping[str, str]  # min or max, by logged name

LOSSES = ("train/loss", "train/loss_step", "val/loss", "test/loss")


def ways(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The way of each loss, and of each metric whose class says whether higher is better."""
    found: dict[str, str] = dict.fromkeys(LOSSES, "min")
    for name, make in metrics.items():
        higher = getattr(getattr(make, "func", make), "higher_is_better", None)
        if isinstance(higher, bool):
            found |= dict.fromkeys((f"val/{name}", f"test/{name}"), "max" if higher else "min")
    return found


def settle(cfg: DictConfig, known: Ways) -> dict[str, str]:
    """Puts `min` or `max` in the place of each `auto`, so that the config on record says it.

    Returns the keys of those that cannot be settled, with the metric they watch; they are to be refused.
    """
    unknown: dict[str, str] = {}
    for key, node in _watching(cfg):
        if node.mode == "auto":
            if node.monitor not in known:
                unknown[key] = node.monitor
            node.mode = known.get(node.monitor, "min")  # of one that is not known, until it is refused
    return unknown


def opposed(cfg: DictConfig, known: Ways) -> Iterator[str]:
    """One sentence for each `mode` that is not the way of its metric."""
    for key, node in _watching(cfg):
        way = known.get(node.monitor, node.mode)
        if node.mode != "auto" and node.mode != way:
            better = {"min": "lower", "max": "higher"}[way]
            yield f"{key}={node.mode}: {node.monitor} is better when it is {better}; take {key}={way}, or auto."


def _watching(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """All that has a monitor and a mode, with the key that sets the mode; the config itself comes last."""
    callbacks = {f"callbacks.{name}": node for name, node in (cfg.get("callbacks") or {}).items()}
    parts = {"scheduler": cfg.get("scheduler"), **callbacks}
    for path, node in parts.items():
        if isinstance(node, DictConfig) and "monitor" in node and "mode" in node:
            follows = OmegaConf.is_interpolation(node, "mode") and node.monitor == cfg.monitor
            yield "mode" if follows else f"{path}.mode", node
    if "monitor" in cfg and "mode" in cfg:
        yield "mode", cfg

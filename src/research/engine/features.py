"""What a frozen base outputs, computed once and kept on disk: for every epoch, every run of a sweep, every later run.

The key is the content: weights, settings and code of what computes, every input of every row, precision, device,
library versions. How rows are split does not matter. The files hold tensors only (safetensors).
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from safetensors.torch import load_file, save
from torch import Tensor, nn

from research.data.augment import Nothing
from research.data.base import Data
from research.engine.disk_cache import code, kept
from research.engine.finetune import Finetune

log = logging.getLogger(__name__)

BATCH = 32  # rows that are computed together
TRIED = 8  # rows of which the outputs of the task are compared, with features and without
HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "_augmented")
Inputs = dict[str, Tensor]  # of the base, by name
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of inputs, by name


class Unusable(Exception):
    """Why the outputs of a frozen base cannot stand for its inputs."""


def usable(network: Any, data: Data, plan: Finetune) -> bool:
    """Whether the base of a network is wholly frozen in every epoch, and nothing alters a batch before it."""
    base = getattr(network, "base", None)
    if not isinstance(base, nn.Module) or not getattr(network, "has_features", False):
        return False
    frozen = all(f"base.{name}" in plan.never for name, _ in base.named_parameters())
    return frozen and (data.augment is None or isinstance(data.augment, Nothing))


def fill(task: Any, data: Data, folder: Path, max_bytes: int, trainer: Trainer) -> None:
    """Puts the features of every row into `data.features`, from the disk or computed now, as `trainer` would.

    Args:
        folder: of the cache.
        max_bytes: that it may hold.
    """
    start = time.perf_counter()
    try:
        if data.spec.kind == "image" and not hasattr(task, "scale_x"):
            raise Unusable(f"{type(task).__name__} has no scale_x, which says what the base is given of a picture")
        rows = {split: list(_seen(task, data, part)) for split, part in data.rows.items()}
        trainer.precision_plugin.convert_module(task.net)
        task.to(trainer.strategy.root_device)
        modes = {module: module.training for module in task.modules()}
        task.eval()
        try:
            features, found = _kept(task, data, rows, folder, max_bytes, trainer)
            _try(task, data, features, trainer)
        finally:
            for module, mode in modes.items():
                module.training = mode
    except Unusable as why:
        log.info("features   of the frozen base are computed anew in each epoch: %s", why)
        return
    data.features = features
    how, seconds = "read" if found else "computed", time.perf_counter() - start
    log.info("features   of the frozen base %s in %.1f s; each epoch now trains the head alone", how, seconds)


@dataclass(frozen=True)
class Seen:
    """What the base is given of a row: a hash of it, and its shapes. It is read again where it is needed."""

    content: bytes
    shapes: Shapes


def _seen(task: Any, data: Data, rows: Any) -> Iterator[Seen]:
    """Of each row, what the base is given.

    Raises:
        Unusable: x is neither pictures nor a dict, or is not that of its rows, one by one, in a batch of several.
    """
    if own := [name for name in HOOKS if getattr(type(data), name) is not getattr(Data, name)]:
        raise Unusable(f"{type(data).__name__}.{own[0]} may change a batch")
    for index in torch.arange(len(rows)).split(BATCH):
        together, _ = rows[index]
        if data.spec.kind == "image" and isinstance(together, Tensor):  # of one size: there is no padding
            alone_of = ({"x": x[None]} for x in task.scale_x(together))
        else:
            alone_of = (_alone(rows, row, together, place) for place, row in enumerate(index))
        for alone in alone_of:
            yield Seen(_content(alone), _shapes(alone))


def _alone(rows: Any, row: Tensor, together: Any, place: int) -> Inputs:
    alone, _ = rows[row[None]]
    if not _is_row(alone, together, place):
        raise Unusable("x of a batch is not a dict of its rows' tensors, padded at their ends")
    return alone


def _is_row(alone: Any, together: Any, place: int) -> bool:
    """Whether row `place` of a batch holds what the row has alone, and then padding."""
    if not isinstance(alone, dict) or not isinstance(together, dict) or alone.keys() != together.keys():
        return False
    for name, x in alone.items():
        batch = together[name]
        if not isinstance(x, Tensor) or not x.dim() or len(x) != 1 or x.dim() != batch.dim():
            return False
        inner = tuple(slice(size) for size in x.shape[1:])
        if not torch.equal(batch[place][inner], x[0]):
            return False
    return True


def _kept(
    task: Any, data: Data, rows: dict[str, list[Seen]], folder: Path, max_bytes: int, trainer: Trainer
) -> tuple[dict[str, Tensor], bool]:
    """The features of the rows of each split, and whether they were on the disk."""
    distinct = {seen: (split, row) for split, part in rows.items() for row, seen in enumerate(part)}
    ordered = sorted(distinct, key=lambda seen: (seen.shapes, seen.content))

    def make(path: Path) -> None:
        found = _features(task, data, [(seen.shapes, *distinct[seen]) for seen in ordered], trainer)
        path.write_bytes(save({"features": found}))  # save_file hides from a full disk what kept would tell

    path = folder / f"{_key(task.net, [seen.content for seen in ordered], trainer)}.safetensors"
    content, found = kept(path, max_bytes, make, load_file)
    index = {seen: place for place, seen in enumerate(ordered)}
    return {split: content["features"][[index[seen] for seen in part]] for split, part in rows.items()}, found


def _shapes(x: Inputs) -> Shapes:
    return tuple(sorted((name, tuple(value.shape)) for name, value in x.items()))


def _content(x: Inputs) -> bytes:
    """A hash of all that a row gives the base."""
    content = hashlib.sha256()
    for name, value in sorted(x.items()):
        content.update(repr((name, value.dtype, tuple(value.shape))).encode())
        content.update(value.contiguous().view(torch.uint8).numpy().data)
    return content.digest()


def _key(network: Any, rows: list[bytes], trainer: Trainer) -> str:
    """Of all that the features of `rows` depend on: whatever the network computes them from but its head."""
    content = hashlib.sha256()
    parts = [(name, module) for name, module in network.named_modules() if name.split(".")[0] != "head"]
    versions = torch.__version__, transformers.__version__, code({type(module) for _, module in parts})
    place = trainer.precision, trainer.strategy.root_device.type, torch.get_float32_matmul_precision()
    config = getattr(network.base, "config", None)
    configured = (config.to_json_string(), getattr(config, "_attn_implementation", None)) if config else None
    settings = [(name, type(module).__qualname__, _settings(module)) for name, module in parts]
    content.update(repr((versions, place, configured, settings)).encode())
    for name, tensor in sorted({**dict(network.named_buffers()), **network.state_dict()}.items()):
        if name.split(".")[0] != "head":
            content.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for row in rows:
        content.update(row)
    return content.hexdigest()[:32]


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Numbers and words that a module keeps; not where its weights came from, which says nothing of what they are."""
    plain = bool | int | float | str | None
    found = {name: value for name, value in vars(module).items() if name[0] != "_"}
    for name in ("training", "name_or_path"):
        found.pop(name, None)
    lists = {k: v for k, v in found.items() if isinstance(v, tuple | list) and all(isinstance(i, plain) for i in v)}
    return sorted(({k: v for k, v in found.items() if isinstance(v, plain)} | lists).items())


def _features(task: Any, data: Data, rows: list[tuple[Shapes, str, int]], trainer: Trainer) -> Tensor:
    """(N, H) of rows that are sorted by their shapes: those of a batch have the same, so that nothing is padded.

    Args:
        rows: the shapes of each, its split and its place there.

    Raises:
        Unusable: they depend on what learns.
    """
    made = []
    for _, same in groupby(rows, lambda row: row[0]):
        group = list(same)
        for start in range(0, len(group), BATCH):
            each = [data.rows[split][torch.tensor([row])][0] for _, split, row in group[start : start + BATCH]]
            x = _given(task, each, trainer)
            with trainer.precision_plugin.forward_context():
                found = task.net.features(x)  # of frozen weights: it keeps no graph
            if found.requires_grad:
                raise Unusable(f"{type(task.net).__name__}.features makes them with weights that learn")
            made.append(found.float().cpu())
    return torch.cat(made)


def _given(task: Any, each: list[Any], trainer: Trainer) -> Any:
    """What the base is given of a batch, on its device: pictures as the task scales them, or inputs by name."""
    device, plugin = trainer.strategy.root_device, trainer.precision_plugin
    if isinstance(each[0], Tensor):
        return task.scale_x(plugin.convert_input(torch.cat(each)).to(device))
    return {name: torch.cat([row[name] for row in each]).to(device) for name in each[0]}


@torch.inference_mode()
def _try(task: Any, data: Data, features: dict[str, Tensor], trainer: Trainer) -> None:
    """Raises Unusable where the task says something else of features than of the rows they stand for."""
    split = next(iter(features))
    index, device = torch.arange(min(TRIED, len(features[split]))), trainer.strategy.root_device
    x, y = data.rows[split][index]
    plugin: Any = trainer.precision_plugin
    with plugin.forward_context():
        try:
            batches = [
                move_data_to_device(plugin.convert_input((part, y)), device) for part in (x, features[split][index])
            ]
            without, cached = (task.answer(batch, 0)[0].float() for batch in batches)
        except Exception as error:  # whatever a task of one's own does with an x that it does not know
            raise Unusable(
                f"{type(task).__name__} with {type(task.net).__name__} takes no features: {error}"
            ) from error
    rounding = 1e-3 if trainer.precision == "32-true" else 5e-2
    if without.shape != cached.shape or not torch.allclose(without, cached, rtol=rounding, atol=rounding):
        raise Unusable(f"{type(task.net).__name__} predicts something else from them")

"""What would fail in the middle of a run and can be known before it, from the numbers of rows and of batches."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from lightning import Trainer
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from research.data.base import Data
from research.engine.errors import UserError

SOME = 8  # rows on which a metric is tried


def check_training(parts: Any) -> None:
    """Looks at what the fit will do with the rows that there are.

    Raises:
        UserError: it would fail, or never validate.
    """
    data, task, trainer = parts.data, parts.task, parts.trainer
    batches = _batches(data, trainer, "train")
    problems = [*_too_short(trainer, "train", batches), *_unvalidated(trainer, batches[1])]
    problems = problems or [*_single_row(data, task, trainer, batches)]
    if problems:
        raise UserError(*problems)


def unscored(data: Data, task: Any, trainer: Trainer) -> Iterator[str]:
    """Metrics that cannot be had of the rows that a split has."""
    for split in ("val", "test"):
        if split not in data.rows:
            continue
        there, used = _batches(data, trainer, split)
        yield from (wrong := [*_too_short(trainer, split, (there, used))])
        rows = min(len(data.rows[split]), used * data.batch_size)
        if split == "val" and 0 < trainer.num_sanity_val_steps < used:
            rows = min(rows, int(trainer.num_sanity_val_steps) * data.batch_size)
        if rows and not wrong:
            yield from _tried(task, split, rows)


def _batches(data: Data, trainer: Any, split: str) -> tuple[int, int]:
    """How many batches a split has, and how many of them are used."""
    least = trainer.world_size if split == "train" else 1
    full, rest = divmod(len(data.rows[split]), data.batch_size)
    there, limit = full + (rest >= least), getattr(trainer, f"limit_{split}_batches")
    return there, min(there, limit) if isinstance(limit, int) else int(there * limit)


def _too_short(trainer: Any, split: str, batches: tuple[int, int]) -> Iterator[str]:
    there, used = batches
    limit = getattr(trainer, f"limit_{split}_batches")
    if there == 0:
        yield f"the {split} rows do not fill a batch; take a smaller data.batch_size."
    elif used == 0 and isinstance(limit, float):
        yield f"trainer.limit_{split}_batches={limit} of {there} batches is none; take 1 for one batch."


def _unvalidated(trainer: Any, batches: int) -> Iterator[str]:
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not isinstance(interval, int) or not trainer.limit_val_batches:
        return
    if every is not None and interval > batches > 0:
        yield (
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; take fewer, or "
            "trainer.check_val_every_n_epoch=null to count batches over epochs."
        )
    elif every is None and 0 < (most := (trainer.max_epochs or -1) * batches) < interval:
        yield f"trainer.val_check_interval={interval} is more than the {most} batches of the whole run; take fewer."


def _single_row(data: Data, task: Any, trainer: Any, batches: tuple[int, int]) -> Iterator[str]:
    """A batch of one row where the network normalises over the rows of a batch."""
    rows, size, processes = len(data.rows["train"]), data.batch_size, trainer.world_size
    last = rows % size or size  # of an epoch
    sizes = {min(rows, size)} | ({last} if last >= processes and batches[0] == batches[1] else set())
    kinds = {type(module) for module in task.net.modules() if isinstance(module, _BatchNorm) and module.training}
    together = getattr(trainer.strategy, "_layer_sync", None) is not None or kinds == {SyncBatchNorm}
    if not kinds or min(sizes) // (1 if together else processes) != 1:
        return
    net: nn.Module = deepcopy(task.net).train()
    x: Any
    x, _ = data.rows["train"][torch.tensor([0])]
    device = next(net.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net.forward(deepcopy(task.scale_x).to(device)(x.to(device)))
    except ValueError:  # where a row has one value a channel; a larger image has several
        each = " in a process" if processes > 1 else ""
        other = next(b for b in range(size + 1, size + rows) if rows % b not in range(1, 2 * processes))
        yield (
            f"data.batch_size={size} leaves a batch of one row{each}, of the {rows} rows that are trained on, and this "
            f"network normalises over the rows of a batch. Take data.batch_size={other}, say."
        )


def _tried(task: Any, split: str, rows: int) -> Iterator[str]:
    num = min(rows, SOME)
    generator = torch.Generator().manual_seed(0)
    if task.spec.target == "class":
        predicted = torch.rand(num, task.num_classes(), generator=generator).softmax(1)
        y = torch.randint(task.num_classes(), (num,), generator=generator)
    else:
        predicted, y = torch.rand(2, num, task.spec.num_outputs, generator=generator)
    for name, metric in deepcopy(task.metrics[split]).items():
        key = f"metrics.{name.split('/')[-1]}"
        try:
            metric.update(predicted, y)
            found = metric.compute()
        except (ValueError, TypeError, RuntimeError) as error:
            few = f" There are {rows} rows: see data.batch_size, trainer.limit_{split}_batches, num_sanity_val_steps."
            yield f"{key}: {' '.join(str(error).split()).rstrip('.')}.{few if rows == num else ''}"
            continue
        if isinstance(found, torch.Tensor) and found.numel() != 1:
            yield (
                f"{key} gives {found.numel()} numbers where one is needed; have it take one over all, average=macro, "
                "micro or weighted say."
            )

"""The fit: search what is to be searched, go on from a checkpoint where there is one, train."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from omegaconf import DictConfig, OmegaConf

from research.engine.build import Parts, build
from research.engine.checkpoint import FOLDER, newest
from research.engine.describe import figure, write_page
from research.engine.errors import UserError
from research.engine.launch import WORKER
from research.engine.loggers import Csv, TensorBoard
from research.engine.pretrained import keep
from research.engine.record import Record
from research.engine.reopen import Changes, tell
from research.engine.report import show
from research.engine.resume import Resumed

log = logging.getLogger(__name__)


def fit(cfg: DictConfig, folder: Path, record: Record | None, resumed: bool, changed: Changes) -> Parts:
    """Builds and trains. Every process of a multi-process run calls it; only the first has a `record`.

    Raises:
        UserError: parts that cannot work, or nothing left to train.
    """
    start, step = None, 0
    if resumed and (folder / FOLDER).is_dir():  # a run killed before its first checkpoint starts anew
        start, epoch, step = newest(folder)
        if cfg.trainer.max_epochs and epoch + 1 >= cfg.trainer.max_epochs > 0:
            raise UserError(
                f"'{folder.name}' has trained all its {epoch + 1} epochs; to go on, ask for more: "
                f"trainer.max_epochs={2 * (epoch + 1)}."
            )
        log.info("resume     after epoch %d, step %d", epoch, step)
        tell(changed)
    parts = build(cfg, folder, [Resumed(changed)] if start else [], start)
    if record:
        device = parts.trainer.strategy.root_device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        record.content["hardware"] |= {"device": str(device), "gpu": gpu, "cuda": torch.version.cuda}
        data = parts.data
        told = {"fingerprint": data.fingerprint, "source": data.source, "warnings": data.findings}
        if (before := record.content.get("data")) and before["fingerprint"] != data.fingerprint and start:
            raise UserError(
                f"the data is not what '{folder.name}' was begun with: its content has changed. Put the files back, "
                "or start a new run."
            )
        record.add(data={**told, "spec": data.spec.plain()})
        keep(parts, folder)
        log.info("folder     %s", os.path.relpath(folder))
        _keep_data(parts, folder)
        sizes = ", ".join(f"{count} {split}" for split, count in parts.data.num_rows.items())
        log.info("data       %s; %s", sizes, parts.data.spec)
        if parts.plan.differs:
            show(("part", "parameters", "", "rate"), parts.plan.table(parts.task.net, cfg.optimizer.lr))
    if start:
        if isinstance(parts.trainer.logger, TensorBoard | Csv):
            parts.trainer.logger.restart(step)
    else:
        _search(cfg, folder, parts)
    os.environ[WORKER] = str(folder)
    parts.trainer.fit(parts.task, parts.data, ckpt_path=start, weights_only=True)
    return parts


def _keep_data(parts: Parts, folder: Path) -> None:
    """Which rows each split has (`splits.npz`, ids of the source's rows from 0), and what is in them."""
    ids: dict[str, Any] = {name: rows.numpy() for name, rows in parts.data.ids.items()}
    np.savez_compressed(folder / "splits.npz", **ids)
    picture = figure(parts.data)
    write_page(parts.data, folder, picture)
    if isinstance(parts.trainer.logger, TensorBoard):
        parts.trainer.logger.experiment.add_figure("data", picture, 0)


def _search(cfg: DictConfig, folder: Path, parts: Parts) -> None:
    """Lightning's finders; what they find becomes part of the run's config."""
    tuner = Tuner(parts.trainer)
    if cfg.find_batch_size:
        tuner.scale_batch_size(parts.task, datamodule=parts.data, max_trials=10)
        cfg.data.batch_size = parts.data.batch_size
        log.info("found      data.batch_size=%d", parts.data.batch_size)
    if cfg.find_lr:
        loop: Any = parts.trainer.fit_loop
        epochs, loop.max_epochs = loop.max_epochs, 100  # the search takes up to 100 steps
        finder = tuner.lr_find(parts.task, datamodule=parts.data, min_lr=1e-5)
        loop.max_epochs = epochs
        if finder is None or finder.suggestion() is None:
            raise UserError("find_lr found no learning rate: the loss never fell. Set optimizer.lr by hand.")
        cfg.optimizer.lr = parts.task.lr
        log.info("found      optimizer.lr=%.3g", parts.task.lr)
    if cfg.find_batch_size or cfg.find_lr:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)

"""What a frozen base outputs, computed once and kept on disk: for every epoch, every run of a sweep, every later run.

The key is the content: weights and configuration of the base, token ids, pooling, precision, library versions. The
files hold tensors only (safetensors).
"""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from research.data.base import Data
from research.data.batches import Tokens
from research.engine.disk_cache import kept
from research.engine.finetune import Finetune

log = logging.getLogger(__name__)


def usable(network: Any, data: Data, plan: Finetune) -> bool:
    """Whether the base of a network is wholly frozen in every epoch and sees each text always the same."""
    base = getattr(network, "base", None)
    if not isinstance(base, nn.Module) or not getattr(network, "has_features", False):
        return False
    frozen = all(f"base.{name}" in plan.never for name, _ in base.named_parameters())
    return frozen and all(isinstance(rows, Tokens) for rows in data.rows.values())


def fill(network: Any, data: Data, folder: Path, max_bytes: int, trainer: Trainer) -> None:
    """Puts the features of every row into `data.features`, from the disk or computed now, as `trainer` would.

    Args:
        folder: of the cache.
        max_bytes: that it may hold.
    """
    start = time.perf_counter()
    network = trainer.precision_plugin.convert_module(network)

    def make(path: Path) -> None:
        save_file({name: _features(network, rows, trainer) for name, rows in data.rows.items()}, path)

    path = folder / f"{_key(network, data, trainer.precision)}.safetensors"
    data.features, found = kept(path, max_bytes, make, load_file)
    how, seconds = "read" if found else "computed", time.perf_counter() - start
    log.info("features   of the frozen base %s in %.1f s; each epoch now trains the head alone", how, seconds)


def _key(network: Any, data: Data, precision: str) -> str:
    content = hashlib.sha256()
    versions = (torch.__version__, transformers.__version__)
    versions += (network.pooling, network.base.config.to_json_string(), precision)
    content.update(repr(versions).encode())
    for name, tensor in sorted(network.base.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for name, rows in data.rows.items():
        assert isinstance(rows, Tokens)
        content.update(name.encode())
        content.update(rows.lengths.numpy().data)
        content.update(torch.cat(rows.ids).numpy().data)
    return content.hexdigest()[:32]


@torch.inference_mode()
def _features(network: Any, rows: Any, trainer: Trainer, batch_size: int = 32) -> Tensor:
    """(N, H), computed in batches of texts of like length."""
    device = trainer.strategy.root_device
    network.eval().to(device)
    order = rows.lengths.argsort(stable=True)
    made = []
    for index in order.split(batch_size):
        x, _ = rows[index]
        with trainer.precision_plugin.forward_context():
            made.append(network.features({name: value.to(device) for name, value in x.items()}).float().cpu())
    found = torch.empty(len(rows), made[0].shape[1])
    found[order] = torch.cat(made)
    return found

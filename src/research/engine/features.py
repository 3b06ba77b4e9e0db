"""What a frozen base outputs, computed once and kept on disk: for every epoch, every run of a sweep, every later run.

The key is the content: weights, configuration and code of the base, token ids, pooling, precision, library versions.
How texts are split does not matter. The files hold tensors only (safetensors).
"""

import hashlib
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning import Trainer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from research.data.augment import Nothing
from research.data.base import Data
from research.data.batches import Tokens
from research.engine.disk_cache import kept
from research.engine.finetune import Finetune

log = logging.getLogger(__name__)

BATCH = 32  # texts that are computed together


def usable(network: Any, data: Data, plan: Finetune) -> bool:
    """Whether the base of a network is wholly frozen in every epoch and sees each text always the same."""
    base = getattr(network, "base", None)
    if not isinstance(base, nn.Module) or not getattr(network, "has_features", False):
        return False
    frozen = all(f"base.{name}" in plan.never for name, _ in base.named_parameters())
    same = data.augment is None or isinstance(data.augment, Nothing)
    return frozen and same and all(isinstance(rows, Tokens) for rows in data.rows.values())


def fill(network: Any, data: Data, folder: Path, max_bytes: int, trainer: Trainer) -> None:
    """Puts the features of every row into `data.features`, from the disk or computed now, as `trainer` would.

    Args:
        folder: of the cache.
        max_bytes: that it may hold.
    """
    start = time.perf_counter()
    network = trainer.precision_plugin.convert_module(network)
    rows: dict[str, Any] = data.rows
    texts = {name: [ids.numpy().tobytes() for ids in part.ids] for name, part in rows.items()}
    different = sorted(set().union(*texts.values()), key=lambda text: (len(text), text))

    def make(path: Path) -> None:
        pad = next(iter(rows.values())).pad
        ids = [torch.frombuffer(bytearray(text), dtype=torch.long) for text in different]
        found = _features(network, Tokens(ids, torch.zeros(len(ids)), pad), trainer)
        path.write_bytes(save({"features": found}))  # save_file hides from a full disk what kept would tell

    path = folder / f"{_key(network, different, trainer.precision)}.safetensors"
    content, found = kept(path, max_bytes, make, load_file)
    place = {text: index for index, text in enumerate(different)}
    data.features = {name: content["features"][[place[text] for text in part]] for name, part in texts.items()}
    how, seconds = "read" if found else "computed", time.perf_counter() - start
    log.info("features   of the frozen base %s in %.1f s; each epoch now trains the head alone", how, seconds)


def _key(network: Any, texts: list[bytes], precision: str) -> str:
    content = hashlib.sha256()
    files = [getattr(sys.modules[kind.__module__], "__file__", None) for kind in type(network).__mro__]
    code = [Path(file).read_bytes() for file in files if file]  # which is the user's to change
    versions = torch.__version__, transformers.__version__
    of_base = network.pooling, network.base.config.to_json_string(), precision
    content.update(repr((versions, code, of_base)).encode())
    for name, tensor in sorted(network.base.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for text in texts:
        content.update(len(text).to_bytes(8, "little"))
        content.update(text)
    return content.hexdigest()[:32]


@torch.inference_mode()
def _features(network: Any, texts: Tokens, trainer: Trainer) -> Tensor:
    """(N, H) of texts that are sorted by length, so that a batch is hardly padded."""
    device = trainer.strategy.root_device
    network.eval().to(device)
    made = []
    for index in torch.arange(len(texts)).split(BATCH):
        x, _ = texts[index]
        with trainer.precision_plugin.forward_context():
            made.append(network.features({name: value.to(device) for name, value in x.items()}).float().cpu())
    return torch.cat(made)

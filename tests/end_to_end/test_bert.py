"""Fine-tuning by real commands, on a small network of random weights but for what is about the packaged one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command
from end_to_end.test_resume import assert_same, killed_after_epoch, last

pytestmark = pytest.mark.slow

TEXT = ("data.packages=[asyncio,email]", "data.split=random", "data.max_length=16")
SMALL = ("model=bert", "model.pretrained=null", *TEXT)


def test_cached_outputs_give_the_metrics_of_no_cache(command: Command, tmp_path: Path) -> None:
    words = (*SMALL, "finetune=head", f"cache.folder={tmp_path / 'cache'}")
    plain = command("train", *words, "cache=null", folder=tmp_path / "plain")
    first = command("train", *words, folder=tmp_path / "first")
    second = command("train", *words, "optimizer.lr=1e-2", folder=tmp_path / "second")
    assert first.json("metrics.json") == pytest.approx(plain.json("metrics.json"), abs=1e-5)
    assert "features" not in plain.out
    assert "frozen base computed" in first.out
    assert "frozen base read" in second.out
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    other = command("train", *words, "data.max_length=8", folder=tmp_path / "other")
    assert "frozen base computed" in other.out


def test_a_damaged_cache_is_computed_anew_and_the_oldest_goes(command: Command, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = (*SMALL, "finetune=head", "trainer.max_epochs=1", f"cache.folder={cache}")
    command("train", *words, folder=tmp_path / "first")
    path = next(cache.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    again = command("train", *words, folder=tmp_path / "again")
    assert "computed anew" in again.out
    command("train", *words, "data.max_length=8", "cache.max_bytes=1", folder=tmp_path / "third")
    assert path not in cache.glob("*.safetensors")
    assert len(list(cache.glob("*.safetensors"))) == 1


def test_frozen_parts_are_frozen(command: Command) -> None:
    run = command("train", *SMALL, "finetune=head", "cache=null")
    state = last(run.folder)
    head = [name for name in state["state_dict"] if name.startswith("net.head.")]
    assert sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"]) == len(head)
    again = command(
        "train", *SMALL, "finetune=head", "cache=null", "trainer.max_epochs=1", folder=run.folder.with_name("b")
    )
    for name, value in last(again.folder)["state_dict"].items():
        assert torch.equal(value, state["state_dict"][name]) == (name not in head), name


def test_gradual_unfreezing_resumes_bit_for_bit(command: Command, tmp_path: Path) -> None:
    words = (*SMALL, "finetune=gradual", "finetune.unfreeze={1: 1, 2: 2}", "trainer.max_epochs=5")
    whole = command("train", *words, folder=tmp_path / "whole")
    assert "learns from epoch 1" in whole.out
    broken = tmp_path / "broken"
    killed_after_epoch(broken, 1, *words)
    command("train", f"resume={broken}")
    assert json.loads((broken / "metrics.json").read_text()) == whole.json("metrics.json")
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(last(broken)[key], last(whole.folder)[key])


def test_lora_learns_and_leaves_the_base(command: Command) -> None:
    run = command("train", *SMALL, "finetune=lora", "trainer.max_epochs=2")
    names = [name for name in last(run.folder)["state_dict"] if "lora_" in name]
    assert len(names) == 2 * 2 * 2  # two matrices for query and value of each of two layers
    command("evaluate", f"run={run.folder}")
    assert run.json("evaluate.json") == run.json("metrics.json")
    command("export", f"run={run.folder}", "format=hf")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("finetune.freeze=[base.encodr.*]",), "'base.encodr.*' matches no parameter; near: base.encoder"),
        (("finetune=gradual",), "epoch 2 asks for 4 layers; this network has 2"),
        (("finetune=lora", "finetune.lora.targets=[queri]"), "no linear layer is called 'queri'"),
        (("model.pretrained=no/such-model",), "Three ways on"),
        (("model.pretrained=./nowhere",), "there is no folder"),
        (("data.packages=[asyncio,emial]",), "did you mean 'email'?"),
        (("model=mlp", "data=docstrings"), "model=mlp takes x of kind features or image"),
    ],
)
def test_wrong_input_is_told(command: Command, words: tuple[str, ...], fragment: str) -> None:
    run = command("train", *SMALL[:2] if "model=mlp" not in words else (), *TEXT, *words, ok=False)
    assert run.code == 1
    assert fragment in run.out
    assert "Traceback" not in run.out


def test_a_hub_name_comes_from_the_local_cache(tmp_path: Path) -> None:
    from transformers import AutoModel, BertConfig

    from research.engine.pretrained import PACKAGED, tokenizer

    snapshot = tmp_path / "hub/models--some--bert/snapshots/0123456789abcdef0123456789abcdef01234567"
    made = tokenizer(PACKAGED)
    config = BertConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    AutoModel.from_config(config).save_pretrained(snapshot)
    made.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    words = ("model=bert", "model.pretrained=some/bert", "finetune=head", "trainer.max_epochs=1", *TEXT)
    done = subprocess.run(
        [
            sys.executable,
            "src/train.py",
            *words,
            f"hydra.run.dir={tmp_path / 'run'}",
            f"cache.folder={tmp_path / 'cache'}",
        ],
        cwd=ROOT,
        env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/metrics.json").exists()
    for weights in snapshot.glob("*.safetensors"):  # and pickled weights are not opened
        weights.rename(snapshot / "pytorch_model.bin")
    shutil.rmtree(tmp_path / "run")
    refused = subprocess.run(
        [sys.executable, "src/train.py", *words, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "no weights as safetensors" in refused.stderr


@pytest.mark.parametrize(
    "words", [("model=mlp",), ("model=cnn",), ("data=diabetes",), SMALL], ids=["mlp", "cnn", "value", "bert"]
)
def test_exports_give_the_outputs_of_the_network(command: Command, words: tuple[str, ...]) -> None:
    run = command("train", *words, "trainer=debug", *(["trainer.max_epochs=1"] if words is SMALL else []))
    for name, file in (("state_dict", "model.safetensors"), ("onnx", "model.onnx")):
        said = command("export", f"run={run.folder}", f"format={name}")
        assert "outputs differ by at most" in said.out
        assert (run.folder / "export" / name / file).exists()


def test_the_hf_export_opens_with_transformers_alone(command: Command) -> None:
    run = command("train", *SMALL, "model.pooling=native", "trainer.max_epochs=1")
    command("export", f"run={run.folder}", "format=hf")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = run.folder / "export/hf"
    opened: Any = AutoModelForSequenceClassification.from_pretrained(place).eval()
    x = AutoTokenizer.from_pretrained(place)(["an event loop", "a mail header"], padding=True, return_tensors="pt")
    logits = opened(**x).logits
    assert logits.shape == (2, 2)
    assert list(opened.config.id2label.values()) == ["asyncio", "email"]
    best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(best["net.head.classifier.weight"], opened.classifier.weight)


def test_packaged_weights_are_checked() -> None:
    from research.engine import pretrained

    pretrained.locate.cache_clear()
    assert (pretrained.locate("packaged") / "config.json").is_file()
    pretrained.locate.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "SHA256", "0" * 64)
        with pytest.raises(ValueError, match="not the official ones"):
            pretrained.locate("packaged")
    pretrained.locate.cache_clear()

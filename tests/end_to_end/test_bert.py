"""Fine-tuning by real commands, on a small network of random weights but for what is about the packaged one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command, in_cache
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
    half = "trainer.precision=bf16-mixed"
    rounded = command("train", *words, half, folder=tmp_path / "half")
    assert "frozen base computed" in rounded.out  # in the run's own precision
    plain_half = command("train", *words, half, "cache=null", folder=tmp_path / "plain half")
    assert rounded.json("metrics.json") == pytest.approx(plain_half.json("metrics.json"), abs=5e-3)


def test_a_damaged_cache_is_computed_anew_and_the_oldest_goes(command: Command, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = (*SMALL, "finetune=head", "trainer.max_epochs=1", f"cache.folder={cache}")
    command("train", *words, folder=tmp_path / "first")
    path = next(cache.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    again = command("train", *words, folder=tmp_path / "again")
    assert "made anew" in again.out
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


@pytest.mark.parametrize("plan", ["gradual", "lora"])
def test_a_plan_resumes_bit_for_bit(command: Command, tmp_path: Path, plan: str) -> None:
    words = (*SMALL, f"finetune={plan}", "trainer.max_epochs=5")
    words += ("finetune.unfreeze=[0,1,2]",) if plan == "gradual" else ()
    whole = command("train", *words, folder=tmp_path / "whole")
    assert ("learns from epoch 1" in whole.out) == (plan == "gradual")
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


def test_a_run_of_a_pretrained_network_needs_nothing_outside_its_folder(command: Command, tmp_path: Path) -> None:
    first = command("train", *SMALL, "trainer.max_epochs=1", folder=tmp_path / "first")
    words = ("model=bert", f"model.pretrained={first.folder}", "finetune=head", "trainer.max_epochs=1", *TEXT)
    run = command("train", *words, f"cache.folder={tmp_path / 'cache'}", folder=tmp_path / "second")
    base = {name: value for name, value in last(run.folder)["state_dict"].items() if name.startswith("net.base.")}
    best = torch.load(first.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert base
    assert all(torch.equal(value, best[name]) for name, value in base.items())  # frozen, and what the first run learnt
    shutil.rmtree(first.folder)
    command("evaluate", f"run={run.folder}")
    assert run.json("evaluate.json") == run.json("metrics.json")
    command("train", f"resume={run.folder}", "trainer.max_epochs=2")
    command("export", f"run={run.folder}", "format=hf")


def test_a_network_is_pretrained_and_then_fine_tuned(command: Command) -> None:
    first_words = ("model=masked_bert", "data.packages=[asyncio,email]", "data.max_length=16", "trainer.max_epochs=2")
    pretrain = f"pretrain={json.dumps(first_words)}"
    words = ("model=bert", *TEXT, "finetune=head", "trainer.max_epochs=1", "cache=null")
    run = command("train", pretrain, *words)
    first = run.folder / "pretrain"
    assert json.loads((first / "run.json").read_text())["status"] == "finished"
    learnt = torch.load(first / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    key = "net.base.embeddings.word_embeddings.weight"
    assert torch.equal(learnt[key], last(run.folder)["state_dict"][key])
    before = (first / "run.json").read_text()
    command("train", f"resume={run.folder}", "trainer.max_epochs=2")
    assert (first / "run.json").read_text() == before  # it is not done again
    failed = command(
        "train", 'pretrain=["model=masked_bert","seed=x"]', *words, folder=run.folder.with_name("b"), ok=False
    )
    assert failed.code == 1
    assert "seed=x: input should be a valid integer" in failed.out
    assert "the run before this one failed with code 2" in failed.out


def test_two_runs_fill_the_cache_together(tmp_path: Path) -> None:
    words = [sys.executable, "src/train.py", *SMALL, "finetune=head", "trainer.max_epochs=1"]
    words.append(f"cache.folder={tmp_path / 'cache'}")
    both = [
        subprocess.Popen([*words, f"hydra.run.dir={tmp_path / name}"], cwd=ROOT, stderr=subprocess.DEVNULL)
        for name in "ab"
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    logs = [(tmp_path / name / "train.log").read_text() for name in "ab"]
    assert sorted("frozen base computed" in text for text in logs) == [False, True]
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in "ab"]
    assert metrics[0] == metrics[1]


def test_half_precision_learns(command: Command) -> None:
    run = command("train", *SMALL, "trainer.precision=bf16-mixed", "optimizer.lr=1e-3", "trainer.max_epochs=4")
    assert run.json("metrics.json")["val/acc"] > 0.7


def test_the_record_says_which_python_the_texts_are_from(command: Command) -> None:
    run = command("train", *SMALL, "trainer=debug")
    assert run.json("run.json")["data"]["source"].startswith(f"standard library of Python {sys.version.split()[0]}")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("finetune=gradual",), "epoch 2 asks for 4 layers; this network has 2"),
        (("model.pretrained=no/such-model",), "Three ways on"),
        (("data.packages=[asyncio,emial]",), "did you mean 'email'?"),
        (("model=boosting", "data=docstrings", 'pretrain=["seed=1"]'), "is for a model that takes pretrained weights"),
        (("task=masked",), "task=masked needs model=masked_bert; this run has a Bert"),
        (("model=mlp", "data=docstrings"), "model=mlp takes x of kind features or image"),
    ],
)
def test_wrong_input_is_told(command: Command, words: tuple[str, ...], fragment: str) -> None:
    run = command("train", *SMALL[:2] if "data=docstrings" not in words else (), *TEXT, *words, ok=False)
    assert run.code == 1
    assert fragment in run.out
    assert "Traceback" not in run.out


def test_a_hub_name_comes_from_the_local_cache(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig

    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    snapshot = in_cache(tmp_path, "some/bert", BertConfig(**sizes))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    words = ("model=bert", "model.pretrained=some/bert", "finetune=head", "trainer.max_epochs=1", *TEXT)
    run = command("train", *words, f"cache.folder={tmp_path / 'cache'}", fresh=True)
    assert (run.folder / "metrics.json").exists()
    for weights in snapshot.glob("*.safetensors"):  # and pickled weights are not opened
        weights.rename(snapshot / "pytorch_model.bin")
    refused = command("train", *words, folder=tmp_path / "refused", ok=False, fresh=True)
    assert refused.code == 1
    assert "no weights as safetensors" in refused.out


def test_exports_by_command_are_checked_and_open_elsewhere(command: Command) -> None:
    run = command("train", *SMALL, "model.pooling=native", "trainer=debug")
    for name, file in (("state_dict", "model.safetensors"), ("onnx", "model.onnx"), ("hf", "config.json")):
        said = command("export", f"run={run.folder}", f"format={name}")
        assert "outputs differ by at most" in said.out
        assert (run.folder / "export" / name / file).exists()
    from transformers import AutoModelForSequenceClassification

    opened: Any = AutoModelForSequenceClassification.from_pretrained(run.folder / "export/hf")
    assert list(opened.config.id2label.values()) == ["asyncio", "email"]
    best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(best["net.head.classifier.weight"], opened.classifier.weight)

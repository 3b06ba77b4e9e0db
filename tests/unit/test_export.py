"""Exports give the outputs of the network: in every format, of every network, for inputs of every size."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import quick
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from research.engine import export
from research.engine.build import Parts, build
from research.engine.errors import UserError
from research.engine.export import write

NETWORKS = {
    "mlp": ("model=mlp", "model.width=8"),
    "cnn": ("model=cnn", "model.width=4"),
    "value": ("data=diabetes", "model.width=8"),
    "boosting": ("model=boosting", "model.num_rounds=3"),
    "bert": ("model.pooling=mean",),
    "native": ("model.pooling=native",),
    "lora": ("finetune=lora",),
    "masked_bert": ("model=masked_bert",),
}
OF_TEXT = ("bert", "native", "lora", "masked_bert")


def trained(words: tuple[str, ...], texts: list[str], folder: Path) -> Parts:
    """After a few steps, so that nothing is as it was initialised."""
    if "model=masked_bert" in words:
        texts = ["model=masked_bert", *(word for word in texts if word != "model=bert")]
    cfg = quick(*texts, *words, "optimizer.lr=1e-2")
    parts = build(cfg, folder)
    parts.trainer.fit(parts.task, parts.data)
    return parts


def a_text() -> dict[str, Tensor]:
    """Five rows of nine tokens: of no size that an export has seen."""
    ids = torch.randint(1000, 2000, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 4, 2, 7, 9]).unsqueeze(1)
    return {"input_ids": ids, "attention_mask": mask.long()}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_as_safetensors_give_the_same_outputs(name: str, texts: list[str], tmp_path: Path) -> None:
    parts = trained(NETWORKS[name], texts if name in OF_TEXT else [], tmp_path)
    write(parts, "state_dict", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.slow  # the export takes seconds
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_same_outputs_for_other_sizes(name: str, texts: list[str], tmp_path: Path) -> None:
    import onnxruntime

    parts = trained(NETWORKS[name], texts if name in OF_TEXT else [], tmp_path)
    write(parts, "onnx", tmp_path / "out")
    x: Any = a_text() if name in OF_TEXT else parts.data.rows["test"][torch.arange(5)][0]
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    values = x if isinstance(x, dict) else {"x": x}
    for rows in (slice(0, 5), slice(0, 1)):
        given = {key: value[rows] for key, value in values.items()}
        found = session.run(None, {key: value.numpy() for key, value in given.items()})[0]
        with torch.inference_mode():
            expected = parts.task(given if isinstance(x, dict) else given["x"])
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("words", [(), ("finetune=lora",)], ids=["full", "lora"])
def test_a_native_one_opens_with_transformers_alone(words: tuple[str, ...], texts: list[str], tmp_path: Path) -> None:
    parts = trained(("model.pooling=native", *words), texts, tmp_path)
    write(parts, "hf", tmp_path / "out")
    place = shutil.move(tmp_path / "out", tmp_path / "moved")
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(place).eval()
    x = a_text()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(**x).logits, parts.task.net(x), atol=1e-5, rtol=1e-5)
    assert list(theirs.config.id2label.values()) == ["x", "y"]
    assert AutoTokenizer.from_pretrained(place)(["a text"])["input_ids"]


@pytest.mark.slow  # another process imports transformers
@pytest.mark.parametrize(
    "words", [("model.pooling=mean",), ("model.pooling=cls", "finetune=lora")], ids=["mean", "cls with adapters"]
)
def test_the_lines_beside_another_pooling_give_the_same_outputs(
    words: tuple[str, ...], texts: list[str], tmp_path: Path
) -> None:
    parts = trained(words, texts, tmp_path)
    write(parts, "hf", tmp_path / "out")
    place = Path(shutil.move(tmp_path / "out", tmp_path / "moved"))
    script = "import runpy; print(runpy.run_path('moved/open.py')['logits'].tolist())"
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    x = AutoTokenizer.from_pretrained(place)(["a text"], return_tensors="pt")
    with torch.inference_mode():
        expected = parts.task({key: x[key] for key in ("input_ids", "attention_mask")})
    torch.testing.assert_close(torch.tensor(eval(told.stdout)), expected, atol=1e-5, rtol=1e-5)


def test_formats_that_a_network_does_not_have_are_told(tmp_path: Path) -> None:
    parts = build(quick("model.width=8"), tmp_path)
    with pytest.raises(UserError, match="format=hf is for model=bert; this run has a Mlp"):
        write(parts, "hf", tmp_path / "out")


# the check

OFF = {
    "rounding": (lambda y: y * (1 + 1e-5), True),
    "too much": (lambda y: y * (1 + 1e-2), False),
    "one row": (lambda y: y.index_fill(0, torch.tensor([0]), 0.0), False),
    "nan": (lambda y: y * float("nan"), False),
    "infinite": (lambda y: y + float("inf"), False),
}


@pytest.mark.parametrize("name", OFF)
def test_outputs_are_compared_at_the_scale_of_the_target(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = build(quick("data=diabetes", "model.width=8"), tmp_path)
    change, right = OFF[name]
    monkeypatch.setitem(export.FORMATS, "state_dict", lambda parts, example, into: lambda x: change(parts.task(x)))
    for mean, std in ((3e5, 1e5), (3e-4, 1e-4)):  # prices, and shares of a part
        parts.task.scale_y.mean.fill_(mean)
        parts.task.scale_y.std.fill_(std)
        if right:
            write(parts, "state_dict", tmp_path / "out")
        else:
            with pytest.raises(UserError, match="gives other outputs than the network"):
                write(parts, "state_dict", tmp_path / "out")

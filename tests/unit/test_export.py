"""Exports give the outputs of the network: in every format, of every network, for inputs of every size."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import quick
from making import of_table, photos, table
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from research.engine import export
from research.engine import predict as job
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
    config = json.loads((place / "config.json").read_text())
    assert (config["id2label"], config["label2id"]) == ({"0": "x", "1": "y"}, {"x": 0, "y": 1})
    x = AutoTokenizer.from_pretrained(place)(["a text"], return_tensors="pt")
    with torch.inference_mode():
        expected = parts.task({key: x[key] for key in ("input_ids", "attention_mask")})
    torch.testing.assert_close(torch.tensor(eval(told.stdout)), expected, atol=1e-5, rtol=1e-5)


def test_formats_that_a_network_does_not_have_are_told(tmp_path: Path) -> None:
    parts = build(quick("model.width=8"), tmp_path)
    with pytest.raises(UserError, match="format=hf is for model=bert and model=vision; this run has a Mlp"):
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


# what stands beside an ONNX file

HIDDEN = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'research', 'lightning'])); "


def example(folder: Path, *words: str) -> list[Any]:
    """What `example.py` says, in a process that has neither torch nor this project."""
    script = HIDDEN + "import runpy; runpy.run_path('moved/example.py', run_name='__main__')"
    place = shutil.move(folder / "out", folder / "moved")
    told = subprocess.run([sys.executable, "-c", script, *words], cwd=folder, capture_output=True, text=True)
    shutil.move(place, folder / "out")
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def exported(words: str, folder: Path) -> Parts:
    parts = trained(tuple(words.split()), [], folder)
    write(parts, "onnx", folder / "out")
    return parts


def predicted(parts: Parts, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    parts.data.fitted = parts.data.spec  # as of a run that is opened
    monkeypatch.setattr("research.engine.opened.opened", lambda *_, **__: parts)
    job.predict(OmegaConf.create({"input": str(given), "output": str(out)}), Path())
    return [json.loads(line) for line in out.read_text().splitlines()]


def assert_same_classes(found: list[Any], expected: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [row["probability"][name] for name in classes] == pytest.approx(
            [other[f"probability_{name}"] for name in classes], abs=1e-4
        )


CELLS: Any = {
    "colour": lambda i: ("red", "", "blue", "lime", "3.0")[i % 5],
    "size": lambda i: "NA" if i % 7 == 3 else (i * 37) % 1009 / 2,
    "open": lambda i: ("True", "false", "yes", "N")[i % 4],
    "day": lambda i: (f"20{i % 20 + 10}-03-0{i % 9 + 1}", f"2011-0{i % 9 + 1}-11T12:30:00+02:00")[i % 2],
    "price": lambda i: f"({i * 53 % 9973:,}.50) €",
    "weight": lambda i: f"{i * 31 % 997},5 kg",
    "at": lambda i: f"{i % 28 + 1:02}.{i % 12 + 1:02}.2021 {i % 24:02}:30",
    "clock": lambda i: 1.76e9 + i * 7 % 600,
}


@pytest.mark.slow  # the export takes seconds
@pytest.mark.parametrize("target", ["class", "value"])
def test_the_example_reads_a_table_as_predict_does(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "value": lambda i: f"${100_000 + i * i * 37 % 1009:,}",
        "class": lambda i: ("yes", "no", "perhaps")[i * i % 11 % 3],
    }
    table(of_table(**CELLS, good=good[target]), 100)(tmp_path)
    parts = exported(f"data=table data.path={tmp_path}/t.csv data.target=good cache=null model.width=8", tmp_path)
    assert {column.kind for column in parts.data.spec.columns} == {"numeric", "categorical", "boolean", "date"}
    about = json.loads((tmp_path / "out/model.json").read_text())
    assert about["inputs"] == [{"name": "x", "type": "float32", "shape": ["batch", len(parts.data.spec.columns)]}]
    assert about["columns"] == [column.name for column in parts.data.spec.columns]
    assert about["spec"] == json.loads(json.dumps(parts.data.spec.plain()))
    assert about["units"]["date"].startswith("days since 1970-01-01, UTC")
    table(of_table(**CELLS), 40, "new.csv", first=700)(tmp_path)
    found = example(tmp_path, "new.csv")
    expected = predicted(parts, tmp_path / "new.csv", tmp_path / "p.jsonl", monkeypatch)
    if target == "class":
        assert about["classes"] == ["no", "perhaps", "yes"]
        assert_same_classes(found, expected, parts.data.spec.classes)
    else:
        assert about["units"]["prediction"].startswith("those of good in the training data, less 100")
        assert [row["prediction"][0] for row in found] == pytest.approx(
            [row["prediction"] for row in expected], rel=1e-6
        )
    assert len({json.dumps(row) for row in found}) > 20


@pytest.mark.slow
def test_the_example_reads_texts_as_predict_does(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained((), texts, tmp_path)
    write(parts, "onnx", tmp_path / "out")
    about = json.loads((tmp_path / "out/model.json").read_text())
    assert about["tokenizer"] == {"files": ["tokenizer.json", "tokenizer_config.json"], "max_length": 16, "pad_id": 0}
    assert all((tmp_path / "out" / name).is_file() for name in about["tokenizer"]["files"])
    assert about["inputs"][0] == {"name": "input_ids", "type": "int64", "shape": ["batch", "length"]}
    given = ["a good text", "bad " * 40, "  spaces  ", "Überall — 字"]
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in given))
    expected = predicted(parts, tmp_path / "new.jsonl", tmp_path / "p.jsonl", monkeypatch)
    assert_same_classes(example(tmp_path, *given), expected, parts.data.spec.classes)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_the_example_reads_pictures_as_predict_does(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(num=20)(tmp_path)
    words = f"data=images data.path={tmp_path}/photos data.size=8 data.num_workers=0 data.channels={channels}"
    parts = exported(f"{words} model=cnn model.width=4 cache=null", tmp_path)
    photos("new", 5, ("any",), seed=5)(tmp_path)
    expected = predicted(parts, tmp_path / "new", tmp_path / "p.jsonl", monkeypatch)
    found = example(tmp_path, *(f"new/{row['file']}" for row in expected))
    assert_same_classes(found, expected, parts.data.spec.classes)


@pytest.mark.slow
def test_the_example_reads_arrays_of_numbers(tmp_path: Path) -> None:
    parts = exported("data=diabetes model.width=8", tmp_path)
    x = parts.data.rows["test"][torch.arange(5)][0]
    assert isinstance(x, Tensor)
    np.save(tmp_path / "x.npy", x.numpy())
    with torch.inference_mode():
        expected = parts.task(x).tolist()
    assert [row["prediction"] for row in example(tmp_path, "x.npy")] == pytest.approx(np.array(expected), rel=1e-4)

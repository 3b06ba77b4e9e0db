"""Temperature and threshold are fitted on val, kept with the run, and used by predict and the exported example."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import quick, sealed
from making import of_table, table
from omegaconf import DictConfig
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.classification import MulticlassCalibrationError

from research.engine.build import build
from research.engine.calibration import METRICS, best_threshold, calibrated
from research.engine.errors import UserError
from research.engine.evaluate import evaluate
from research.engine.export import export
from research.engine.predict import predict
from research.engine.record import write_config, write_json

SKLEARN: Any = {
    "f1": f1_score,
    "acc": accuracy_score,
    "balanced_acc": balanced_accuracy_score,
    "mcc": matthews_corrcoef,
}
Made = Callable[..., DictConfig]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Leaves a run that is too sure of itself in `run`; gives its config, for a command with further settings."""
    monkeypatch.chdir(tmp_path)

    def noisy(i: int) -> str:
        return "yes" if (i * 37 % 1009 < 400) != (i % 5 == 0) else "no"

    def make(target: Any = noisy, **settings: Any) -> DictConfig:
        if not (tmp_path / "t.csv").exists():
            table(of_table(good=target), 300)(tmp_path)
        words = ("data=table", "data.path=t.csv", "data.target=good", "model.width=8", "optimizer.lr=1e-2")
        cfg, run = quick(*words, "cache=null", epochs=3, steps=5), tmp_path / "run"
        cfg.checkpoint = "best"
        if not run.exists():
            run.mkdir()
            parts = build(cfg, run)
            parts.trainer.fit(parts.task, parts.data)
            if parts.data.spec.target == "class":
                parts.task.net.head.weight.data *= 4
            write_config(run, cfg)
            write_json(
                run / "run.json", {"data": {"fingerprint": parts.data.fingerprint, "spec": parts.data.spec.plain()}}
            )
            sealed(run / "checkpoints/best.ckpt", {"state_dict": parts.task.state_dict()})
        for key, value in settings.items():
            cfg[key] = value
        return cfg

    return make


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run/calibration.json").read_text())["best"]


def val_rows(cfg: DictConfig, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C) logits and classes (N,) of val, by the network itself."""
    content = torch.load(folder / "run/checkpoints/best.ckpt", weights_only=True)
    parts = build(cfg.copy(), folder / "run", state=content)
    rows = parts.data.rows["val"]
    x, y = rows[torch.arange(len(rows))]
    with torch.no_grad():
        return parts.task.eval()(x), y


def predictions(cfg: DictConfig, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    for key, value in {"input": "t.csv", "output": "out.jsonl", **settings}.items():
        cfg[key] = value
    predict(cfg, folder / "run")
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_the_temperature_is_the_one_of_the_least_loss_on_val(made: Made, tmp_path: Path) -> None:
    cfg = made(calibrate="temperature")
    evaluate(cfg.copy(), tmp_path / "run")
    logits, y = val_rows(cfg, tmp_path)
    loss: Any = lambda t: float(torch.nn.functional.cross_entropy(logits.double() / t, y))  # noqa: E731
    best: Any = minimize_scalar(loss, bounds=(0.05, 100), method="bounded")
    assert stored(tmp_path)["temperature"] == pytest.approx(best.x, rel=1e-3)
    assert abs(best.x - 1) > 0.1, "or nothing was to be fitted"
    scores = json.loads((tmp_path / "run/evaluate.json").read_text())
    for key, t in (("val/ece", 1.0), ("val/ece_calibrated", stored(tmp_path)["temperature"])):
        metric = MulticlassCalibrationError(num_classes=2, n_bins=15)
        assert scores[key] == pytest.approx(float(metric((logits / t).softmax(1), y)), abs=1e-3)
    assert scores["val/ece_calibrated"] < scores["val/ece"]
    assert {"test/ece", "test/ece_calibrated", "test/acc"} <= set(scores)


def test_predictions_of_a_calibrated_run_are_calibrated(made: Made, tmp_path: Path) -> None:
    before = predictions(made(), tmp_path)
    evaluate(made(calibrate="temperature"), tmp_path / "run")
    after = predictions(made(), tmp_path)
    p, q = (np.array([row["probability_yes"] for row in rows]) for rows in (before, after))
    logits = np.log(p / (1 - p)) / stored(tmp_path)["temperature"]
    assert q == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-4)
    assert [row["prediction"] for row in after] == [row["prediction"] for row in before]
    evaluate(made(calibrate="none"), tmp_path / "run")
    assert predictions(made(), tmp_path) == before


@pytest.mark.parametrize("metric", METRICS)
def test_no_threshold_is_better_on_val(metric: str, made: Made, tmp_path: Path) -> None:
    evaluate(made(threshold=metric), tmp_path / "run")
    logits, y = val_rows(made(), tmp_path)
    p = logits.softmax(1)[:, 1].numpy()
    values = [SKLEARN[metric](y, p >= t) for t in np.linspace(0, 1, 2001)]
    threshold = stored(tmp_path)["thresholds"][metric]
    assert SKLEARN[metric](y, p >= threshold) >= max(values) - 1e-9
    scores = json.loads((tmp_path / "run/evaluate.json").read_text())
    assert scores[f"val/{metric}_at_threshold"] == pytest.approx(SKLEARN[metric](y, p >= threshold))
    assert f"test/{metric}_at_threshold" in scores
    found = predictions(made(), tmp_path, threshold=metric)
    assert [row["prediction"] for row in found] == [
        "yes" if row["probability_yes"] >= threshold else "no" for row in found
    ]


def test_a_threshold_of_equal_worth_is_the_one_nearest_to_a_half() -> None:
    p = torch.tensor([0.1, 0.2, 0.8, 0.9]).double()
    two = torch.stack([1 - p, p], 1)
    assert best_threshold(two, torch.tensor([0, 0, 1, 1]), "f1") == pytest.approx(0.5)
    assert best_threshold(two, torch.tensor([1, 1, 0, 0]), "acc") in (pytest.approx(0.05), pytest.approx(0.95))
    with pytest.raises(UserError, match="val has rows of one class alone"):
        best_threshold(two, torch.tensor([1, 1, 1, 1]), "f1")


def test_a_number_is_a_threshold(made: Made, tmp_path: Path) -> None:
    shares = sorted(row["probability_yes"] for row in predictions(made(), tmp_path, threshold=0.5))
    high = round(shares[-len(shares) // 4], 4)  # that only some rows reach
    found = predictions(made(), tmp_path, threshold=high)
    assert {row["prediction"] for row in found} == {"yes", "no"}
    assert all((row["prediction"] == "yes") == (row["probability_yes"] >= high) for row in found)


def test_a_threshold_is_chosen_anew_with_the_temperature(made: Made, tmp_path: Path) -> None:
    evaluate(made(threshold="f1"), tmp_path / "run")
    before = predictions(made(), tmp_path, threshold="f1")
    evaluate(made(calibrate="temperature"), tmp_path / "run")
    after = predictions(made(), tmp_path, threshold="f1")
    assert [row["prediction"] for row in after] == [row["prediction"] for row in before]
    assert stored(tmp_path)["temperature"] != 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calibrate": "temprature"}, "no calibrate 'temprature'; did you mean 'temperature'"),
        ({"threshold": "f2"}, "no metric for threshold 'f2'; did you mean 'f1'"),
        ({"threshold": 0.3}, r"no metric for threshold '0\.3'"),
    ],
)
def test_words_that_evaluate_does_not_know(settings: Any, said: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(made(**settings), tmp_path / "run")
    assert not (tmp_path / "run/calibration.json").exists()
    assert not (tmp_path / "run/evaluate.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("f1", r"threshold=f1: none was chosen for this checkpoint yet; .*src/evaluate\.py run=.*run threshold=f1"),
        (1.5, r"threshold=1\.5: a probability from 0 to 1 is needed"),
        ("f2", "no threshold 'f2'; did you mean 'f1'"),
        (True, "no threshold 'True'"),
    ],
)
def test_thresholds_that_predict_does_not_have(given: Any, said: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        predictions(made(), tmp_path, threshold=given)
    assert not Path("out.jsonl").exists()


def test_values_and_several_classes_are_told(made: Made, tmp_path: Path) -> None:
    made(target=lambda i: 1000 + i * i * 37 % 1009)
    for settings, key in (
        ({"calibrate": "temperature"}, "calibrate=temperature"),
        ({"threshold": "f1"}, "threshold=f1"),
    ):
        with pytest.raises(UserError, match=f"{key} is for a run that predicts classes; this one predicts values"):
            evaluate(made(**settings), tmp_path / "run")
    with pytest.raises(UserError, match=r"threshold=0\.3 is for a run that predicts classes"):
        predictions(made(), tmp_path, threshold=0.3)
    shutil.rmtree(tmp_path / "run")
    table(of_table(good=lambda i: "abc"[i * i % 11 % 3]), 300)(tmp_path)
    with pytest.raises(UserError, match=r"threshold=f1 is for a run of two classes, .* this one has 3"):
        evaluate(made(threshold="f1"), tmp_path / "run")
    with pytest.raises(UserError, match="is for a run of two classes"):
        predictions(made(), tmp_path, threshold=0.3)
    assert not (tmp_path / "run/calibration.json").exists()
    evaluate(made(calibrate="temperature"), tmp_path / "run")  # which any number of classes may have


def test_other_rows_are_not_fitted_on(made: Made, tmp_path: Path) -> None:
    table(of_table(), 60, "new.csv", first=500)(tmp_path)
    cfg = made(calibrate="temperature")
    cfg.data.path = "new.csv"
    with pytest.raises(UserError, match="calibrate=temperature is fitted on the run's own val rows"):
        evaluate(cfg, tmp_path / "run")


def test_what_was_fitted_to_other_weights_is_not_used(made: Made, tmp_path: Path) -> None:
    evaluate(made(calibrate="temperature", threshold="f1"), tmp_path / "run")
    path = tmp_path / "run/checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["net.head.bias"] += 1
    sealed(path, content)
    with pytest.raises(UserError, match="was fitted to other weights than checkpoint=best has now; fit it again"):
        predictions(made(), tmp_path)
    evaluate(made(threshold="acc"), tmp_path / "run")
    assert stored(tmp_path)["temperature"] == 1
    assert list(stored(tmp_path)["thresholds"]) == ["acc"]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"best": {"odd": 1}}', '{"best": {"temperature": -1}}', '{"best": {"temperature": "x"}}']
)
def test_a_file_that_is_none_is_told(content: str, made: Made, tmp_path: Path) -> None:
    cfg = made()
    (tmp_path / "run/calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json' cannot be read: .* Remove it"):
        predictions(cfg, tmp_path)


def test_a_network_that_is_never_wrong_has_a_finite_temperature(tmp_path: Path) -> None:
    from research.engine.calibration import _temperature

    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
    assert 0 < _temperature(p, torch.tensor([0, 1])) < 0.1
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    assert np.isfinite(_temperature(sure, torch.tensor([1, 1])))
    assert calibrated(sure, 5.0).isfinite().all()


@pytest.mark.slow  # the export takes seconds
def test_the_exported_example_is_calibrated_as_predict_is(made: Made, tmp_path: Path) -> None:
    evaluate(made(calibrate="temperature", threshold="f1"), tmp_path / "run")
    export(made(format="onnx"), tmp_path / "run")
    about = json.loads((tmp_path / "run/export/onnx/model.json").read_text())
    assert about["temperature"] == stored(tmp_path)["temperature"]
    assert about["thresholds"] == stored(tmp_path)["thresholds"]
    script = [sys.executable, "run/export/onnx/example.py", "t.csv"]
    told = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = [json.loads(line)["probability"]["yes"] for line in told.splitlines()]
    expected = [row["probability_yes"] for row in predictions(made(), tmp_path)]
    assert found == pytest.approx(expected, abs=1e-4)

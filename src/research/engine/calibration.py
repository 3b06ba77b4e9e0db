"""What is fitted on val once a network has learnt: a temperature for its probabilities, a threshold for two classes.

Both are kept in the run's folder, `calibration.json`, for each checkpoint, with the hash of the weights they are of.
N rows, C classes.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.engine.command import shell, word
from research.engine.durable import seal
from research.engine.errors import UserError, unknown
from research.engine.record import write_json

log = logging.getLogger(__name__)

FILE = "calibration.json"
WAYS = ("temperature", "none")
BINS = 15  # of the calibration error, as in conf/metrics/classification.yaml
TINY = 1e-38  # a probability is no smaller, so that its logarithm is finite
Counts = Callable[[Any, Any, Any, Any], Any]  # of true and false positives, false and true negatives
METRICS: dict[str, Counts] = {
    "f1": lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    "acc": lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    "balanced_acc": lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2,
    "mcc": lambda tp, fp, fn, tn: (
        (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).clamp(min=1).sqrt()
    ),
}


@dataclass(frozen=True)
class Calibration:
    """Of one checkpoint.

    Attributes:
        temperature: what logits are divided by.
        thresholds: by the metric they are best for: from this probability on a row is of the second class.
        weights: the hash of the checkpoint.
    """

    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=dict)
    weights: str = ""


def read_calibration(folder: Path, checkpoint: str) -> Calibration:
    """The calibration of a checkpoint of a run; one that changes nothing where there is none.

    Raises:
        UserError: it is of other weights, or cannot be read.
    """
    found = _stored(folder).get(checkpoint)
    if found is None:
        return Calibration()
    if found.weights != _hash(folder, checkpoint):
        again = shell("python", "src/evaluate.py", word("run", folder), "calibrate=temperature")
        raise UserError(
            f"'{folder / FILE}' was fitted to other weights than checkpoint={checkpoint} has now; fit it again, "
            f"{again}, or remove the file."
        )
    return found


def _stored(folder: Path) -> dict[str, Calibration]:
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = {name: Calibration(**values) for name, values in json.loads(path.read_text("utf-8")).items()}
        for each in found.values():
            values = [each.temperature, *(1 + threshold for threshold in each.thresholds.values())]
            if not all(0 < float(value) < float("inf") for value in values):
                raise ValueError("its numbers are out of range")
        return found
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}. Remove it.") from error


def _hash(folder: Path, checkpoint: str) -> str:
    from research.engine.checkpoint import path_of

    return seal(path_of(folder, checkpoint))


def check_asked(calibrate: str | None, threshold: str | None) -> None:
    """Raises a UserError for words that `evaluate` does not know."""
    if calibrate is not None and calibrate not in WAYS:
        raise UserError(unknown("calibrate", str(calibrate), WAYS))
    if threshold is not None and threshold not in METRICS:
        raise UserError(unknown("metric for threshold", str(threshold), METRICS))


def fit_calibration(parts: Any, folder: Path, checkpoint: str, way: str | None, metric: str | None) -> dict[str, float]:
    """Fit on val what is asked for, keep it in the run's folder, and give its metrics, `val/...` and `test/...`.

    Args:
        way: one of WAYS, None to leave the temperature as it is.
        metric: the threshold is best for it; those chosen before are chosen anew.

    Raises:
        UserError: a run that has no classes, or not two for a threshold, or rows that are not its own.
    """
    spec = parts.task.spec
    what = f"calibrate={way}" if way else f"threshold={metric}"
    _need_classes(what, spec)
    if metric:
        _need_two(f"threshold={metric}", spec)
    if "val" not in parts.data.rows:
        raise UserError(f"{what} is fitted on the run's own val rows; leave out what names other files.")
    stored, weights = _stored(folder), _hash(folder, checkpoint)
    before = stored.get(checkpoint, Calibration())
    same = before.weights == weights
    rows = {split: _answers(parts, split) for split in ("val", "test") if split in parts.data.rows}
    temperature = before.temperature if same else 1.0
    if way:
        temperature = _temperature(*rows["val"]) if way == "temperature" else 1.0
    metrics = _told_temperature(rows, temperature) if way == "temperature" else {}
    rows = {split: (calibrated(p, temperature), y) for split, (p, y) in rows.items()}
    names = dict.fromkeys([*(before.thresholds if same else ()), *([metric] if metric else ())])
    thresholds = {name: best_threshold(*rows["val"], name) for name in names}
    if metric:
        metrics |= _told_threshold(rows, thresholds[metric], metric, spec.classes[1])
    log.info("kept       %s: temperature %.4f", folder / FILE, temperature)
    made = Calibration(temperature, thresholds, weights)
    write_json(folder / FILE, {name: asdict(each) for name, each in {**stored, checkpoint: made}.items()})
    return metrics


def _told_temperature(rows: dict[str, tuple[Any, Any]], temperature: float) -> dict[str, float]:
    """The calibration error of each split before and after, and the loss after."""
    metrics: dict[str, float] = {}
    for split, (p, y) in rows.items():
        after = calibrated(p, temperature)
        found = {"ece": _ece(p, y), "ece_calibrated": _ece(after, y), "loss_calibrated": _nll(after, y)}
        log.info("calibrated %s: ECE %.4f -> %.4f", split, found["ece"], found["ece_calibrated"])
        metrics |= {f"{split}/{name}": value for name, value in found.items()}
    return metrics


def _told_threshold(rows: dict[str, tuple[Any, Any]], threshold: float, metric: str, second: str) -> dict[str, float]:
    """The metric of each split at a threshold of the second class."""
    log.info("threshold  %s from a probability of %.4f on: best %s on val", second, threshold, metric)
    return {
        f"{split}/{metric}_at_threshold": METRICS[metric](*_counts(p[:, 1] >= threshold, y)).nan_to_num(0.0).item()
        for split, (p, y) in rows.items()
    }


def decision(given: Any, calibration: Calibration, spec: Any, folder: Path) -> float | None:
    """The threshold that `predict` is asked for: a number, or the one that `evaluate` has chosen for a metric.

    Raises:
        UserError: the run has not two classes, or no such threshold.
    """
    if given is None:
        return None
    _need_two(f"threshold={given}", spec)
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0 <= given <= 1:
            raise UserError(f"threshold={given}: a probability from 0 to 1 is needed, or {', '.join(METRICS)}.")
        return float(given)
    if given not in METRICS:
        raise UserError(f"{unknown('threshold', str(given), METRICS)}, or a probability from 0 to 1.")
    if given not in calibration.thresholds:
        choose = shell("python", "src/evaluate.py", word("run", folder), f"threshold={given}")
        raise UserError(f"threshold={given}: none was chosen for this checkpoint yet; choose it on val: {choose}")
    return calibration.thresholds[given]


def _need_classes(what: str, spec: Any) -> None:
    if not spec.classes:
        kind = "values" if spec.target == "value" else "hidden words"
        raise UserError(f"{what} is for a run that predicts classes; this one predicts {kind}.")


def _need_two(what: str, spec: Any) -> None:
    _need_classes(what, spec)
    if len(spec.classes) != 2:
        raise UserError(
            f"{what} is for a run of two classes, the second from that probability on; this one has "
            f"{len(spec.classes)}, of which the likeliest is taken."
        )


def calibrated(p: Any, temperature: float) -> Any:
    """(N, C) probabilities, as of logits divided by a temperature."""
    return p if temperature == 1 else (p.clamp(min=TINY).log() / temperature).softmax(1)


def _answers(parts: Any, split: str) -> tuple[Any, Any]:
    """(N, C) probabilities of the rows of a split in double precision, and their classes (N,)."""
    import torch
    from lightning.fabric.utilities import move_data_to_device

    plugin, device = parts.trainer.precision_plugin, parts.trainer.strategy.root_device
    task = parts.task.to(device).eval()
    found = []
    with torch.inference_mode(), plugin.forward_context():
        for batch in getattr(parts.data, f"{split}_dataloader")():
            raw, y = task.answer(move_data_to_device(plugin.convert_input(batch), device), 0)
            found.append((task.predicted(raw).double().cpu(), y.cpu()))
    p, y = zip(*found, strict=True)
    return torch.cat(p).clone(), torch.cat(y).clone()


def _temperature(p: Any, y: Any) -> float:
    """Minimises the negative log likelihood by one number (Guo et al., 2017)."""
    import torch

    logits = p.clamp(min=TINY).log()
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)  # its logarithm, which may be any number
    optimizer = torch.optim.LBFGS([scale], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        bounded = scale.clamp(-5, 5)  # where val has no mistake, colder is always better
        loss = torch.nn.functional.cross_entropy(logits / bounded.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(scale.detach().clamp(-5, 5).exp())


def _nll(p: Any, y: Any) -> float:
    return float(-p[range(len(y)), y].clamp(min=TINY).log().mean())


def _ece(p: Any, y: Any) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(multiclass_calibration_error(p.float(), y, num_classes=p.shape[1], n_bins=BINS))


def best_threshold(p: Any, y: Any, metric: str) -> float:
    """The threshold at which a metric is largest; it lies halfway between probabilities, of equal ones nearest to 0.5.

    Args:
        p: (N, 2) probabilities.
        y: (N,) classes.

    Raises:
        UserError: all rows are of one class.
    """
    import torch

    if len(y.unique()) < 2:
        raise UserError(f"threshold={metric}: val has rows of one class alone; a threshold needs both.")
    values = torch.cat([torch.zeros(1), p[:, 1].unique().cpu(), torch.ones(1)]).double().unique()
    middles = (values[1:] + values[:-1]) / 2  # (M,)
    positive = torch.searchsorted(p[y == 1, 1].sort().values, middles)  # of the second class, below each
    negative = torch.searchsorted(p[y == 0, 1].sort().values, middles)
    fn, tn = positive.double(), negative.double()
    scores = METRICS[metric]((y == 1).sum() - fn, (y == 0).sum() - tn, fn, tn).nan_to_num(0.0)
    best = middles[scores >= scores.max() - 1e-12]
    return float(best[(best - 0.5).abs().argmin()])


def _counts(positive: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    true = y == 1
    pairs = ((positive, true), (positive, ~true), (~positive, true), (~positive, ~true))
    tp, fp, fn, tn = ((a & b).sum().double() for a, b in pairs)
    return tp, fp, fn, tn

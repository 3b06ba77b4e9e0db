"""What stands beside `model.onnx`: a JSON that says what goes in and what comes out, and an example that runs it."""

import json
import shutil
from pathlib import Path
from typing import Any

from research.data.spec import Spec
from research.engine.calibration import Calibration
from research.engine.record import write_json

EXAMPLES = Path(__file__).with_name("examples")  # one script a kind of x; each needs onnxruntime and no torch
UNITS = {
    "numeric": "as in the file, without its unit and the marks between thousands, less the column's offset",
    "boolean": "1 for true, yes, t and y, else 0",
    "date": "days since 1970-01-01, UTC, less the column's offset; or its part, a sine or cosine",
    "categorical": "the place in `categories`, from 0; -1 for a text that is not among them",
}
PICTURE = "scaled to cover the square (bilinear), cut at its middle, divided by 255; channels first"


def write_companions(parts: Any, inputs: dict[str, Any], output: Any, into: Path) -> None:
    """Write `model.json` and, where rows get a prediction each, `example.py` beside `model.onnx`.

    Args:
        parts: of the run.
        inputs: of the network, by name, as NumPy arrays.
        output: of the network, an array.
        into: the folder of the export.
    """
    spec = parts.task.spec
    about = {
        "inputs": [_array(name, value, spec) for name, value in inputs.items()],
        "output": {**_array("prediction", output, spec), "is": "logits" if spec.target == "class" else "values"},
        "classes": list(spec.classes),
        "temperature": 1.0,
        "thresholds": {},
        "units": _units(parts),
        **_of_kind(parts, into),
        "spec": spec.plain(),
    }
    write_json(into / "model.json", about)
    if spec.num_outputs:  # a network that predicts hidden words has none
        name = "table" if spec.columns else spec.kind
        shutil.copyfile(EXAMPLES / f"{name}.py", into / "example.py")


def add_calibration(into: Path, calibration: Calibration) -> None:
    """Put into `model.json` the temperature that logits are divided by, and the thresholds of the second class."""
    about = json.loads((into / "model.json").read_text("utf-8"))
    told = {"temperature": calibration.temperature, "thresholds": calibration.thresholds}
    write_json(into / "model.json", about | told)


def _array(name: str, value: Any, spec: Spec) -> dict[str, Any]:
    """Name, type and shape; the sizes that are free have names."""
    free = ["batch", "length"] if spec.kind == "text" and (value.ndim == 3 or name != "prediction") else ["batch"]
    return {"name": name, "type": str(value.dtype), "shape": [*free, *value.shape[len(free) :]]}


def _units(parts: Any) -> dict[str, str]:
    """What a number stands for: of each kind of column, and of a target that is a value."""
    spec = parts.task.spec
    kinds = dict.fromkeys(column.kind for column in spec.columns)
    found = {kind: UNITS[kind] for kind in kinds}
    if spec.target == "value":
        shift = f", less {spec.label.offset:.17g}" if spec.label and spec.label.offset else ""
        found["prediction"] = (
            f"those of {getattr(parts.data, 'target', None) or 'the target'} in the training data{shift}"
        )
    return found


def _of_kind(parts: Any, into: Path) -> dict[str, Any]:
    """What only tables, texts or pictures have; the files of a tokenizer are written."""
    data, spec = parts.data, parts.task.spec
    if spec.columns:
        return {"columns": [column.name for column in spec.columns], "missing": data.missing.to_pylist()}
    if spec.kind == "image":
        return {"picture": PICTURE}
    if spec.kind != "text":
        return {}
    from research.engine.pretrained import PACKAGED, tokenizer

    made = tokenizer(data.tokenizer or PACKAGED)
    files = [Path(name).name for name in made.save_pretrained(into) if Path(name).is_file()]
    return {"tokenizer": {"files": sorted(files), "max_length": spec.shape[1], "pad_id": made.pad_token_id or 0}}

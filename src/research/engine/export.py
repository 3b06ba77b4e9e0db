"""The job behind `python src/export.py`: the best network of a run for others, checked on the spot."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.engine.calibration import read_calibration
from research.engine.companion import add_calibration, write_companions
from research.engine.errors import UserError, unknown
from research.engine.record import write_json

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of outputs: other runtimes add in another order
Reader = Callable[[Any], Any]  # x -> predictions, by the exported file

OPEN_BASE = """\
from pathlib import Path
from safetensors.torch import load_file
from torch.nn.functional import layer_norm
from transformers import AutoModel, AutoTokenizer

folder = Path(__file__).parent
base, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "head.safetensors")
x = AutoTokenizer.from_pretrained(folder)(["a text"], return_tensors="pt")
h = base(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state
h = {pooled}
h = layer_norm(h, h.shape[-1:], head["0.weight"], head["0.bias"])
logits = h @ head["2.weight"].T + head["2.bias"]
"""
OPEN_IMAGE = """\
import json, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import layer_norm
from transformers import AutoModel

folder = Path(__file__).parent
base, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "head.safetensors")
said = json.loads((folder / "preprocessor_config.json").read_text())
picture = Image.open(sys.argv[1]).convert("RGB").resize((said["size"]["width"], said["size"]["height"]))
x = (np.asarray(picture) / 255 - said["image_mean"]) / said["image_std"]  # (H, W, 3)
h = base(pixel_values=torch.tensor(x[..., :{channels}]).permute(2, 0, 1)[None].float()).last_hidden_state
h = {pooled}
h = layer_norm(h, h.shape[-1:], head["0.weight"], head["0.bias"])
logits = h @ head["2.weight"].T + head["2.bias"]
"""
POOLED_IMAGE = {"mean": "h.flatten(2).mean(2) if h.dim() == 4 else h.mean(1)", "cls": "h[:, 0]"}
POOLED = {
    "mean": '(h * x["attention_mask"][..., None]).sum(1) / x["attention_mask"].sum(1, keepdim=True)',
    "cls": "h[:, 0]",
}


def export(cfg: DictConfig, folder: Path) -> None:
    """Writes `export/<format>` in the run folder and holds its outputs against the network's own.

    Raises:
        UserError: an unknown format, one the network does not have, or outputs that differ.
    """
    if cfg.format not in FORMATS:
        raise UserError(unknown("format", str(cfg.format), FORMATS))

    from research.engine.opened import opened

    calibration = read_calibration(folder, cfg.checkpoint)
    write(opened(cfg, folder, cached=False), cfg.format, folder / "export" / cfg.format)
    if cfg.format == "onnx":
        add_calibration(folder / "export/onnx", calibration)


def write(parts: Any, form: str, into: Path) -> None:
    """Writes the network of `parts` in a format, and checks it. Errors are those of `export`."""
    import torch

    task = parts.task.cpu().eval()
    data = parts.data
    batches = _batches(data.val_dataloader() if "val" in data.rows else data.test_dataloader())  # of files it was given
    into.mkdir(parents=True, exist_ok=True)
    theirs = FORMATS[form](parts, batches[0], into)
    least = task.scale_y.std if task.scale_y.fitted else 1.0
    with torch.inference_mode():
        worst = torch.stack([_off(task(x), theirs(x), least) for x in batches]).max().item()
    if not worst <= TOLERANCE:  # nor is a nan
        raise UserError(f"the {form} export gives other outputs than the network, by up to {worst:.2g} of the largest.")
    log.info("export       %s", into)
    log.info("checked      on %d batches: outputs differ by at most %.1g of the largest", len(batches), worst)


def _batches(loader: Any) -> list[Any]:
    """Inputs of several sizes, and of texts of several lengths; the first has more rows than one."""
    shares = loader.sampler.shares()
    chosen = [shares[0].repeat(2), shares[len(shares) // 2], shares[-1], shares[-1][:1]]
    return [loader.dataset[index][0] for index in chosen]


def _off(expected: Any, found: Any, least: Any) -> Any:
    """The largest difference, as a share of the largest value of each output, which counts as `least` at least."""
    expected, found = expected.flatten(0, -2), found.flatten(0, -2)  # (B, K)
    return ((expected - found).abs() / expected.abs().amax(0).clamp(min=least)).max()


def _state_dict(parts: Any, example: Any, into: Path) -> Reader:
    """`model.safetensors`: the weights and scaling of the task, under their own names."""
    from safetensors.torch import load_model, save_model

    task = parts.task
    save_model(task, str(into / "model.safetensors"))
    again = copy.deepcopy(task)
    for value in again.state_dict().values():
        value.zero_()
    load_model(again, into / "model.safetensors")
    return again.eval()


def _onnx(parts: Any, example: Any, into: Path) -> Reader:
    """`model.onnx`, with a free batch size and, for texts, a free length; `model.json` and `example.py` beside it."""
    import onnxruntime
    import torch
    from torch import nn
    from torch.export import Dim

    names = list(example) if isinstance(example, dict) else ["x"]

    class Positional(nn.Module):
        """A dictionary of inputs as arguments, which is what ONNX has."""

        def __init__(self) -> None:
            super().__init__()
            self.task = parts.task

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return self.task(dict(zip(names, values, strict=True)) if isinstance(example, dict) else values[0])

    given = tuple(example.values()) if isinstance(example, dict) else (example,)
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if isinstance(example, dict) else {0: Dim.DYNAMIC}
    path = into / "model.onnx"
    for name in ("onnxscript", "onnx_ir"):  # which tell each step
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.onnx.export(
        Positional().eval(),
        given,
        str(path),
        input_names=names,
        output_names=["prediction"],
        dynamic_shapes=((free,) * len(given),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def outputs(x: Any) -> tuple[dict[str, Any], Any]:
        values = {name: value.numpy() for name, value in (x if isinstance(x, dict) else {"x": x}).items()}
        return values, session.run(None, values)[0]

    write_companions(parts, *outputs(example), into)
    return lambda x: torch.from_numpy(outputs(x)[1])


def _hf(parts: Any, example: Any, into: Path) -> Reader:
    """A folder of transformers: whole for pooling=native, else the encoder with the head beside it."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

    net = parts.task.net
    if not hasattr(net, "pooling"):
        raise UserError(
            f"format=hf is for model=bert and model=vision; this run has a {type(net).__name__}. Take onnx or "
            "state_dict."
        )
    net = _merged(net)
    images = parts.task.spec.kind == "image"
    _reader(parts, net, into)
    _label(net.base.config, parts.task.spec.classes)
    if net.pooling == "native":
        net.whole.save_pretrained(into)
        kind: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
        opened = kind.from_pretrained(into, local_files_only=True).eval()
        log.info("open it with %s.from_pretrained", kind.__name__)
        if images:
            return lambda x: opened(pixel_values=net.prepare(parts.task.scale_x(x))).logits
        return lambda x: opened(**x).logits
    net.base.save_pretrained(into)
    save_file({name: value.contiguous() for name, value in net.head.state_dict().items()}, into / "head.safetensors")
    lines = OPEN_BASE.format(pooled=POOLED[net.pooling])
    if images:
        lines = OPEN_IMAGE.format(pooled=POOLED_IMAGE[net.pooling], channels=len(net.prepare.scale))
    (into / "open.py").write_text(lines)
    log.info("its pooling is %s, not the library's own; open.py beside it has the lines that open it", net.pooling)
    again = copy.deepcopy(net)
    again.base = AutoModel.from_pretrained(into, local_files_only=True).eval()
    again.head.load_state_dict(load_file(into / "head.safetensors"))
    return (lambda x: again.eval()(parts.task.scale_x(x))) if images else again.eval()


def _reader(parts: Any, net: Any, into: Path) -> None:
    """Writes what makes the input of the network: its tokenizer, or the size, mean and std of its pictures."""
    if parts.task.spec.kind == "image":
        from research.engine.vision import PROCESSOR, processor

        write_json(into / PROCESSOR, processor(net.base.config, net, parts.task.spec))
        return
    from research.engine.pretrained import PACKAGED, tokenizer

    tokenizer(parts.data.tokenizer or PACKAGED).save_pretrained(into)


def _label(config: Any, classes: tuple[str, ...]) -> None:
    """Names the classes in the configuration of a network, which is that of its base as well."""
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}


def _merged(net: Any) -> Any:
    """The network with its adapters, if any, added into the weights they stand beside."""
    net = copy.deepcopy(net).eval()
    for name, module in list(net.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, module.base_layer)
    return net


FORMATS: dict[str, Callable[[Any, Any, Path], Reader]] = {"state_dict": _state_dict, "onnx": _onnx, "hf": _hf}

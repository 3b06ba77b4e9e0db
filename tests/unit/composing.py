"""What the unit tests share: configs, the options of a group, and what a dataset could say of itself."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from research.data.spec import Spec
from research.engine.check import check
from research.engine.durable import Sealing, replace

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def told(*words: str) -> list[str]:
    """The mistakes of `python src/train.py WORDS`."""
    return check(str(CONF), "train", list(words))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def a_spec(kind: Any = "features", shape: tuple[int, ...] = (5,), num_classes: int = 4, num_values: int = 0) -> Spec:
    """Of data with classes, or with `num_values` numeric targets."""
    features = shape[0]
    statistics: Any = {"x_mean": (0.0,) * features, "x_std": (1.0,) * features}
    if num_values:
        return Spec(kind, shape, "value", y_mean=(0.0,) * num_values, y_std=(1.0,) * num_values, **statistics)
    names = tuple(f"c{index}" for index in range(num_classes))
    return Spec(kind, shape, "class", names, class_counts=(10,) * num_classes, **statistics)


def own_files(folder: Path) -> dict[str, list[str]]:
    """The words that give each option of data that is a user's own its files, made in a folder."""
    rows = [f"{i % 7},{'abc'[i % 3]},{i % 2}" for i in range(80)]
    (folder / "table.csv").write_text("\n".join(["size,colour,good", *rows]))
    texts = [f"{['good', 'bad'][i % 2]} text number {i},{'xy'[i % 2]}" for i in range(80)]
    (folder / "text.csv").write_text("\n".join(["text,label", *texts]))
    for i in range(40):
        (folder / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 8), 5 * i + 1).save(folder / "photos" / "ab"[i % 2] / f"{i}.png")
    texts = [{"text": f"text number {i}", "label": "xy"[i % 2]} for i in range(80)]
    disable_progress_bars()
    Dataset.from_list(texts).save_to_disk(folder / "hub")
    paths = {"table": "table.csv", "text": "text.csv", "images": "photos"}
    found = {name: [f"data={name}", f"data.path={folder / path}"] for name, path in paths.items()}
    found["table"] += ["data.target=good", "data.duplicates=keep"]
    found["images"] += ["data.size=8", "data.num_workers=0"]
    found["hub"] = ["data=hub", f"data.name={folder / 'hub'}"]
    return {name: [*words, "data.batch_size=16"] for name, words in found.items()}


def quick(*overrides: str, epochs: int = 1, steps: int = 2) -> DictConfig:
    """A short, silent run on one thread of the CPU; `callbacks` only when an override names them."""
    torch.set_num_threads(1)  # several are slower for networks this small, and much slower on a busy machine
    silent = ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0")
    limits = (f"trainer.max_epochs={epochs}", f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=2")
    logger = () if any(word.startswith("logger") for word in overrides) else ("logger=csv",)
    cfg = composed(*logger, "trainer.log_every_n_steps=1", *silent, *limits, *overrides)
    OmegaConf.set_struct(cfg, False)
    if not any(word.startswith("callbacks") for word in overrides):
        cfg.callbacks = {}
    if "max_length" in cfg.data:  # texts: few and short
        cfg.data.max_length = 16
    if "image_size" in cfg.model:  # pictures: small
        cfg.model.image_size = cfg.model.image_size or 32
    if "packages" in cfg.data:
        cfg.data.packages = 2
    for name, callback in dict(cfg.callbacks).items():
        if callback and "Progress" in callback["_target_"]:
            del cfg.callbacks[name]
    return cfg


def sealed(path: Path, content: Any) -> Path:
    """A checkpoint as a run would leave it, of anything."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: Any) -> None:
        sealing: Any = Sealing(file, {"step": 1, "epoch": 0, "batch": 0})
        torch.save(content, sealing)
        sealing.close()

    replace(path, write)
    return path

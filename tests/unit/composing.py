"""What the unit tests share: configs, the options of a group, and what a dataset could say of itself."""

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from research.data.spec import Spec
from research.engine.check import check

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


def quick(*overrides: str, epochs: int = 1, steps: int = 2) -> DictConfig:
    """A short, silent run on one thread of the CPU; `callbacks` only when an override names them."""
    torch.set_num_threads(1)  # several are slower for networks this small, and much slower on a busy machine
    silent = ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0")
    limits = (f"trainer.max_epochs={epochs}", f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=2")
    cfg = composed("logger=csv", "trainer.log_every_n_steps=1", *silent, *limits, *overrides)
    OmegaConf.set_struct(cfg, False)
    if not any(word.startswith("callbacks") for word in overrides):
        cfg.callbacks = {}
    if "max_length" in cfg.data:  # texts: few and short
        cfg.data.max_length, cfg.data.packages = 16, 2
    for name, callback in dict(cfg.callbacks).items():
        if "Progress" in callback["_target_"]:
            del cfg.callbacks[name]
    return cfg

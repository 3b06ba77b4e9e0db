"""Splits, scaling statistics, the order of batches over processes, and augmentation."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from composing import a_spec, composed
from research.data.augment import Images
from research.data.batches import BatchOrder, Rows
from research.data.diabetes import Diabetes
from research.data.digits import Digits
from research.data.tensors import TensorData
from research.engine.build import Parts, build, make

NAMES = ("train", "val", "test")


def ready[D: TensorData](kind: type[D], split_seed: int = 0, **more: Any) -> D:
    settings: dict[str, Any] = {"batch_size": 64, "fractions": [0.7, 0.15, 0.15], "shuffle": True, "seed": 0}
    data = kind(split_seed=split_seed, **settings | more)
    data.setup()
    return data

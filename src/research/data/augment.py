"""Augmentation of a training batch, on the device it is on. An augmentation is a module: (x, y) -> (x, y)."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import one_hot

from research.data.spec import Spec


class Nothing(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y


class Images(nn.Module):
    """Transforms of kornia, then a mix of two images and their labels.

    Mixup: Zhang et al., 2018. Cutmix: Yun et al., 2019. Mixed labels are shares of each class, (B, C).

    Args:
        transforms: modules of kornia.augmentation, each with its own draw for each image; None for one switched off.
        mix: how two images become one.

    Raises:
        ValueError: the data has no images, or a mix is asked for without classes.
    """

    def __init__(self, spec: Spec, transforms: list[Module | None], mix: Literal["mixup", "cutmix"] | None) -> None:
        super().__init__()
        spec.need("augment=images", kind=("image",))
        self.transforms = nn.Sequential(*(transform for transform in transforms if transform is not None))
        self.num_classes = len(spec.classes)
        self.mix = mix
        self.mixer: nn.Module | None = None
        if mix:
            from kornia.augmentation import RandomCutMixV2, RandomMixUpV2  # takes a second, so only when asked for

            spec.need(f"augment.mix={mix}", target="class")
            keys: Any = ["input", "class"]
            cut = RandomCutMixV2(data_keys=keys, use_correct_lambda=True)
            self.mixer = cut if mix == "cutmix" else RandomMixUpV2(data_keys=keys)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, C, H, W); y: (B,), returned as (B, num_classes) shares when images are mixed."""
        x = self.transforms(x)
        if self.mixer is None:
            return x, y
        x, mixed = self.mixer(x, y)
        first, second, share = mixed.reshape(-1, 3).unbind(1)  # (B,) each
        if self.mix == "cutmix":  # where kornia gives the share of the first image, not of the second
            share = 1 - share
        one, two = (one_hot(label.long(), self.num_classes) for label in (first, second))  # (B, num_classes)
        return x, one * (1 - share[:, None]) + two * share[:, None]

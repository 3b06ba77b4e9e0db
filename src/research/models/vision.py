"""Any image encoder of transformers with a classification head. B images, H numbers an image, K numbers out."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.values import Pixels, Probability
from research.engine.vision import image_encoder


class Vision(nn.Module):
    """`base` sees, `head` decides; of pooling=native both are parts of `whole`, the library's own network.

    What a frozen base outputs, (B, H), can be given in place of its input, but of pooling=native.

    Args:
        pretrained: `packaged`, a folder, a run, a hub name, or None for random weights.
        pooling: of the patches or places into one vector: their `mean`, the class token (`cls`), or `native`: the
            library's own head.
        dropout: before the head.
        image_size: pixels a side that the base sees, to which pictures are scaled; None for its own.
        architecture: arguments of the configuration of `model_type`, for random weights.

    Raises:
        ValueError: x is no image, the weights are not to be had, or the base takes no such pictures.
    """

    whole: Any

    def __init__(
        self,
        spec: Spec,
        pretrained: str | None,
        pooling: Literal["mean", "cls", "native"],
        dropout: Probability,
        image_size: Pixels | None,
        architecture: dict[str, Any],
    ) -> None:
        super().__init__()
        spec.need("model=vision", kind=("image",))
        self.pooling = pooling
        native = pooling == "native"
        labels = spec.num_outputs if native else None
        model, self.prepare = image_encoder(pretrained, spec, image_size, architecture, labels)
        self.base: Any = model.base_model if native else model
        self.__dict__["whole"] = model  # not a module of this one: its parts are, as base and head
        if native:
            self.head: Any = nn.ModuleDict({n: m for n, m in model.named_children() if m is not self.base})
            self._try(self.whole, "logits")
            return
        names = [name.split(".")[-1] for name, _ in self.base.named_parameters()]
        if pooling == "cls" and not {"cls_token", "class_embedding"} & set(names):
            raise ValueError(f"{self.base.config.model_type} has no class token; take model.pooling=mean")
        size = self._try(self.base, "last_hidden_state")
        self.head = nn.Sequential(nn.LayerNorm(size), nn.Dropout(dropout), nn.Linear(size, spec.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), or features (B, H) -> (B, K)."""
        if self.pooling == "native":
            return self.whole(pixel_values=self.prepare(x)).logits
        return self.head(x if x.dim() == 2 else self.features(x))

    @property
    def has_features(self) -> bool:
        """Whether the head sees of the base but one vector an image, which a frozen base need compute only once."""
        return self.pooling != "native"

    def features(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, H)."""
        return self._pooled(self.base(pixel_values=self.prepare(x)).last_hidden_state)

    def _pooled(self, states: Tensor) -> Tensor:
        """states: (B, T, H) of patches or (B, H, h, w) of places -> (B, H)."""
        if self.pooling == "cls":
            return states[:, 0]
        return states.mean(1) if states.dim() == 3 else states.mean((2, 3))

    @torch.enable_grad()
    def _try(self, part: Any, output: str) -> int:
        """Has the network see a picture; gives H. What its output does not depend on never learns.

        Raises:
            ValueError: it takes no pictures, or others.
        """
        side, channels = self.prepare.size, len(self.prepare.scale)
        parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        try:
            found = getattr(part.eval()(pixel_values=torch.zeros(1, channels, side, side)), output)
            pooled = found if output == "logits" else self._pooled(found)
            gradients = torch.autograd.grad(pooled.sum(), parameters, allow_unused=True)
        except Exception as error:  # of whatever network it is
            own = getattr(self.base.config, "image_size", None)
            fix = f"; it takes {own} a side: model.image_size={own}" if own and own != side else ""
            kind = self.base.config.model_type
            raise ValueError(f"{kind} does not read pictures of {side} x {side} pixels{fix} ({error})") from error
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad = gradient is not None
        part.train()
        return pooled.shape[1]

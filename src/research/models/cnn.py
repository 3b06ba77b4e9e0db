"""A small residual network for images of any size (He et al., 2016, with their basic block).

B images, C channels, H x W pixels, K numbers out.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from research.data.spec import Spec
from research.engine.values import PositiveInt, Probability


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(out + self.shortcut(x))


class Cnn(nn.Module):
    """Stages of residual blocks, each stage but the first at half the size and twice the channels of the one before.

    Args:
        width: channels of the first stage.
        stages: how many.
        depth: blocks a stage.
        dropout: before the head.

    Raises:
        ValueError: x is not an image.
    """

    def __init__(
        self, spec: Spec, width: PositiveInt, stages: PositiveInt, depth: PositiveInt, dropout: Probability
    ) -> None:
        super().__init__()
        spec.need("model=cnn", kind=("image",))
        channels = [width * 2**stage for stage in range(stages)]
        stem = nn.Conv2d(spec.shape[0], width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        blocks: list[nn.Module] = []
        channels_in = width
        for stage, channels_out in enumerate(channels):
            for block in range(depth):
                blocks.append(Block(channels_in, channels_out, stride=2 if stage and not block else 1))
                channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels_in, spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, K)."""
        x = self.blocks(self.stem(x))  # (B, channels, H', W')
        return self.head(self.dropout(x.mean((2, 3))))  # (B, K)

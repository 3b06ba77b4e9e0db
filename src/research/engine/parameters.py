"""Which parameters the optimizer gets, and which of them decay."""

from typing import Any

from torch import nn


def groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: matrices and kernels decay as the optimizer says; biases, norms and other vectors never do.

    Frozen parameters are in no group, and an empty group is left out.
    """
    free = [p for p in network.parameters() if p.requires_grad]
    decayed = {"name": "decayed", "params": [p for p in free if p.dim() > 1]}
    kept = {"name": "kept", "params": [p for p in free if p.dim() <= 1], "weight_decay": 0.0}
    return [group for group in (decayed, kept) if group["params"]]

"""Adam for steps that can be captured in a CUDA graph, and averaged weights."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adam(weights: Sequence[Tensor], learning_rate: float, decay: float = 0.0) -> torch.optim.Adam:
    """A fused Adam, with weight decay AdamW. On a GPU its rate is a tensor there, which a captured step can read."""
    device = weights[0].device
    rate = learning_rate if device.type == "cpu" else torch.tensor(learning_rate, device=device)
    kind = torch.optim.AdamW if decay else torch.optim.Adam
    return kind(weights, lr=rate, weight_decay=decay, fused=True, capturable=device.type != "cpu")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """For the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(torch.as_tensor(rate))
        else:
            group["lr"] = float(rate)


def changed_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that a step of it changes: weights and state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [*weights, *(value for weight in weights for value in optimizer.state[weight].values())]


@torch.no_grad()
def average(means: Sequence[Tensor], weights: Sequence[Tensor], decay: float | Tensor) -> None:
    """Moves each mean by the share 1 − decay towards its weight, in place (Polyak & Juditsky 1992)."""
    if not isinstance(decay, Tensor):
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)
        return
    steps = torch._foreach_sub(list(weights), list(means))
    torch._foreach_mul_(steps, 1 - decay)
    torch._foreach_add_(list(means), steps)

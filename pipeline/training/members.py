"""The model's own code, written for one member, over all members of a population by vmap.

vmap knows how to run any model so. Two operations have a rule of their own here, since vmap's take most of a step:
it would copy what the members share for each of them, and take the cross entropy apart into some twenty passes.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pipeline.model.cvae import CVAE
from pipeline.model.likelihood import Bernoulli, full
from pipeline.training import objective

PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # the layers that autocast multiplies in half precision

# (weights, buffers, images, labels, noise) to Terms whose tensors have a leading dimension M
MemberTerms = Callable[..., objective.Terms]


def member_terms(template: CVAE, *, half: bool = False, training: bool = False) -> MemberTerms:
    """objective.terms over all members, with their stacked weights and buffers by name; half: multiply in bfloat16."""
    model = copy.deepcopy(template).train(training)
    if type(model.likelihood) is Bernoulli:
        model.likelihood = _StackableBernoulli()
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
    by_member = vmap(partial(functional_call, _Terms(model)), in_dims=(0, None))
    layers = {name: layer for name, layer in model.named_modules() if half and isinstance(layer, PRODUCTS)}
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))
    halved = {f"{name}.{weight}" for name, layer in layers.items() for weight, _ in layer.named_parameters()}

    def terms(weights: dict[str, Tensor], buffers: dict[str, Tensor], *batch: Tensor) -> objective.Terms:
        # In place of autocast, which does not convert all that a convolution takes under vmap.
        weights = {name: _Half.apply(tensor) if name in halved else tensor for name, tensor in weights.items()}
        state = {f"model.{name}": tensor for name, tensor in (weights | buffers).items()}
        found: objective.Terms = by_member(state, batch)
        return found

    return terms


class _Terms(nn.Module):
    """objective.terms as a module's forward, which is what functional_call calls."""

    def __init__(self, model: CVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> objective.Terms:
        return objective.terms(self.model, *batch)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight) if layer.bias is None else _Linear.apply(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    """x (N, in), weight (out, in) and bias (out), to (N, out). Of all members it is one batched product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing to keep: autograd sees the batched product."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, int]:
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT), 0


class _Half(torch.autograd.Function):
    """Float32 weights to bfloat16. The gradient is laid out as the weights are.

    Autograd alone would copy the gradient once more: a twentieth of a step.
    """

    @staticmethod
    def forward(_: Any, weight: Tensor) -> Tensor:
        return weight.bfloat16()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return torch.empty(grad.shape, dtype=torch.float32, device=grad.device).copy_(grad)


class _StackableBernoulli(Bernoulli):
    """The Bernoulli, whose cross entropy has a rule for vmap."""

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler makes one pass of vmap's twenty
            return super().log_prob(outputs, pixels)
        return -_CrossEntropy.apply(full(outputs), pixels)


class _CrossEntropy(torch.autograd.Function):
    """Logits (..., N, 784) and pixels (N, 784), without a gradient, to (..., N) nats."""

    @staticmethod
    def forward(logits: Tensor, pixels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, pixels = ctx.saved_tensors
        return (logits.sigmoid() - pixels).mul_(grad.unsqueeze(-1)), None

    @staticmethod
    def vmap(_: Any, in_dims: tuple[int, None], logits: Tensor, pixels: Tensor) -> tuple[Tensor, int]:
        return _CrossEntropy.apply(logits.movedim(in_dims[0], 0), pixels), 0

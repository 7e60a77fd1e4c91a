"""A multi-rate CVAE: one network for every KL weight of a range, since each layer is told log β.

A small network of log β scales and shifts the outputs of each layer, unit by unit (Perez 2018; Dosovitskiy & Djolonga
2020). At one β this changes weights and biases alone, so that `MultiRate.at` gives an ordinary CVAE.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cvae import CVAE, Architecture, Model
from pipeline.model.gaussian import Normal
from pipeline.model.likelihood import Likelihood, Name
from pipeline.model.prior import Gaussians, Prior

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
HIDDEN = 32  # units of each layer of the network of log β
SPREAD = 3.0  # its input goes from −3 to 3: many of its first units then bend within the range
PACE = 0.1  # of its outputs: at Adam's full pace all layers would change by a tenth in a step, and learn less
TYPICAL = 20.0  # a large eigenvalue of the data's covariance: where layers are first told that latents begin to pay
BEYOND = 1.3  # factor by which weights are drawn beyond each end of the range, where a network is worst


class Change(NamedTuple):
    """What a layer is told: factors and summands of its outputs, (N, out) both."""

    scale: Tensor
    shift: Tensor


class Told(nn.Module):
    """A layer of the CVAE. Its `change` is set before each call."""

    change: Change | None = None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.out = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # the dimension of the weight with its outputs
        self.outputs = layer.weight.shape[self.out]

    def forward(self, x: Tensor) -> Tensor:
        """x: N rows for the N images of the change, or K · N for K draws of each."""
        assert self.change is not None, "encode and decode set it"
        y, images = self.layer(x), self.change.scale.shape[0]
        scale, shift = (part.view(*part.shape, *(1,) * (x.ndim - 2)) for part in self.change)
        several = x.shape[0] != images  # one draw needs no dimension: summing gradients over it costs time
        y = y.unflatten(0, (-1, images)) if several else y
        # A layer without a bias has no place for a shift.
        y = y * scale if self.layer.bias is None else torch.addcmul(shift, y, scale)
        return y.flatten(0, 1) if several else y

    @torch.no_grad()
    def fold_into(self, layer: Any, change: Change) -> None:
        """Gives an ordinary layer the weight and the bias of this one at one β, whose change is (1, out)."""
        scale, shift = (part.squeeze(0) for part in change)
        layer.weight.copy_(
            self.layer.weight * scale.view([-1 if place == self.out else 1 for place in range(layer.weight.ndim)])
        )
        if layer.bias is not None:
            layer.bias.copy_(self.layer.bias * scale + shift)


class Context(NamedTuple):
    """Labels (N,), and the change of each layer for each image."""

    labels: Tensor
    changes: Sequence[Change]


class MultiRate(Model):
    """A CVAE told log β. Its condition is the label and log β of each image: see `condition`.

    span: the lowest and the highest KL weight. balance: the loss of weight β counts by (1 + β)^−balance; 0: all weights
    count alike. What a likelihood or a prior learns is the same for all weights. Raises ValueError for a prior that
    depends on the encoder (mixture).
    """

    unchanged: Tensor

    def __init__(
        self,
        architecture: Architecture,
        span: tuple[float, float],
        balance: float,
        likelihood_name: Name = "bernoulli",
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        if architecture.prior == "mixture":
            raise ValueError("a multi-rate CVAE's prior must not depend on its encoder")
        self.cvae, self.span, self.balance = CVAE(architecture, likelihood_name, sigma), span, balance
        self.settings = architecture, likelihood_name, sigma
        self.latent_size = self.cvae.latent_size
        for parent in [*self.cvae.modules()]:
            for name, layer in parent.named_children():
                if isinstance(layer, LAYERS):
                    setattr(parent, name, Told(layer))
        told = [*self._told()]
        self.heads = told.index(self.cvae.mu), told.index(self.cvae.log_var)  # type: ignore[arg-type]
        self.sizes = [size for layer in told for size in (layer.outputs, layer.outputs)]
        self.network = nn.Sequential(nn.Linear(1, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU())
        self.last = nn.Linear(HIDDEN, sum(self.sizes))
        unchanged = torch.cat([torch.full((size,), float(part % 2 == 0)) for part, size in enumerate(self.sizes)])
        self.register_buffer("unchanged", unchanged, persistent=False)  # a scale of 1 and a shift of 0 for each unit
        for weight in self.last.parameters():  # at first no hidden layer is changed, whatever β is
            nn.init.zeros_(weight)
        low, high = (math.log(weight) for weight in self.drawn_span())
        self.mean_share = float((1 + torch.linspace(low, high, 1000).double().exp()).pow(-balance).mean())

    @property
    def likelihood(self) -> Likelihood:  # type: ignore[override]
        """That of the CVAE."""
        return self.cvae.likelihood

    def drawn_span(self) -> tuple[float, float]:
        """The weights between which training draws: a little beyond `span`."""
        return self.span[0] / BEYOND, self.span[1] * BEYOND

    def context(self, condition: Tensor) -> Context:
        """Reads conditions (N, 2) once for encoder and decoder."""
        low, high = (math.log(weight) for weight in self.span)
        place = SPREAD * (2 * (condition[:, 1:].to(self.dtype) - low) / (high - low) - 1)
        # The pace multiplies the last layer's few inputs and its bias, which is cheaper than its many outputs.
        told = F.linear(PACE * self.network(place), self.last.weight, PACE * self.last.bias + self.unchanged)
        parts = iter(told.split(self.sizes, dim=1))
        changes = [Change(next(parts), next(parts)) for _ in self._told()]
        # What is learned is the difference from a linear Gaussian VAE whose data has one eigenvalue λ: its posteriors
        # have variance β ÷ λ around means of variance 1 − β ÷ λ (Lucas 2019). λ + β in place of λ is smooth, and
        # defined where β is above λ.
        kl_weight = condition[:, 1:].to(self.dtype).exp()
        mu, log_var = self.heads
        (scale, shift), (factor, summand) = changes[mu], changes[log_var]
        changes[mu] = Change(scale - 1 + (TYPICAL / (TYPICAL + kl_weight)).sqrt(), shift)
        changes[log_var] = Change(factor, summand + (kl_weight / (TYPICAL + kl_weight)).log())
        return Context(condition[:, 0].long(), changes)

    def encode(self, images: Tensor, context: Context) -> Normal:
        """q(z∣x,y) of images (N, 1, 28, 28), each at its own β, (N, latent)."""
        with self._telling(context.changes):
            return self.cvae.encode(images, context.labels)

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """The likelihood's outputs (..., N, 784) for latents z (..., N, latent), each at its own β."""
        with self._telling(context.changes):
            return self.cvae.decode(z, context.labels)

    def prior(self) -> Prior:
        """p(z∣y), the same at every β."""
        plain = self.cvae.prior()
        assert isinstance(plain, Gaussians), "a mixture is refused"
        return Gaussians(lambda context: plain.of(context.labels))

    def weighing(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """β of each image, and the factor of its loss, 1 in the mean over the weights drawn: (N,) both."""
        kl_weight = condition[:, 1].exp()
        return kl_weight, (1 + kl_weight).pow(-self.balance) / self.mean_share

    @torch.no_grad()
    def at(self, kl_weight: float) -> CVAE:
        """The CVAE at one KL weight, with ordinary weights. Raises ValueError for a weight outside of `span`."""
        low, high = self.span
        if not low <= kl_weight <= high:
            raise ValueError(f"{kl_weight:g} is not between {low:g} and {high:g}, the weights trained with")
        label = torch.zeros(1, dtype=torch.int64, device=next(self.parameters()).device)
        context = self.context(condition(label, torch.full_like(label, math.log(kl_weight), dtype=self.dtype)))
        model = CVAE(*self.settings).to(label.device, self.dtype).to(memory_format=torch.channels_last)
        plain = dict(model.named_modules())
        names = [name for name, layer in self.cvae.named_modules() if isinstance(layer, Told)]
        for name, told, change in zip(names, self._told(), context.changes, strict=True):
            told.fold_into(plain[name], change)
        model.likelihood.load_state_dict(self.likelihood.state_dict())
        model.prior_weights.load_state_dict(self.cvae.prior_weights.state_dict())
        return model.eval().requires_grad_(requires_grad=False)

    def _told(self) -> Iterator[Told]:
        return (layer for layer in self.cvae.modules() if isinstance(layer, Told))

    @contextmanager
    def _telling(self, changes: Sequence[Change]) -> Iterator[None]:
        """Within the block, the layers have these changes."""
        for layer, change in zip(self._told(), changes, strict=True):
            layer.change = change
        yield
        for layer in self._told():
            layer.change = None


def condition(labels: Tensor, log_kl_weight: Tensor) -> Tensor:
    """What a MultiRate is told of each image: labels (N,) and log β (N,) as (N, 2)."""
    return torch.stack([labels.to(log_kl_weight.dtype), log_kl_weight], dim=1)


def build(
    architecture: Architecture,
    span: tuple[float, float],
    balance: float,
    seed: int,
    likelihood_name: Name = "bernoulli",
    sigma: float | None = None,
) -> MultiRate:
    """An untrained MultiRate on the CPU, in eval mode, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiRate(architecture, span, balance, likelihood_name, sigma)
        return model.to(memory_format=torch.channels_last).eval()

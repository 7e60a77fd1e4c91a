"""p(z∣y): the distribution of latents given a label, before any image is seen.

A model's `prior()` gives a density, Gaussians or Mixtures, with its present weights: ask once, then use it for many
latents. Latents are z (..., N, latent). A context is what the model makes of its condition, for the CVAE the labels
(N,). Log-densities and divergences are in nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.data.splits import CLASSES, PIXELS, SIDE
from pipeline.model.gaussian import Normal
from pipeline.model.networks import DARK

Encode = Callable[[Tensor, Tensor], Normal]  # images (N, 1, 28, 28) and labels (N,) to q(z∣x,y)


class Prior(Protocol):
    """What the objective, the bound and the samplers ask of a prior."""

    def log_prob(self, z: Tensor, context: Any) -> Tensor:
        """log p(z∣y), (..., N)."""

    def kl(self, q: Normal, z: Tensor, context: Any) -> Tensor:
        """KL(q(z∣x,y) ‖ p(z∣y)) by latent dimension, (N, latent), or `sampled_kl` at z, a sample of q."""

    def sample(self, context: Any, generator: torch.Generator) -> Tensor:
        """Latents (N, latent)."""

    def mean(self, context: Any) -> Tensor:
        """E[z∣y], (N, latent)."""


def sampled_kl(p: Prior, q: Normal, z: Tensor, context: Any) -> Tensor:
    """log q(z∣x,y) − log p(z∣y) at samples z of q, (..., N, latent): an unbiased estimate of the KL.

    Every dimension has the same share, so that only the sum has a meaning.
    """
    return ((q.log_prob(z) - p.log_prob(z, context)) / z.shape[-1]).unsqueeze(-1).expand_as(z)


@dataclass(frozen=True)
class Gaussians:
    """One diagonal Gaussian for each context, (N, latent), which `of` gives. Its KL has a closed form."""

    of: Callable[[Any], Normal]

    def log_prob(self, z: Tensor, context: Any) -> Tensor:
        return self.of(context).log_prob(z)

    def kl(self, q: Normal, z: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        return q.kl(self.of(context))

    def sample(self, context: Any, generator: torch.Generator) -> Tensor:
        p = self.of(context)
        return p.sample(torch.randn(p.mu.shape, generator=generator, device=p.mu.device))

    def mean(self, context: Any) -> Tensor:
        return self.of(context).mu


def by_label(p: Normal) -> Gaussians:
    """One Gaussian for each label: p (10, latent)."""
    return Gaussians(lambda labels: Normal(p.mu[labels], p.log_var[labels]))


@dataclass(frozen=True)
class Mixtures:
    """C diagonal Gaussians of equal weight for each label: components (10, C, latent). Its KL has no closed form."""

    components: Normal

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        mu, log_var = self.components
        by_component = Normal(mu[labels], log_var[labels]).log_prob(z.unsqueeze(-2))
        return by_component.logsumexp(-1) - math.log(mu.shape[1])

    def kl(self, q: Normal, z: Tensor, labels: Tensor) -> Tensor:
        return sampled_kl(self, q, z, labels)

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        mu, log_var = self.components
        chosen = torch.randint(mu.shape[1], labels.shape, generator=generator, device=labels.device)
        p = Normal(mu[labels, chosen], log_var[labels, chosen])
        return p.sample(torch.randn(p.mu.shape, generator=generator, device=p.mu.device))

    def mean(self, labels: Tensor) -> Tensor:
        return self.components.mu.mean(1)[labels]


class PriorWeights(nn.Module):
    """What a prior learns, as a part of the model."""

    has_components: ClassVar[bool] = False  # whether it reads model.prior_components

    def __init__(self, latent_size: int, components: int) -> None:  # noqa: ARG002
        super().__init__()

    def density(self, encode: Encode, zeros: Tensor) -> Prior:
        """p(z∣y) with the present weights; `encode` is the model's, zeros (10, latent) have its type and device."""
        raise NotImplementedError


class Standard(PriorWeights):
    """N(0, I) for every label: nothing to learn."""

    def density(self, encode: Encode, zeros: Tensor) -> Prior:  # noqa: ARG002
        return by_label(Normal(zeros, zeros))


class ByClass(PriorWeights):
    """A learned Gaussian for each label, at first N(0, I)."""

    def __init__(self, latent_size: int, components: int) -> None:
        super().__init__(latent_size, components)
        self.mu = nn.Parameter(torch.zeros(CLASSES, latent_size))
        self.log_var = nn.Parameter(torch.zeros(CLASSES, latent_size))

    def density(self, encode: Encode, zeros: Tensor) -> Prior:  # noqa: ARG002
        return by_label(Normal(self.mu, self.log_var))


class VampPrior(PriorWeights):
    """A mixture of the encoder's posteriors of learned pictures, here some for each label (Tomczak & Welling 2018).

    It has the form of what it should match: the aggregate posterior is a mixture of posteriors too.
    """

    has_components = True

    def __init__(self, latent_size: int, components: int) -> None:
        super().__init__(latent_size, components)
        # Logits of grey values (10, C, 784), each picture different from the others.
        self.pseudo_inputs = nn.Parameter(torch.randn(CLASSES, components, PIXELS) + DARK)

    def density(self, encode: Encode, zeros: Tensor) -> Prior:  # noqa: ARG002
        pictures = self.pseudo_inputs
        labels = torch.arange(CLASSES, device=pictures.device).repeat_interleave(pictures.shape[1])
        encoded = encode(pictures.sigmoid().view(-1, 1, SIDE, SIDE), labels).to(pictures.dtype)
        return Mixtures(Normal(*(part.view(*pictures.shape[:2], -1) for part in encoded)))


PRIORS: dict[str, type[PriorWeights]] = {"standard": Standard, "class": ByClass, "mixture": VampPrior}

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(PRIORS)]  # the names that params allow

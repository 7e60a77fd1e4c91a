"""p(z∣y): what codes of a label are like before any image is seen.

A model's `prior()` answers one of the two densities below, as its weights have it at that moment: ask once, then use it
for many codes. Codes are z (..., N, latent); a context is what the model makes of its condition, for the CVAE the
labels (N,). Log-densities and divergences are in nats.
To add one: write a density with these four methods and let CVAE.prior build it; CONTRIBUTING.md lists the tests.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pipeline.model.gaussian import Normal

Name = Literal["standard", "class", "mixture"]


class Prior(Protocol):
    """What the objective, the bound and the samplers ask of a prior."""

    def log_prob(self, z: Tensor, context: Any) -> Tensor:
        """log p(z∣y), (..., N)."""

    def kl(self, q: Normal, z: Tensor, context: Any) -> Tensor:
        """KL(q(z∣x,y) ‖ p(z∣y)) by latent dimension, (N, latent); z is a sample of q.

        A prior that does not factorise gives every dimension the same share: only the sum then means anything.
        """

    def sample(self, context: Any, generator: torch.Generator) -> Tensor:
        """Latents (N, latent)."""

    def mean(self, context: Any) -> Tensor:
        """E[z∣y], (N, latent)."""


@dataclass(frozen=True)
class Gaussians:
    """One diagonal Gaussian for each context, (N, latent), which `of` gives. KL in closed form."""

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
    """C diagonal Gaussians of equal weight for each label: components (10, C, latent).

    What a VampPrior is once its pseudo-inputs are encoded (Tomczak & Welling 2018, here for each label). Its KL has
    no closed form: log q(z∣x,y) − log p(z∣y) at the one sample z is right on average.
    """

    components: Normal

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        mu, log_var = self.components
        by_component = Normal(mu[labels], log_var[labels]).log_prob(z.unsqueeze(-2))
        return by_component.logsumexp(-1) - math.log(mu.shape[1])

    def kl(self, q: Normal, z: Tensor, labels: Tensor) -> Tensor:
        whole = q.log_prob(z) - self.log_prob(z, labels)
        return (whole / z.shape[-1]).unsqueeze(-1).expand_as(z)

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        mu, log_var = self.components
        chosen = torch.randint(mu.shape[1], labels.shape, generator=generator, device=labels.device)
        p = Normal(mu[labels, chosen], log_var[labels, chosen])
        return p.sample(torch.randn(p.mu.shape, generator=generator, device=p.mu.device))

    def mean(self, labels: Tensor) -> Tensor:
        return self.components.mu.mean(1)[labels]

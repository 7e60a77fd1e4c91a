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

Name = Literal["standard", "class", "mixture"]


class Prior(Protocol):
    """What the objective, the bound and the samplers ask of a prior."""

    def log_prob(self, z: Tensor, context: Any) -> Tensor:
        """log p(z∣y), (..., N)."""

    def kl(self, mu: Tensor, log_var: Tensor, z: Tensor, context: Any) -> Tensor:
        """KL(q(z∣x,y) ‖ p(z∣y)) by latent dimension, (N, latent); q is N(mu, exp log_var), and z a draw of it.

        A prior that does not factorise gives every dimension the same share: only the sum then means anything.
        """

    def draw(self, context: Any, generator: torch.Generator) -> Tensor:
        """Codes (N, latent)."""

    def mean(self, context: Any) -> Tensor:
        """E[z∣y], (N, latent)."""


@dataclass(frozen=True)
class Gaussians:
    """One diagonal Gaussian for each context: `of` gives mu and log_var, each (N, latent). KL in closed form."""

    of: Callable[[Any], tuple[Tensor, Tensor]]

    def log_prob(self, z: Tensor, context: Any) -> Tensor:
        return log_normal(z, *self.of(context))

    def kl(self, mu: Tensor, log_var: Tensor, z: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        return kl_by_dimension(mu, log_var, *self.of(context))

    def draw(self, context: Any, generator: torch.Generator) -> Tensor:
        mu, log_var = self.of(context)
        return mu + (log_var / 2).exp() * torch.randn(mu.shape, generator=generator, device=mu.device)

    def mean(self, context: Any) -> Tensor:
        return self.of(context)[0]


def by_label(mu: Tensor, log_var: Tensor) -> Gaussians:
    """One for each label: mu and log_var, each (10, latent)."""
    return Gaussians(lambda labels: (mu[labels], log_var[labels]))


@dataclass(frozen=True)
class Mixtures:
    """C diagonal Gaussians of equal weight for each label: mu and log_var, each (10, C, latent).

    What a VampPrior is once its pseudo-inputs are encoded (Tomczak & Welling 2018, here for each label). Its KL has
    no closed form: log q(z∣x,y) − log p(z∣y) at the one draw z is right on average.
    """

    mu: Tensor
    log_var: Tensor

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        by_component = log_normal(z.unsqueeze(-2), self.mu[labels], self.log_var[labels])
        return by_component.logsumexp(-1) - math.log(self.mu.shape[1])

    def kl(self, mu: Tensor, log_var: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        whole = log_normal(z, mu, log_var) - self.log_prob(z, labels)
        return (whole / z.shape[-1]).unsqueeze(-1).expand_as(z)

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        component = torch.randint(self.mu.shape[1], labels.shape, generator=generator, device=labels.device)
        mu, log_var = self.mu[labels, component], self.log_var[labels, component]
        return mu + (log_var / 2).exp() * torch.randn(mu.shape, generator=generator, device=mu.device)

    def mean(self, labels: Tensor) -> Tensor:
        return self.mu.mean(1)[labels]


def kl_by_dimension(mu: Tensor, log_var: Tensor, prior_mu: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL(N(mu, exp log_var) ‖ N(prior_mu, exp prior_log_var)) in each dimension, (..., latent) nats.

    Kingma & Welling 2014, appendix B, for any prior: ½ [log σ_p²/σ_q² + (σ_q² + (μ_q − μ_p)²) / σ_p² − 1].
    """
    ratio = log_var - prior_log_var
    distance = (mu - prior_mu).square() * (-prior_log_var).exp()
    return 0.5 * (ratio.exp() + distance - 1 - ratio)


def log_normal(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mu, exp log_var) of a diagonal Gaussian, (..., latent) to (...)."""
    distance = (z - mu).square() * (-log_var).exp()
    return -0.5 * (distance + log_var + math.log(2 * math.pi)).sum(-1)

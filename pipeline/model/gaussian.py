"""The diagonal Gaussian, in which the encoder and the priors are written."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class Normal(NamedTuple):
    """N(mu, exp log_var) with a diagonal covariance: mu and log_var, each (..., latent)."""

    mu: Tensor
    log_var: Tensor

    def to(self, dtype: torch.dtype) -> "Normal":
        return Normal(self.mu.to(dtype), self.log_var.to(dtype))

    def sample(self, noise: Tensor) -> Tensor:
        """z = mu + sigma · noise for noise (..., latent) from N(0, I): the reparameterisation trick."""
        return self.mu + (self.log_var / 2).exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mu, exp log_var), (..., latent) to (...) nats."""
        distance = (z - self.mu).square() * (-self.log_var).exp()
        return -0.5 * (distance + self.log_var + LOG_2PI).sum(-1)

    def kl(self, prior: "Normal") -> Tensor:
        """KL(self ‖ prior) in each dimension, (..., latent) nats (Kingma & Welling 2014, appendix B, for any prior).

        ½ [σ² / σ_p² + (μ − μ_p)² / σ_p² − 1 − log(σ² / σ_p²)].
        """
        ratio = self.log_var - prior.log_var
        distance = (self.mu - prior.mu).square() * (-prior.log_var).exp()
        return 0.5 * (ratio.exp() + distance - 1 - ratio)

"""The loss in nats per image: reconstruction + kl_weight · kl."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

from torch import Tensor

from pipeline import likelihood
from pipeline.data import PIXELS, Pixels
from pipeline.params import Range


@dataclass(frozen=True)
class ObjectiveParams:
    kl_weight: Annotated[float, Range(least=0)]
    likelihood: likelihood.Name
    pixels: Pixels


class Autoencoder(Protocol):
    """What the objective asks of a model.

    `context` is what it makes of its condition, once for the other three: for the CVAE the label as it is.
    """

    likelihood: likelihood.Bernoulli

    def context(self, condition: Tensor) -> Any: ...
    def encode(self, images: Tensor, context: Any) -> tuple[Tensor, Tensor]: ...
    def decode(self, z: Tensor, context: Any) -> Tensor: ...
    def prior(self, context: Any) -> tuple[Tensor, Tensor]: ...


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, each (N,) nats per image."""

    reconstruction: Tensor
    kl: Tensor


def kl_divergence(mu: Tensor, log_var: Tensor, prior_mu: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL(N(mu, exp log_var) ‖ N(prior_mu, exp prior_log_var)) of diagonal Gaussians, (..., latent) to (...) nats.

    Kingma & Welling 2014, appendix B, for any prior: ½ Σ [log σ_p²/σ_q² + (σ_q² + (μ_q − μ_p)²) / σ_p² − 1].
    """
    ratio = log_var - prior_log_var
    distance = (mu - prior_mu).square() * (-prior_log_var).exp()
    return 0.5 * (ratio.exp() + distance - 1 - ratio).sum(-1)


def terms(model: Autoencoder, images: Tensor, condition: Tensor, noise: Tensor) -> Terms:
    """Reconstruction and KL with one draw z = mu + exp(log_var / 2) · noise (the reparameterisation trick).

    images: (N, 1, 28, 28) in [0, 1]; condition: the CVAE's labels (N,), or a row of numbers for each image (N, C);
    noise: (N, latent) from N(0, I).
    """
    context = model.context(condition)
    mu, log_var = (parameter.to(noise.dtype) for parameter in model.encode(images, context))
    z = mu + (log_var / 2).exp() * noise
    log_prob = model.likelihood.log_prob(model.decode(z, context), images.flatten(1))
    return Terms(-log_prob, kl_divergence(mu, log_var, *model.prior(context)))


def loss(terms: Terms, kl_weight: float | Tensor) -> Tensor:
    """E_x[reconstruction + β · kl] (Higgins 2017, eq. 4); at β = 1 minus the evidence lower bound."""
    return (terms.reconstruction + kl_weight * terms.kl).mean()


def from_article_weight(weight: float, batch_size: int) -> float:
    """β for a loss with pixel-mean reconstruction and batch-summed KL: β = w · 784 · B.

    >>> round(from_article_weight(1e-5, 128), 2)
    1.0
    """
    return weight * PIXELS * batch_size


def to_article_weight(kl_weight: float, batch_size: int) -> float:
    """The article's factor of the same balance: w = β / (784 · B).

    >>> to_article_weight(100_352, 128)
    1.0
    """
    return kl_weight / (PIXELS * batch_size)

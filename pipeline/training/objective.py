"""The objective in nats per image: reconstruction + kl_weight · kl, and its variants."""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from pipeline.base.params import Neutral, Number, params
from pipeline.data.splits import Pixels, to_unit
from pipeline.model import likelihood
from pipeline.model.cvae import Model
from pipeline.model.prior import sampled_kl

Schedule = Literal["constant", "warmup", "cyclical", "capacity"]
Sigma = Annotated[Number, Field(gt=0)]


@params
class ObjectiveParams:
    """The section `objective` of params.yaml."""

    kl_weight: Annotated[Number, Field(ge=0)]
    """β of reconstruction + β · kl; 1 is the evidence lower bound (`cvae weight`)"""
    likelihood: likelihood.Name
    """p(x∣z,y) of the pixels: docs/treatments.md has the list"""
    sigma: Sigma
    """of gaussian, in grey values from 0 to 1; half of it acts like a quarter of kl_weight"""
    pixels: Pixels
    """grey | binary (a new Bernoulli draw of each pixel in every epoch; bernoulli only)"""
    schedule: Schedule
    """of kl_weight: constant | warmup | cyclical | capacity (kl_weight · |kl − C|, C rises)"""
    schedule_share: Annotated[Number, Field(gt=0, le=1)]
    """share of all steps (of each cycle) in which the weight, or C, rises"""
    cycles: Annotated[int, Field(ge=1)]
    """of cyclical"""
    capacity: Annotated[Number, Field(ge=0)]
    """nats per image that C rises to"""
    draws: Annotated[int, Field(ge=1, le=1000), Neutral(1)]
    """samples of z per image; several make the importance-weighted bound"""
    draws_after: Annotated[Number, Field(ge=0, lt=1), Neutral(0)]
    """share of the epochs with one draw; 0.8: several in the last fifth"""
    free_bits: Annotated[Number | None, Field(ge=0)]
    """nats; the loss ignores a latent dimension's kl below it; blank: none"""

    def __post_init__(self) -> None:
        if self.draws > 1 and (self.free_bits or self.schedule == "capacity"):
            other = "free_bits" if self.free_bits else "schedule capacity"
            raise ValueError(f"draws must be 1 with {other}, which limits a mean over draws, not {self.draws}")
        if self.pixels == "binary" and self.likelihood not in (names := likelihood.names_on("binary")):
            raise ValueError(
                f"pixels must be grey with likelihood {self.likelihood}, which is no probability on 0 and 1 alone, "
                f"not {self.pixels!r}: only {', '.join(names)} is"
            )


ELBO = ObjectiveParams(  # the evidence lower bound of grey pixels, without a schedule
    kl_weight=1.0, likelihood="bernoulli", sigma=1.0, pixels="grey", free_bits=None, draws=1, draws_after=0.0,
    schedule="constant", schedule_share=1.0, cycles=1, capacity=0.0,
)  # fmt: skip


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, in nats per image. With K draws of z, each has K in front.

    reconstruction: (N,) or (K, N); kl_by_dimension: (N, latent) or (K, N, latent).
    """

    reconstruction: Tensor
    kl_by_dimension: Tensor

    @property
    def kl(self) -> Tensor:
        """(N,) or (K, N) nats per image."""
        return self.kl_by_dimension.sum(-1)


def terms(model: Model, images: Tensor, condition: Tensor, noise: Tensor) -> Terms:
    """Both terms of E_q[log p(x∣z,y)] − KL(q(z∣x,y) ‖ p(z∣y)) at one draw of z (Kingma & Welling 2014, eq. 3 and 10).

    images: x, (N, 1, 28, 28) in [0, 1], or uint8. condition: y, the CVAE's labels (N,), or numbers for each image
    (N, C). noise: from N(0, I), (N, latent), or (K, N, latent) for K draws.

    With K draws, kl is `sampled_kl` at each draw, as the importance-weighted bound needs it.
    """
    x, y = to_unit(images).to(noise.dtype), model.context(condition)
    q = model.encode(x, y).to(noise.dtype)
    z = q.sample(noise)
    reconstruction = -model.likelihood.log_prob(model.decode(z, y), x.flatten(1))
    p = model.prior()
    return Terms(reconstruction, p.kl(q, z, y) if noise.ndim == 2 else sampled_kl(p, q, z, y))


def loss(
    terms: Terms,
    kl_weight: float | Tensor,
    capacity: float | Tensor | None = None,
    free_bits: float | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """E_x[reconstruction + β · kl] (Higgins 2017, eq. 4); with β = 1, minus the evidence lower bound.

    capacity C: reconstruction + β · |kl − C| (Burgess 2018, eq. 8), with both means over the batch. free_bits λ: the
    loss ignores a dimension's kl below λ nats, its mean over the batch (Kingma 2016, eq. 15).

    With K draws: −E_x[log 1/K Σ exp(−reconstruction − β · kl)]; with β = 1, minus the importance-weighted bound
    (Burda 2016, eq. 8), which lies between the evidence lower bound and log p(x∣y).

    kl_weight may be one of each image, (N,), and share a factor of each image's loss; then without capacity and
    free_bits.
    """
    beta = kl_weight
    if share is not None:
        return (share * (terms.reconstruction + beta * terms.kl)).mean()
    if terms.reconstruction.ndim == 2:
        log_weights = -(terms.reconstruction + beta * terms.kl)
        return (math.log(len(log_weights)) - log_weights.logsumexp(0)).mean()
    if capacity is None and not free_bits:
        return (terms.reconstruction + beta * terms.kl).mean()
    kl = terms.kl_by_dimension.mean(0)
    kl = (kl.clamp(min=free_bits) if free_bits else kl).sum()
    return terms.reconstruction.mean() + beta * (kl if capacity is None else (kl - capacity).abs())

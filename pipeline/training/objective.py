"""The loss in nats per image: reconstruction + kl_weight · kl, and what may be done to the KL on the way."""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from pipeline.base.params import Neutral, Number, params
from pipeline.data.splits import Pixels, to_unit
from pipeline.model import likelihood
from pipeline.model.cvae import Model

Schedule = Literal["constant", "warmup", "cyclical", "capacity"]


@params
class ObjectiveParams:
    """The section `objective` of params.yaml."""

    kl_weight: Annotated[
        Number, Field(ge=0, description="β of reconstruction + β · kl; 1 is the evidence lower bound (`cvae weight`)")
    ]
    likelihood: Annotated[likelihood.Name, Field(description="p(x∣z,y) of the pixels: docs/treatments.md has the list")]
    sigma: Annotated[
        Number,
        Field(gt=0, description="of gaussian, in grey values from 0 to 1; half of it acts like a quarter of kl_weight"),
    ]
    pixels: Annotated[
        Pixels, Field(description="grey | binary (a new Bernoulli draw of each pixel in every epoch; bernoulli only)")
    ]
    schedule: Annotated[
        Schedule,
        Field(description="of kl_weight: constant | warmup | cyclical | capacity (kl_weight · |kl − C|, C rises)"),
    ]
    schedule_share: Annotated[
        Number, Field(gt=0, le=1, description="share of all steps (of each cycle) in which the weight, or C, rises")
    ]
    cycles: Annotated[int, Field(ge=1, description="of cyclical")]
    capacity: Annotated[Number, Field(ge=0, description="nats per image that C rises to")]
    draws: Annotated[
        int,
        Field(ge=1, le=1000, description="samples of z per image; several make the importance-weighted bound"),
        Neutral(1),
    ]
    draws_after: Annotated[
        Number,
        Field(ge=0, lt=1, description="share of the epochs with one draw; 0.8: several in the last fifth"),
        Neutral(0),
    ]
    free_bits: Annotated[
        Number | None, Field(ge=0, description="nats; the loss ignores a latent dimension's kl below it; blank: none")
    ]

    def __post_init__(self) -> None:
        if self.draws > 1 and (self.free_bits or self.schedule == "capacity"):
            other = "free_bits" if self.free_bits else "schedule capacity"
            raise ValueError(f"draws must be 1 with {other}, which is about a mean over draws, not {self.draws}")
        if self.pixels == "binary" and self.likelihood not in (names := likelihood.names_on("binary")):
            raise ValueError(
                f"pixels must be grey with likelihood {self.likelihood}, which is no probability on 0 and 1 alone, "
                f"not {self.pixels!r}: only {', '.join(names)} is"
            )


ELBO = ObjectiveParams(  # of grey pixels as coins, all along
    kl_weight=1.0,
    likelihood="bernoulli",
    sigma=1.0,
    pixels="grey",
    schedule="constant",
    schedule_share=1.0,
    cycles=1,
    capacity=0.0,
    free_bits=None,
    draws=1,
    draws_after=0.0,
)


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, in nats per image: reconstruction (N,), and kl by latent dimension.

    Of several draws each has its own, (K, N) and (K, N, latent).
    """

    reconstruction: Tensor
    kl_by_dimension: Tensor  # (N, latent)

    @property
    def kl(self) -> Tensor:
        """(N,) or (K, N) nats per image."""
        return self.kl_by_dimension.sum(-1)


def terms(model: Model, images: Tensor, condition: Tensor, noise: Tensor) -> Terms:
    """Reconstruction and KL with one draw z = mu + exp(log_var / 2) · noise (the reparameterisation trick).

    images: (N, 1, 28, 28) in [0, 1], or grey ones as uint8; condition: the CVAE's labels (N,), or a row of numbers for
    each image (N, C); noise: (N, latent) from N(0, I), or (K, N, latent) for K draws. Of those kl is
    log q(z∣x,y) − log p(z∣y) at each draw, as the importance-weighted bound needs it, with the same share in every
    dimension.
    """
    context, images = model.context(condition), to_unit(images).to(noise.dtype)
    q = model.encode(images, context).to(noise.dtype)
    z = q.sample(noise)
    log_prob = model.likelihood.log_prob(model.decode(z, context), images.flatten(1))
    prior = model.prior()
    if noise.ndim == 2:
        return Terms(-log_prob, prior.kl(q, z, context))
    ratio = q.log_prob(z) - prior.log_prob(z, context)
    return Terms(-log_prob, (ratio / z.shape[-1]).unsqueeze(-1).expand_as(z))


def loss(
    terms: Terms, kl_weight: float | Tensor, capacity: float | Tensor | None = None, free_bits: float | None = None
) -> Tensor:
    """E_x[reconstruction + β · kl] (Higgins 2017, eq. 4); at β = 1 minus the evidence lower bound.

    `capacity` C: reconstruction + β · |kl − C| (Burgess 2018), both means over the batch. `free_bits` λ: a
    dimension whose KL is below λ nats, on average over the batch, is not pressed any further (Kingma 2016).

    Of K draws, without either: −E_x[log 1/K Σ exp(−reconstruction − β · kl)], at β = 1 minus the importance-weighted
    bound (Burda 2016, eq. 8), which lies between the evidence lower bound and log p(x∣y).
    """
    if terms.reconstruction.ndim == 2:
        log_weights = -(terms.reconstruction + kl_weight * terms.kl)
        return (math.log(len(log_weights)) - log_weights.logsumexp(0)).mean()
    if capacity is None and not free_bits:
        return (terms.reconstruction + kl_weight * terms.kl).mean()
    kl = terms.kl_by_dimension.mean(0)
    kl = (kl.clamp(min=free_bits) if free_bits else kl).sum()
    return terms.reconstruction.mean() + kl_weight * (kl if capacity is None else (kl - capacity).abs())


# KL treatments: functions of the step, from 0 to `steps` − 1


def warmup(step: int, steps: int, share: float) -> float:
    """Share of the KL weight: a linear rise over the share `share` of all steps, then 1 (Sønderby 2016).

    >>> [warmup(step, 100, 0.5) for step in (0, 25, 50, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(step / (share * steps), 1.0)


def cyclical(step: int, steps: int, cycles: int, share: float) -> float:
    """Share of the KL weight: `cycles` warm-ups one after another, each over `share` of its cycle (Fu 2019).

    >>> [cyclical(step, 100, 2, 0.5) for step in (0, 10, 25, 49, 50, 60, 99)]
    [0.0, 0.4, 1.0, 1.0, 0.0, 0.4, 1.0]
    """
    return warmup(step * cycles % steps, steps, share)


def capacity(step: int, steps: int, most: float, share: float) -> float:
    """Nats per image that the KL is led to: a linear rise to `most` over the share `share` of steps (Burgess 2018).

    >>> [capacity(step, 100, 25.0, 0.5) for step in (0, 10, 50, 99)]
    [0.0, 5.0, 25.0, 25.0]
    """
    return most * warmup(step, steps, share)


def pressure(step: int, steps: int, aim: ObjectiveParams) -> tuple[float, float | None]:
    """What `aim.schedule` makes of a step: the factor of the KL weight, and the capacity where one leads the KL.

    The weight itself is not in it: a population's members share the schedule and differ in their weights.
    """
    if aim.schedule == "warmup":
        return warmup(step, steps, aim.schedule_share), None
    if aim.schedule == "cyclical":
        return cyclical(step, steps, aim.cycles, aim.schedule_share), None
    if aim.schedule == "capacity":
        return 1.0, capacity(step, steps, aim.capacity, aim.schedule_share)
    return 1.0, None


def draws(epoch: int, epochs: int, aim: ObjectiveParams) -> int:
    """Of z for each image in an epoch, the first of which is 0."""
    return aim.draws if epoch >= aim.draws_after * epochs else 1

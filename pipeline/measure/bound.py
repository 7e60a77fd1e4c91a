"""How well a model explains images: the iwae bound on log p(x∣y), and the active latent dimensions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.data.splits import Pixels, Split, as_pixels
from pipeline.model.cvae import CVAE, Model
from pipeline.model.gaussian import Normal

ACTIVE = 0.01  # Burda 2016, section 5.2
DECODED_AT_ONCE = 4096  # latents, so that their activations stay in the CPU's cache
DECODED_ON_GPU = 65_536  # the same on a GPU, which is then at work all the time; it takes some GB
ONE_BY_ONE = 64  # with k from here on, a CPU decodes one image's latents at a time (CVAE.decode_one_image)

WIDEST = 10.0  # σ of the proposal ÷ σ of q: at a KL weight of 0.01 and below
FEW = 10.0  # effective samples; with fewer the bound was 0.4 to 1.2 nats too low (docs/lab/likelihood.md)

Told = Callable[[float], None]


class Bound(NamedTuple):
    """log_likelihood: the bound on log p(x∣y), (N,) nats. effective_samples: of the k weights of an image, (N,)."""

    log_likelihood: Tensor
    effective_samples: Tensor


def active_dimensions(mu: Tensor) -> Tensor:
    """Indices of the latent dimensions whose posterior mean (N, latent) varies: Var_x(E_q[z∣x]) > 0.01."""
    return (mu.var(0) > ACTIVE).nonzero().squeeze(1)


def width(kl_weight: float) -> float:
    """σ of the proposal ÷ σ of q, for a model trained with this KL weight β: max(1, β^-½), but at most 10.

    The best q for reconstruction + β · kl is proportional to p(x∣z,y)^(1/β) p(z∣y). Where the pixels decide, its σ is
    √β of the true posterior's. Importance weights of too narrow a proposal have a heavy tail; a wide one costs little.
    For a Gaussian likelihood this holds at the σ that the model has, also at one that was learned.

    >>> [width(beta) for beta in (4.0, 0.25, 0.0)]
    [1.0, 2.0, 10.0]
    """
    return min(max(1.0, kl_weight**-0.5), WIDEST) if kl_weight else WIDEST


def effective_samples(log_weights: Tensor) -> Tensor:
    """(Σ w)² ÷ Σ w² of weights given by their logarithms (k, N): (N,), from 1 to k (Kong 1992)."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


@torch.no_grad()
def log_likelihood(
    model: CVAE, split: Split, pixels: Pixels, k: int, seed: int, kl_weight: float, told: Told = lambda _: None
) -> Bound:
    """The iwae bound (Burda 2016, eq. 8) on log p(x∣y) with k samples of z.

    log 1/k Σ_i p(x∣z_i,y) p(z_i∣y) / r(z_i) with z_i from r, a Gaussian with the mean of q(z∣x,y) and `width` times its
    σ. For any r the expectation is at most log p(x∣y), and rises towards it with k. At a `kl_weight` (the one trained
    with) of 1 and above r is q, and k = 1 gives the evidence lower bound. Binary pixels are sampled once, by `seed`.
    """
    source = torch.Generator(split.images.device).manual_seed(seed)
    images = as_pixels(split.images, pixels, source)
    return importance_weighted(model, images, split.labels, k, source, kl_weight, told)


@torch.no_grad()
def importance_weighted(
    model: Model, images: Tensor, condition: Tensor, k: int, source: torch.Generator, kl_weight: float,
    told: Told = lambda _: None,
) -> Bound:  # fmt: skip
    """The same for images (N, 1, 28, 28) in [0, 1] and any model's condition (N, ...).

    told: is called with the share of the images that are done.

    Nearly all the time goes to the decoder, which runs k times per image. On a CPU a CVAE decodes the latents of one
    image at a time: a dense decoder then skips idle units, and activations of convolutions stay in the cache.
    """
    one_by_one = k >= ONE_BY_ONE and images.device.type == "cpu"

    def log_p_x(z: Tensor, x: Tensor, context: Any) -> Tensor:
        """log p(x∣z) of latents (K, N, latent) and pixels (N, 784): (K, N)."""
        if not (one_by_one and isinstance(model, CVAE)):
            return model.likelihood.log_prob(model.decode(z, context), x)
        rows = zip(z.unbind(1), context.split(1), x.split(1), strict=True)
        outputs = ((model.decode_one_image(latents, label), pixels) for latents, label, pixels in rows)
        return torch.stack([model.likelihood.log_prob(output, pixels) for output, pixels in outputs], 1)

    at_once = DECODED_ON_GPU if images.is_cuda else DECODED_AT_ONCE
    images_at_once, samples_at_once = max(at_once // k, 1), min(k, at_once)
    bound = Bound(*torch.empty(2, len(images), device=images.device))
    prior, wider = model.prior(), 2 * math.log(width(kl_weight))
    for start in range(0, len(images), images_at_once):
        rows = slice(start, start + images_at_once)
        x, context = images[rows], model.context(condition[rows])
        mu, log_var = model.encode(x, context)
        proposal = Normal(mu, log_var + wider)
        log_ratio = torch.empty(k, len(x), device=mu.device)
        for first in range(0, k, samples_at_once):
            noise = torch.randn(min(samples_at_once, k - first), *mu.shape, generator=source, device=mu.device)
            z = proposal.sample(noise)
            log_r = prior.log_prob(z, context) - proposal.log_prob(z)
            log_ratio[first : first + samples_at_once] = log_p_x(z, x.flatten(1), context) + log_r
        bound.log_likelihood[rows] = log_ratio.logsumexp(0) - math.log(k)
        bound.effective_samples[rows] = effective_samples(log_ratio)
        told(min(rows.stop / len(images), 1))
    return bound

"""The KL weight of any loss in our units: β of `reconstruction + β · kl`, both in nats per image.

A loss as people write it sums or averages its two terms over pixels, latents and the batch. An optimizer like Adam
ignores a common factor, so only the ratio of the two terms counts. docs/weights.md explains it and has the sources of
CONVENTIONS.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pipeline.data.splits import PIXELS

Reconstruction = Literal["bce", "mse", "half-mse", "l1"]
Over = Literal["sum", "mean"]

# The likelihood whose −log p is the error itself, up to a constant: a Gaussian of this σ, or a Laplace of this scale.
SPREAD: dict[Reconstruction, float | None] = {"bce": None, "mse": math.sqrt(0.5), "half-mse": 1.0, "l1": 1.0}


@dataclass(frozen=True)
class Loss:
    """reconstruction + weight · factor · kl, as it is written.

    reconstruction: of one pixel, the cross entropy, the squared error, half of it, or the absolute error. over_pixels,
    over_batch: how it is reduced over the values of an image and over the images of a batch. kl_over_latents,
    kl_over_batch: the same of the kl. factor: of the kl, such as batch size ÷ data-set size.
    """

    weight: float
    reconstruction: Reconstruction = "bce"
    over_pixels: Over = "sum"
    over_batch: Over = "sum"
    kl_over_latents: Over = "sum"
    kl_over_batch: Over = "sum"
    factor: float = 1.0
    pixels: int = PIXELS
    latents: int = 16
    batch_size: int = 128

    @property
    def scale(self) -> float:
        """β ÷ weight: how much heavier a nat of the kl is than the weight says."""
        scale = self.factor
        for over, size in ((self.over_pixels, self.pixels), (self.over_batch, self.batch_size)):
            scale *= size if over == "mean" else 1
        for over, size in ((self.kl_over_latents, self.latents), (self.kl_over_batch, self.batch_size)):
            scale /= size if over == "mean" else 1
        return scale

    @property
    def beta(self) -> float:
        """β in nats per image; of an MSE or L1, with the likelihood whose spread is SPREAD.

        >>> round(Loss(1e-5, over_pixels="mean", over_batch="mean").beta, 2)
        1.0
        """
        return self.weight * self.scale

    @property
    def spread(self) -> float | None:
        """The σ of a Gaussian (of an L1 the scale of a Laplace) with which the loss is the evidence lower bound.

        The squared error ÷ 2σ² plus the kl is the loss with β = 1. None for a cross entropy, which has none.

        >>> round(Loss(0.5, "half-mse").spread, 3)
        0.707
        """
        first = SPREAD[self.reconstruction]
        if first is None:
            return None
        return first * (self.beta if self.reconstruction == "l1" else math.sqrt(self.beta))

    def beta_at(self, sigma: float) -> float:
        """β of the same loss under a likelihood of another σ (of an L1, another scale). A cross entropy has none."""
        spread = self.spread
        if spread is None:
            return self.beta
        return spread / sigma if self.reconstruction == "l1" else (spread / sigma) ** 2

    def at(self, beta: float) -> "Loss":
        """The same loss with the weight that has this β."""
        return replace(self, weight=beta / self.scale)


class Convention(NamedTuple):
    """A loss that people know by name. said: whose it is; the sizes are those of its own example."""

    loss: Loss
    said: str


ARTICLE = Loss(1e-5, over_pixels="mean", over_batch="mean", latents=8)
CONVENTIONS = {
    "article": Convention(ARTICLE, "the source article's second loss, if its criterion is a mean BCE"),
    "article-sum": Convention(Loss(1.0, latents=8), "the source article's first loss: both terms are sums"),
    "pytorch": Convention(Loss(1.0, latents=20), "PyTorch's example (examples/vae)"),
    "keras": Convention(Loss(1.0, over_batch="mean", kl_over_batch="mean", latents=2), "Keras's example of a VAE"),
    "pytorch-vae": Convention(
        Loss(0.00025, "mse", "mean", "mean", kl_over_batch="mean", pixels=3 * 64 * 64, latents=128, batch_size=64),
        "AntixK/PyTorch-VAE's M_N, VanillaVAE on CelebA",
    ),
    "pythae": Convention(
        Loss(1.0, "half-mse", over_batch="mean", kl_over_batch="mean", batch_size=64), "pythae's VAE, and β of BetaVAE"
    ),
    "beta-vae": Convention(
        Loss(1.0, "bce", "mean", "mean", "mean", "mean", latents=10), "the normalised β of Higgins 2017, β · M ÷ N"
    ),
    "pyro": Convention(Loss(1.0, latents=50, batch_size=256), "Pyro's example of a VAE"),
    "latent-diffusion": Convention(
        Loss(1e-6, "l1", over_batch="mean", kl_over_batch="mean", pixels=3 * 256**2, latents=4 * 32**2, batch_size=12),
        "CompVis/latent-diffusion's AutoencoderKL, without its perceptual and adversarial terms",
    ),
}


def from_article_weight(weight: float, batch_size: int) -> float:
    """β of an article weight w: β = w · 784 · B.

    >>> round(from_article_weight(1e-5, 128), 2)
    1.0
    """
    return replace(ARTICLE, weight=weight, batch_size=batch_size).beta


def article_readings() -> dict[str, Loss]:
    """Readings of the article's second loss, whose text does not show its criterion, and how each reduces the batch."""
    by_sum, by_mean = replace(ARTICLE, over_pixels="sum", over_batch="sum"), replace(ARTICLE, kl_over_batch="mean")
    return {
        "mean BCE, KL summed": ARTICLE,
        "mean BCE, KL averaged": by_mean,
        "mean squared error, KL summed": replace(ARTICLE, reconstruction="mse"),
        "mean squared error, KL averaged": replace(by_mean, reconstruction="mse"),
        "summed BCE, KL summed": by_sum,
        "summed squared error, KL summed": replace(by_sum, reconstruction="mse"),
    }

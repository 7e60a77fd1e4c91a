"""A density fitted to the latents after training: a mixture of Gaussians for each class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pipeline.data.splits import CLASSES, Pixels, Split, as_pixels, epoch_seed
from pipeline.model import mixture
from pipeline.model.cvae import CVAE
from pipeline.model.gaussian import LOG_2PI, Normal
from pipeline.model.mixture import Mixture

Components = Annotated[int, Field(ge=1, description="Gaussians in the mixture of each class")]
ENCODED_AT_ONCE = 4096  # images, so that their activations stay in the CPU's cache


class Density(Mixture):
    """A mixture of C Gaussians over z for each class: weights (10, C), means (10, C, latent), roots of covariances."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (..., 10, latent) and covariance (..., 10, latent, latent) of each class."""
        mean = torch.einsum("...k,...ki->...i", self.weights, self.means)
        offset = self.means - mean.unsqueeze(-2)
        within = torch.einsum("...k,...kij,...klj->...il", self.weights, self.roots, self.roots)
        return mean, within + torch.einsum("...k,...ki,...kj->...ij", self.weights, offset, offset)

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        """log p(z∣y) of latents (N, latent) with labels (N,): (N,) nats, in float64."""
        result = z.new_empty(len(z), dtype=torch.float64)
        for digit in range(CLASSES):
            used = self.weights[digit] > 0
            weights, means, roots = (part[digit, used].double() for part in self)
            log_volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + z.shape[1] / 2 * LOG_2PI
            for rows in (labels == digit).nonzero().squeeze(1).split(1000):
                offset = torch.linalg.solve_triangular(roots, (z[rows] - means[:, None]).mT, upper=False)
                by_component = weights.log() - log_volume - offset.square().sum(1).T / 2  # (n, C)
                result[rows] = by_component.logsumexp(1)
        return result

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (N, latent) for labels (N,)."""
        component = torch.multinomial(self.weights[labels], 1, generator=generator).squeeze(1)
        noise = torch.randn(len(labels), self.means.shape[-1], generator=generator, device=labels.device)
        return self.means[labels, component] + torch.einsum("nij,nj->ni", self.roots[labels, component], noise)


@dataclass(frozen=True)
class Densities:
    """Densities of one network along the KL weight: at each of W weights, which rise, mixtures of the same components.

    kl_weights: (W,). stacked: W densities in one, whose tensors have another dimension W in front.
    """

    kl_weights: Tensor
    stacked: Density

    def tensors(self) -> dict[str, Tensor]:
        return {"kl_weights": self.kl_weights, **self.stacked._asdict()}

    def at(self, kl_weight: float) -> Density:
        """The density at a weight; between two of the weights, each component is mixed linearly in log β."""
        logs = self.kl_weights.log()
        after = int((self.kl_weights <= kl_weight).sum().clamp(1, len(logs) - 1))
        share = float((math.log(kl_weight) - logs[after - 1]) / (logs[after] - logs[after - 1]))
        share = min(max(share, 0.0), 1.0)
        return Density(*(torch.lerp(one[after - 1], one[after], share) for one in self.stacked))


def stacked(densities: Sequence[Density], kl_weights: Sequence[float]) -> Densities:
    """Densities that were fitted one after another, from weights that rise, as one."""
    return Densities(torch.tensor(kl_weights), Density(*map(torch.stack, zip(*densities, strict=True))))


@torch.no_grad()
def posteriors(model: CVAE, split: Split, pixels: Pixels, seed: int = 0) -> Normal:
    """q(z∣x,y) of every image of a split, (N, latent); `seed` is of binary pixels."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    parts = []
    for start in range(0, len(split), ENCODED_AT_ONCE):
        part = split[slice(start, start + ENCODED_AT_ONCE)]
        parts.append(model.encode(as_pixels(part.images, pixels, source), part.labels))
    return Normal(*(torch.cat(column) for column in zip(*parts, strict=True)))


def posterior_samples(model: CVAE, split: Split, pixels: Pixels, seed: int) -> Tensor:
    """One sample of q(z∣x,y) for each image of a split, (N, latent)."""
    q = posteriors(model, split, pixels, seed)
    source = torch.Generator(q.mu.device).manual_seed(epoch_seed(seed, 1))  # not the noise of the pixels
    return q.sample(torch.randn(q.mu.shape, generator=source, device=q.mu.device))


def fit_density(
    model: CVAE, split: Split, pixels: Pixels, components: int, seed: int, start: Density | None = None
) -> Density:
    """A mixture fitted to each class's aggregate posterior, E_x[q(z∣x,y)] over a split, from one sample z per image.

    After training, the aggregate posterior need not fill the prior. Where it does not, latents from the prior fall
    into regions that the decoder was never trained on (Rosca 2018; ex-post density estimation: Ghosh 2020).
    A class with fewer than two images per component gets fewer components; with fewer than two images, N(0, I).
    start: the density of a similar model, whose components keep their order (mixture.fit).
    Raises ValueError where latents are not finite.
    """
    z = posterior_samples(model, split, pixels, seed)
    before = None if start is None else Mixture(*(part.double() for part in start))
    return Density(*(part.float() for part in mixture.fit(z, split.labels, CLASSES, components, seed, before)))

"""Where samples come from: codes from the prior or from a density fitted to the latents, decoded to images."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.base.params import params
from pipeline.data.splits import CLASSES, SIDE, Pixels, Split, as_pixels, epoch_seed
from pipeline.model.cvae import CVAE, one_hot
from pipeline.model.gaussian import LOG_2PI, Normal

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

Sampler = Literal["prior", "fitted"]
Components = Annotated[int, Field(ge=1, description="Gaussians in the mixture of each class")]
RESTED = 1e-2  # nats that a step of the fit gains a code; with a tenth of it, samples are as good in twice the time
SAMPLERS: tuple[Sampler, ...] = ("prior", "fitted")
ENCODED_AT_ONCE = 4096  # images: their activations still fit a processor's cache
Shown = Literal["mean", "draw"]


@params
class SampleParams:
    """The section `sample` of params.yaml."""

    sampler: Annotated[Sampler, Field(description="fitted (a mixture fitted to the latents of each class) | prior")]
    components: Components
    shown: Annotated[Shown, Field(description="mean | draw: samples have expected pixels or drawn ones")]


@dataclass(frozen=True)
class Density:
    """A mixture of Gaussians over z for each class.

    weights: (10, C); means: (10, C, latent); roots: (10, C, latent, latent), lower Cholesky factors of the
    covariances.
    """

    weights: Tensor
    means: Tensor
    roots: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "means": self.means, "roots": self.roots}

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (10, latent) and covariance (10, latent, latent) of each class."""
        mean = torch.einsum("ck,cki->ci", self.weights, self.means)
        away = self.means - mean[:, None]
        within = torch.einsum("ck,ckij,cklj->cil", self.weights, self.roots, self.roots)
        return mean, within + torch.einsum("ck,cki,ckj->cij", self.weights, away, away)

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        """log p(z∣y) of codes (N, latent) with labels (N,): (N,) nats, in float64."""
        found = z.new_empty(len(z), dtype=torch.float64)
        for digit in range(CLASSES):
            used = self.weights[digit] > 0
            weights, means, roots = (part[digit, used].double() for part in (self.weights, self.means, self.roots))
            log_volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + z.shape[1] / 2 * LOG_2PI
            for rows in (labels == digit).nonzero().squeeze(1).split(1000):
                away = torch.linalg.solve_triangular(roots, (z[rows] - means[:, None]).mT, upper=False)
                parts = weights.log() - log_volume - away.square().sum(1).T / 2  # (n, C)
                found[rows] = parts.logsumexp(1)
        return found

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (N, latent) for labels (N,)."""
        component = torch.multinomial(self.weights[labels], 1, generator=generator).squeeze(1)
        noise = torch.randn(len(labels), self.means.shape[-1], generator=generator, device=labels.device)
        return self.means[labels, component] + torch.einsum("nij,nj->ni", self.roots[labels, component], noise)


@torch.no_grad()
def posteriors(model: CVAE, split: Split, pixels: Pixels, seed: int = 0) -> Normal:
    """q(z∣x,y) of every image of a split, (N, latent)."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    parts = []
    for start in range(0, len(split), ENCODED_AT_ONCE):
        part = split[slice(start, start + ENCODED_AT_ONCE)]
        parts.append(model.encode(as_pixels(part.images, pixels, source), part.labels))
    return Normal(*(torch.cat(column) for column in zip(*parts, strict=True)))


def fit_density(model: CVAE, split: Split, pixels: Pixels, components: int, seed: int) -> Density:
    """A mixture fitted to each class's aggregate posterior, E_x[q(z∣x,y)] over a split.

    After training, the codes that the encoder uses need not fill the prior: where they don't, codes from the prior
    fall into holes that the decoder never saw (Rosca 2018; ex-post density estimation: Ghosh 2020). One draw of z an
    image stands for its posterior. A class with fewer images than components gets fewer of them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    z = encoded(model, split, pixels, seed)
    codes, labels = z.cpu().double().numpy(), split.labels.cpu().numpy()
    size = codes.shape[1]
    weights = np.zeros((CLASSES, components))
    means = np.zeros((CLASSES, components, size))
    roots = np.zeros((CLASSES, components, size, size))
    with (
        threadpool_limits(1),  # matrices of 16 × 16: a product's threads would only wait for one another
        warnings.catch_warnings(),
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        # A mixture that still creeps up after a hundred steps samples as well as one that has come to rest.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classes = [codes[labels == digit] for digit in range(CLASSES)]
        for digit, mixture in enumerate(pool.map(lambda rows: _mixture(rows, components, seed), classes)):
            if mixture is None:
                weights[digit, 0], roots[digit] = 1, np.eye(size)  # nothing is known of the class
                continue
            count = mixture.n_components
            weights[digit, :count] = mixture.weights_
            means[digit, :count] = mixture.means_
            roots[digit, :count] = np.linalg.cholesky(mixture.covariances_)
    return Density(*(torch.from_numpy(array).float().to(z.device) for array in (weights, means, roots)))


def encoded(model: CVAE, split: Split, pixels: Pixels, seed: int) -> Tensor:
    """One sample of q(z∣x,y) for each image of a split, (N, latent)."""
    q = posteriors(model, split, pixels, seed)
    source = torch.Generator(q.mu.device).manual_seed(epoch_seed(seed, 1))  # not the noise of the pixels
    return q.sample(torch.randn(q.mu.shape, generator=source, device=q.mu.device))


def _mixture(rows: np.ndarray, components: int, seed: int) -> "GaussianMixture | None":
    """None where there are too few rows to fit."""
    from sklearn.mixture import GaussianMixture

    if len(rows) < 2:
        return None
    count = min(components, len(rows) // 2)
    return GaussianMixture(count, random_state=seed, reg_covar=1e-4, tol=RESTED).fit(rows)


@torch.no_grad()
def prior_codes(model: CVAE, labels: Tensor, seed: int) -> Tensor:
    """Codes z (N, latent) from the model's own p(z∣y); the same labels and seed give the same noise."""
    return model.prior().sample(labels, torch.Generator(labels.device).manual_seed(seed))


@torch.no_grad()
def decode(model: CVAE, z: Tensor, labels: Tensor, seed: int | None = None) -> Tensor:
    """Expected images (N, 1, 28, 28) float32 in [0, 1] of codes (N, latent); with a seed, draws of their pixels.

    A draw of a Gaussian's pixels may lie outside [0, 1]: it is cut there, as a screen would.
    """
    source = None if seed is None else torch.Generator(z.device).manual_seed(seed)
    images = []
    for z_part, label_part in zip(z.split(1000), labels.split(1000), strict=True):
        outputs = model.decode(z_part, label_part)
        images.append(model.likelihood.mean(outputs) if source is None else model.likelihood.sample(outputs, source))
    return torch.cat(images).clamp(0, 1).view(-1, 1, SIDE, SIDE)


def codes(model: CVAE, density: Density | None, labels: Tensor, sampler: Sampler, seed: int) -> Tensor:
    """Codes z (N, latent) for the asked labels (N,).

    Raises ValueError where the fitted sampler is asked for without a density.
    """
    if sampler == "prior":
        return prior_codes(model, labels, seed)
    if density is None:
        raise ValueError("the fitted sampler needs a density")
    return density.sample(labels, torch.Generator(labels.device).manual_seed(seed))


def draw(
    model: CVAE,
    density: Density | None,
    labels: Tensor,
    sampler: Sampler,
    seed: int,
    shown: Shown = "mean",
) -> Tensor:
    """Samples (N, 1, 28, 28) float32 in [0, 1] of the asked labels (N,), from `codes`."""
    z = codes(model, density, labels, sampler, seed)
    return decode(model, z, labels, epoch_seed(seed, 1) if shown == "draw" else None)  # other noise than the codes'


def preview(model: CVAE) -> np.ndarray:
    """A sheet of samples from the prior, a row a digit, the same noise at every call: (H, W) uint8."""
    labels = rows_of_digits(CLASSES).to(model.mu.weight.device)
    return sheet(decode(model, prior_codes(model, labels, seed=0), labels), columns=CLASSES)


def rows_of_digits(columns: int) -> Tensor:
    """Labels (10 · columns,) of a sheet with a row for each digit."""
    return torch.arange(CLASSES).repeat_interleave(columns)


def sheet(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Images (R · columns, 1, 28, 28) in [0, 1] as one picture (H, W) uint8, dark ink on white, row by row."""
    ink = images.detach().cpu().numpy().reshape(-1, columns, SIDE, SIDE)
    rows, cell = len(ink), SIDE + gap
    picture = np.zeros((rows, cell, columns, cell))
    picture[:, :SIDE, :, :SIDE] = ink.transpose(0, 2, 1, 3)
    whole = picture.reshape(rows * cell, columns * cell)[: -gap or None, : -gap or None]
    return (255 - whole * 255).round().astype(np.uint8)


@torch.no_grad()
def traverse(model: CVAE, digit: int, dimension: int, values: Tensor) -> Tensor:
    """Images (V, 1, 28, 28) of one digit at the prior's mean, moved along one latent dimension to each value (V,)."""
    labels = torch.full((len(values),), digit, device=values.device)
    z = model.prior().mean(labels).clone()
    z[:, dimension] = values
    return decode(model, z, labels)


def interpolate(model: CVAE, first: Tensor, last: Tensor, digits: tuple[int, int], steps: int) -> Tensor:
    """Images (N, steps, 28, 28) on the way from codes `first` of one digit to `last` of another, each (N, latent).

    Codes turn on a great circle (White 2016), since those halfway along a chord lie nearer to 0 than any that the
    decoder has seen; the label is mixed.
    """
    share = torch.linspace(0, 1, steps, device=first.device)[:, None]
    start, end = one_hot(torch.tensor(digits, device=first.device), first.dtype)
    labels = (start + share * (end - start)).repeat(len(first), 1)
    z = torch.cat([_turn(a, b, share) for a, b in zip(first, last, strict=True)])
    return decode(model, z, labels).view(len(first), steps, SIDE, SIDE)


def _turn(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """From `first` to `last`, each (latent,), at shares (S, 1) of the angle between them, to (S, latent)."""
    cosine = (first @ last / (first.norm() * last.norm()).clamp_min(1e-12)).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin() < 1e-3:  # nearly parallel: the straight line
        return first + share * (last - first)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()


def styles(model: CVAE, density: Density, count: int, sampler: Sampler, seed: int) -> Tensor:
    """Codes (count, 10, latent) of one style in each row, for every digit.

    `prior`: the same noise for all ten, and the very same code where the prior is one for all. `fitted`: below β = 1 a
    code still tells its digit, and each class has a region of its own; so one draw of N(0, I) is the style, and its
    place in each class's Gaussian the code.
    """
    if sampler == "prior":
        digits = torch.arange(CLASSES, device=density.means.device)[:, None].expand(-1, count)
        return torch.stack([prior_codes(model, labels, seed) for labels in digits], 1)
    mean, covariance = density.moments()
    values, axes = torch.linalg.eigh(covariance)
    root = axes * values.clamp_min(0).sqrt().unsqueeze(-2) @ axes.mT  # symmetric: it turns no axis into another
    source = torch.Generator(mean.device).manual_seed(seed)
    noise = torch.randn(count, mean.shape[-1], generator=source, device=mean.device)
    return mean + torch.einsum("cij,nj->nci", root, noise)


def morph(model: CVAE, z: Tensor, steps: int = 1) -> Tensor:
    """Images (N, 10 · steps, 28, 28) of codes (N, 10, latent) for every digit, in `steps` from one to the next.

    Label and code are mixed alike on the way. After 9 it turns back to 0.
    """
    share = torch.linspace(0, 1, steps + 1, device=z.device)[:-1, None]
    hot = torch.eye(CLASSES, device=z.device)
    path = torch.cat([a + share * (b - a) for a, b in zip(hot, hot.roll(-1, 0), strict=True)])
    images = decode(model, (path @ z).flatten(0, 1), path.repeat(len(z), 1))
    return images.view(len(z), len(path), SIDE, SIDE)

"""Samples: latents from the prior or from a fitted density, decoded to images."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.base.params import params
from pipeline.data.splits import CLASSES, SIDE, epoch_seed
from pipeline.model.cvae import CVAE
from pipeline.model.density import Components, Density
from pipeline.model.networks import one_hot

Sampler = Literal["prior", "fitted"]
Shown = Literal["mean", "draw"]
SAMPLERS: tuple[Sampler, ...] = ("prior", "fitted")
DECODED_AT_ONCE = 1000


@params
class SampleParams:
    """The section `sample` of params.yaml."""

    sampler: Sampler
    """fitted (a mixture fitted to the latents of each class) | prior"""
    components: Components
    shown: Shown
    """mean | draw: samples have expected pixels or drawn ones"""


@torch.no_grad()
def latents(model: CVAE, density: Density | None, labels: Tensor, sampler: Sampler, seed: int) -> Tensor:
    """z (N, latent) for the asked labels (N,). The same seed and number of labels give the same noise.

    Raises ValueError if the fitted sampler is asked for without a density.
    """
    source = torch.Generator(labels.device).manual_seed(seed)
    if sampler == "prior":
        return model.prior().sample(labels, source)
    if density is None:
        raise ValueError("the fitted sampler needs a density")
    return density.sample(labels, source)


@torch.no_grad()
def decode(model: CVAE, z: Tensor, labels: Tensor, seed: int | None = None) -> Tensor:
    """Latents (N, latent) to expected images (N, 1, 28, 28) float32 in [0, 1]; with a seed, to samples of the pixels.

    A sample of a Gaussian's pixels may lie outside [0, 1]. It is clipped, as a screen would.
    """
    source = None if seed is None else torch.Generator(z.device).manual_seed(seed)
    images = []
    for z_part, label_part in zip(z.split(DECODED_AT_ONCE), labels.split(DECODED_AT_ONCE), strict=True):
        outputs = model.decode(z_part, label_part)
        images.append(model.likelihood.mean(outputs) if source is None else model.likelihood.sample(outputs, source))
    return torch.cat(images).clamp(0, 1).view(-1, 1, SIDE, SIDE)


def sample(
    model: CVAE, density: Density | None, labels: Tensor, sampler: Sampler, seed: int, shown: Shown = "mean"
) -> Tensor:
    """Images (N, 1, 28, 28) float32 in [0, 1] of the asked labels (N,), from `latents`."""
    z = latents(model, density, labels, sampler, seed)
    return decode(model, z, labels, epoch_seed(seed, 1) if shown == "draw" else None)  # not the noise of z


def preview(model: CVAE) -> np.ndarray:
    """A sheet of samples from the prior, one row per digit, with the same noise at every call: (H, W) uint8."""
    labels = rows_of_digits(CLASSES).to(model.mu.weight.device)
    return sheet(sample(model, None, labels, "prior", seed=0), columns=CLASSES)


def strip(model: CVAE, density: Density) -> np.ndarray:
    """Two rows of ten digits, from the prior and the fitted density, always of the same noise: (H, W) uint8."""
    digits = torch.arange(CLASSES, device=model.mu.weight.device)
    return sheet(torch.cat([sample(model, density, digits, sampler, seed=0) for sampler in SAMPLERS]), CLASSES)


def rows_of_digits(columns: int) -> Tensor:
    """Labels (10 · columns,) of a sheet with one row per digit."""
    return torch.arange(CLASSES).repeat_interleave(columns)


def sheet(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Images (R · columns, 1, 28, 28) in [0, 1] as one picture (H, W) uint8, row by row, dark ink on white."""
    ink = images.detach().cpu().numpy().reshape(-1, columns, SIDE, SIDE)
    rows, cell = len(ink), SIDE + gap
    picture = np.zeros((rows, cell, columns, cell))
    picture[:, :SIDE, :, :SIDE] = ink.transpose(0, 2, 1, 3)
    whole = picture.reshape(rows * cell, columns * cell)[: -gap or None, : -gap or None]
    return (255 - whole * 255).round().astype(np.uint8)


@torch.no_grad()
def traverse(model: CVAE, digit: int, dimension: int, values: Tensor) -> Tensor:
    """Images (V, 1, 28, 28) of one digit at the prior's mean, with one latent dimension set to each value (V,)."""
    labels = torch.full((len(values),), digit, device=values.device)
    z = model.prior().mean(labels).clone()
    z[:, dimension] = values
    return decode(model, z, labels)


def interpolate(model: CVAE, first: Tensor, last: Tensor, digits: tuple[int, int], steps: int) -> Tensor:
    """Images (N, steps, 28, 28) on the way from latents `first` of one digit to `last` of another, each (N, latent).

    Latents move on a great circle (White 2016): the middle of a straight line lies nearer to 0 than the latents that
    the decoder was trained on. The label is mixed linearly.
    """
    share = torch.linspace(0, 1, steps, device=first.device)[:, None]
    start, end = one_hot(torch.tensor(digits, device=first.device), first.dtype)
    labels = (start + share * (end - start)).repeat(len(first), 1)
    z = torch.cat([_turn(a, b, share) for a, b in zip(first, last, strict=True)])
    return decode(model, z, labels).view(len(first), steps, SIDE, SIDE)


def _turn(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """From `first` to `last`, each (latent,), at shares (S, 1) of the angle between them: (S, latent)."""
    cosine = (first @ last / (first.norm() * last.norm()).clamp_min(1e-12)).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin() < 1e-3:  # nearly parallel: a straight line
        return first + share * (last - first)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()


def styles(model: CVAE, density: Density, count: int, sampler: Sampler, seed: int) -> Tensor:
    """Latents (count, 10, latent): each row is one style, written as each of the ten digits.

    `prior`: the digits share their noise, and where the prior is the same for all labels, their z. `fitted`: below
    β = 1 the latents still depend on the digit, and each class has its own region. A sample of N(0, I) is the style,
    and each class's Gaussian (mean and covariance of the density) takes it to a z.
    """
    if sampler == "prior":
        digits = torch.arange(CLASSES, device=density.means.device)[:, None].expand(-1, count)
        return torch.stack([latents(model, None, labels, "prior", seed) for labels in digits], 1)
    mean, covariance = density.moments()
    root = symmetric_root(covariance)
    source = torch.Generator(mean.device).manual_seed(seed)
    noise = torch.randn(count, mean.shape[-1], generator=source, device=mean.device)
    return mean + torch.einsum("cij,nj->nci", root, noise)


def symmetric_root(covariances: Tensor) -> Tensor:
    """R = Rᵀ with R R = Σ, of covariances (..., latent, latent). Unlike a Cholesky factor, it rotates no axis."""
    values, axes = torch.linalg.eigh(covariances)
    return axes * values.clamp_min(0).sqrt().unsqueeze(-2) @ axes.mT


def morph(model: CVAE, z: Tensor, steps: int = 1) -> Tensor:
    """Images (N, 10 · steps, 28, 28) of latents (N, 10, latent), from each digit to the next in `steps`, 9 back to 0.

    Label and z are both mixed linearly.
    """
    share = torch.linspace(0, 1, steps + 1, device=z.device)[:-1, None]
    hot = torch.eye(CLASSES, device=z.device)
    path = torch.cat([a + share * (b - a) for a, b in zip(hot, hot.roll(-1, 0), strict=True)])
    images = decode(model, (path @ z).flatten(0, 1), path.repeat(len(z), 1))
    return images.view(len(z), len(path), SIDE, SIDE)

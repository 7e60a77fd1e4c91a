"""Mixtures of Gaussians, fitted to many groups of rows at once by expectation–maximisation (Dempster 1977).

log(w N(x; μ, Σ)) is θ · φ(x), linear in the features φ(x) = (1, x_i, x_i x_j for i ≤ j). So both halves of a step are
one matrix product each: shares of the components come from θ · φ(x), and weights, means and covariances from the sums
of share · φ(x). All is in float64, because covariances are differences of such sums. The loop never waits for the
device. docs/lab/density.md compares it with scikit-learn's.

Shapes: G groups, C components, L dimensions, N rows of the largest group (others are padded), F features.
"""

import itertools
import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.base.device import one_thread
from pipeline.model.gaussian import LOG_2PI

FLOOR = 1e-4  # added to every variance, so that a component of equal rows remains a density
LLOYD_STEPS = 10
STEPS = 10  # more fit the training latents better, and unseen ones no better
ABSENT = 1e-9  # rows: a component with a smaller share of all rows together is given up
AT_ONCE, AT_ONCE_ON_GPU = 2**18, 2**27  # numbers in the features of a block of rows


class Mixture(NamedTuple):
    """weights: (G, C), 0 for unused components; means: (G, C, L); roots: (G, C, L, L), lower Cholesky factors."""

    weights: Tensor
    means: Tensor
    roots: Tensor


@torch.no_grad()
@one_thread()
def fit(rows: Tensor, groups: Tensor, count: int, components: int, seed: int, start: Mixture | None = None) -> Mixture:
    """A mixture, in float64, for each of `count` groups of rows (N, L) that belong to groups (N,).

    A group with fewer than two rows per component gets fewer components; with fewer than two rows, N(0, I).
    start: a mixture of similar rows. Its components, moved, are then those of the result, in the same order.
    Raises ValueError where rows are not finite, or too large for float64.
    """
    source = torch.Generator(rows.device).manual_seed(seed)
    x, present = _grouped(rows.double(), groups, count)
    sizes = present.sum((1, 2))
    middle = x.sum(2) / sizes.clamp_min(1)[:, None]
    x = (x - middle[..., None]) * present  # around 0, differences of sums keep more digits
    unused = torch.arange(components, device=x.device) >= (sizes // 2).clamp_min(1)[:, None]

    if start is None:
        centres = _spread(x, present, components, source)
        for _ in range(LLOYD_STEPS):
            sums = _sums(x, present, _distances(centres, unused), _linear, _nearest)
            size = sums[..., :1]
            centres = torch.where(size > 0, sums[..., 1:] / size, centres)
        sums = _sums(x, present, _distances(centres, unused), _quadratic, _nearest)
    else:
        moved = start._replace(means=start.means - middle[:, None])
        sums = _sums(x, present, _log_densities(moved), _quadratic, _likely)
    for _ in range(STEPS):
        sums = _sums(x, present, _log_densities(_maximise(sums, x.shape[1])), _quadratic, _likely)
    weights, means, roots = _maximise(sums, x.shape[1])

    few = (sizes < 2)[:, None]
    weights = torch.where(few, (~unused).double(), weights)
    means = torch.where(few[..., None], 0, means + middle[:, None])
    roots = torch.where(few[..., None, None], torch.eye(x.shape[1], dtype=x.dtype, device=x.device), roots)
    if not torch.cat([rows.flatten(), roots.flatten()]).isfinite().all():
        raise ValueError("no mixture can be fitted: latents are not finite, or too large for float64")
    return Mixture(weights, means, roots)


def _grouped(rows: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of each group side by side (G, L, N), and (G, 1, N), which is 1 for a row and 0 for padding."""
    sizes = torch.bincount(groups, minlength=count)
    order = groups.argsort(stable=True)
    group = groups[order]
    place = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[group]
    x = rows.new_zeros(count, int(sizes.max()), rows.shape[1])
    present = x.new_zeros(x.shape[:2])
    x[group, place], present[group, place] = rows[order], 1
    return x.mT.contiguous(), present[:, None]


def _spread(x: Tensor, present: Tensor, components: int, source: torch.Generator) -> Tensor:
    """First centres (G, C, L): rows far from each other, by k-means++ (Arthur & Vassilvitskii 2007)."""
    chance, centres = present, []
    for _ in range(components):
        race = torch.empty_like(chance).exponential_(generator=source)
        chosen = (chance / race).argmax(2, keepdim=True)  # a row wins with a probability in proportion to its chance
        centres.append(x.take_along_dim(chosen, 2))
        distance = (x - centres[-1]).square().sum(1, keepdim=True) * present
        chance = distance if len(centres) == 1 else torch.minimum(chance, distance)
    return torch.cat(centres, 2).mT


def _linear(x: Tensor) -> Tensor:
    """Features 1, x: (G, L, n) to (G, F, n)."""
    return torch.cat([torch.ones_like(x[:, :1]), x], 1)


def _quadratic(x: Tensor) -> Tensor:
    """Features 1, x, x_i x_j: (G, L, n) to (G, F, n)."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([_linear(x), x.index_select(1, first) * x.index_select(1, second)], 1)


def _nearest(scores: Tensor) -> Tensor:
    """All of a row for the component with the highest score, (G, C, n)."""
    return F.one_hot(scores.argmax(1), scores.shape[1]).mT.to(scores.dtype)


def _likely(scores: Tensor) -> Tensor:
    """Shares of the components in each row from log w N(x), (G, C, n)."""
    return scores.softmax(1)


def _sums(
    x: Tensor, present: Tensor, theta: Tensor, features: Callable[[Tensor], Tensor], shares: Callable[[Tensor], Tensor]
) -> Tensor:
    """Σ share · φ(x) over the rows of each group, with shares from the scores θ · φ(x): (G, C, F).

    θ may be shorter than φ(x): the last features then do not count in the scores.
    """
    groups, size, _ = x.shape
    at_once = max((AT_ONCE_ON_GPU if x.is_cuda else AT_ONCE) // (groups * size * (size + 3) // 2), 64)
    parts = zip(x.split(at_once, 2), present.split(at_once, 2), strict=True)

    def of_part(part: Tensor, here: Tensor) -> Tensor:
        phi = features(part)
        return (shares(theta @ phi[:, : theta.shape[-1]]) * here) @ phi.mT

    return reduce(torch.add, itertools.starmap(of_part, parts))


def _distances(centres: Tensor, unused: Tensor) -> Tensor:
    """θ (G, C, 1 + L) with θ · φ(x) = −|x − c|² / 2, but for a constant."""
    constant = (centres.square().sum(-1) / -2).masked_fill(unused, -math.inf)
    return torch.cat([constant[..., None], centres], -1)


def _log_densities(mixture: Mixture) -> Tensor:
    """θ (G, C, F) with θ · φ(x) = log(w N(x; μ, Σ))."""
    weights, means, roots = mixture
    size = means.shape[-1]
    precisions = torch.cholesky_inverse(roots)
    slope = (precisions @ means[..., None]).squeeze(-1)
    log_volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + size / 2 * LOG_2PI
    constant = weights.log() - log_volume - (slope * means).sum(-1) / 2
    first, second = torch.triu_indices(size, size, device=roots.device)
    curvature = precisions[..., first, second] * torch.where(first == second, -0.5, -1.0)
    return torch.cat([constant[..., None], slope, curvature], -1)


def _maximise(sums: Tensor, size: int) -> Mixture:
    """The most likely mixture for these sums (G, C, F) in `size` dimensions, with FLOOR added to all variances."""
    number = torch.where(sums[..., 0] < ABSENT, 0, sums[..., 0])
    means, squares = (sums[..., 1:] / sums[..., :1].clamp_min(ABSENT)).split([size, sums.shape[-1] - 1 - size], -1)
    first, second = torch.triu_indices(size, size, device=sums.device)
    covariances = sums.new_empty(*means.shape, size)
    covariances[..., first, second] = covariances[..., second, first] = squares
    covariances = covariances - means[..., None] * means[..., None, :]
    covariances.diagonal(dim1=-2, dim2=-1).add_(FLOOR)
    roots, failed = torch.linalg.cholesky_ex(covariances)  # it does not wait for the device, as cholesky would
    roots = roots.masked_fill(failed[..., None, None] > 0, math.nan)
    return Mixture(number / number.sum(1, keepdim=True), means, roots)

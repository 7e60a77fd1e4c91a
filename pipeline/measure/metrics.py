"""How good samples of one class are: pure functions of feature and pixel tensors.

METRICS names every figure that a study can take as its objective. To add one that compares samples with real images,
write its function, call it in `compare`, and name it in METRICS.

Everywhere `real` (R, D) and `fake` (F, D) are float tensors with a row per image, all of one class. Distances are
Euclidean. No function depends on what the features mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 5  # k of the nearest-neighbour balls (Naeem 2020 recommend 5)


class Metric(NamedTuple):
    """What tables and studies need to know of a figure. of_samples: each sampler has its own."""

    lower_is_better: bool
    of_samples: bool


METRICS = {
    "reconstruction": Metric(lower_is_better=True, of_samples=False),
    "kl": Metric(lower_is_better=True, of_samples=False),
    "elbo": Metric(lower_is_better=False, of_samples=False),
    "nll": Metric(lower_is_better=True, of_samples=False),
    "active_units": Metric(lower_is_better=False, of_samples=False),
    "class_accuracy": Metric(lower_is_better=False, of_samples=True),
    "diversity": Metric(lower_is_better=False, of_samples=True),
    "frechet": Metric(lower_is_better=True, of_samples=True),
    "precision": Metric(lower_is_better=False, of_samples=True),
    "recall": Metric(lower_is_better=False, of_samples=True),
    "density": Metric(lower_is_better=False, of_samples=True),
    "coverage": Metric(lower_is_better=False, of_samples=True),
    "feature_diversity": Metric(lower_is_better=False, of_samples=True),
}
OF_SAMPLES = tuple(name for name, metric in METRICS.items() if metric.of_samples)
LOWER_IS_BETTER = tuple(name for name, metric in METRICS.items() if metric.lower_is_better)


class ClassImages(NamedTuple):
    """Images of one class: pixels (N, 784), the judge's features (N, D), and the digit it reads in each (N,)."""

    pixels: Tensor
    features: Tensor
    read_as: Tensor


def compare(real: ClassImages, fake: ClassImages, digit: int) -> dict[str, float]:
    """All metrics of samples `fake` of one digit."""
    return {
        "class_accuracy": accuracy(fake.read_as, digit),
        "diversity": diversity(real.pixels, fake.pixels),
        "frechet": frechet(real.features, fake.features),
        **precision_recall(real.features, fake.features),
        "feature_diversity": diversity(real.features, fake.features),
    }


def frechet(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of Gaussians fitted to two sets of features (Heusel 2017; per class: intra-FID).

    |m_r − m_f|² + tr(C_r + C_f − 2 (C_r^½ C_f C_r^½)^½), in float64, by symmetric eigendecompositions alone.
    """
    real, fake = real.double(), fake.double()
    root = _symmetric_root(_covariance(real))
    # The trace of a positive matrix's square root is the sum of its eigenvalues' roots.
    cross = torch.linalg.eigvalsh(root @ _covariance(fake) @ root).clamp_min(0).sqrt().sum()
    means = (real.mean(0) - fake.mean(0)).square().sum()
    total = means + _covariance(real).trace() + _covariance(fake).trace() - 2 * cross
    return float(total.clamp_min(0))


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """`precision` and `recall` (Kynkäänniemi 2019), `density` and `coverage` (Naeem 2020).

    Each image owns the ball that reaches to its k-th nearest neighbour in its own set. precision: share of fakes in
    some real ball; recall: share of reals in some fake ball; density: real balls a fake lies in, ÷ k; coverage:
    share of real balls that hold a fake. Needs more than k rows on either side.
    """
    across = torch.cdist(real, fake)
    real_radius, fake_radius = _radius(real, neighbours), _radius(fake, neighbours)
    in_real_ball = across < real_radius[:, None]
    return {
        "precision": float(in_real_ball.any(0).float().mean()),
        "recall": float((across < fake_radius[None, :]).any(1).float().mean()),
        "density": float(in_real_ball.float().sum(0).mean() / neighbours),
        "coverage": float(in_real_ball.any(1).float().mean()),
    }


def mean_distance(rows: Tensor) -> float:
    """Mean Euclidean distance of all pairs of different rows of (N, D)."""
    return float(torch.pdist(rows.float()).mean())


def diversity(real: Tensor, fake: Tensor) -> float:
    """Mean pairwise distance of fakes ÷ that of reals: 1 is as diverse as the real data, near 0 is collapse."""
    return mean_distance(fake) / mean_distance(real)


def accuracy(labels: Tensor, digit: int) -> float:
    """Share of (N,) labels that are `digit`."""
    return float((labels == digit).float().mean())


def _covariance(rows: Tensor) -> Tensor:
    return torch.cov(rows.T)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _radius(rows: Tensor, neighbours: int) -> Tensor:
    """Distance of each row to its k-th nearest other row; the row itself is the nearest of all, at 0."""
    return torch.cdist(rows, rows).kthvalue(neighbours + 1, dim=1).values

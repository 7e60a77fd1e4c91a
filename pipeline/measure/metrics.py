"""How good samples of one class are: pure functions of feature and pixel tensors.

Everywhere `real` (R, D) and `fake` (F, D) are float tensors, one row an image, of one class. Distances are
Euclidean. None of these functions knows what the features mean.
"""

import torch
from torch import Tensor

NEIGHBOURS = 5  # k of the nearest-neighbour balls (Naeem 2020 recommend 5)


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

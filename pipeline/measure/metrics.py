"""How good samples of one class are: pure functions of feature and pixel tensors.

METRICS names every figure that a study can take as its objective.

Everywhere `real` (R, D) and `fake` (F, D) are float tensors with a row per image, all of one class. Distances are
Euclidean. No function depends on what the features mean. Figures are float64 tensors () on the device of the images:
a GPU need not wait for the host after each of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.measure.judge import Reading
from pipeline.model.samples import symmetric_root

NEIGHBOURS = 5  # k of the nearest-neighbour balls (Naeem 2020 recommend 5)

OF_SAMPLES = (  # of each sampler
    "class_accuracy", "diversity", "frechet", "frechet_tolerant", "precision", "recall", "density", "coverage",
    "feature_diversity",
)  # fmt: skip
METRICS = ("reconstruction", "kl", "elbo", "nll", "active_units", *OF_SAMPLES)
LOWER_IS_BETTER = ("reconstruction", "kl", "nll", "frechet", "frechet_tolerant")


class Judged(NamedTuple):
    """Images and what the two judges say of them.

    pixels: (N, 784) in [0, 1]. digits: (N,), the digit that each image should show.
    """

    pixels: Tensor
    tolerant: Reading
    plain: Reading
    digits: Tensor

    def of_class(self, digit: int) -> "Judged":
        rows = self.digits == digit
        return Judged(self.pixels[rows], self.tolerant.of(rows), self.plain.of(rows), self.digits[rows])

    def accuracy(self) -> Tensor:
        """Share of the images that the tolerant judge reads as they should."""
        return (self.tolerant.labels == self.digits).double().mean()


def compare(real: Judged, fake: Judged) -> dict[str, Tensor]:
    """All metrics of samples `fake` of one digit, in the plain judge's features where nothing else is said."""
    return {
        "class_accuracy": fake.accuracy(),
        "diversity": diversity(real.pixels, fake.pixels),
        "frechet": frechet(real.plain.features, fake.plain.features),
        "frechet_tolerant": frechet(real.tolerant.features, fake.tolerant.features),
        **precision_recall(real.plain.features, fake.plain.features),
        "feature_diversity": diversity(real.plain.features, fake.plain.features),
    }


def frechet(real: Tensor, fake: Tensor) -> Tensor:
    """Squared Fréchet distance of Gaussians fitted to two sets of features (Heusel 2017; per class: intra-FID).

    |m_r − m_f|² + tr(C_r + C_f − 2 (C_r^½ C_f C_r^½)^½), in float64, by symmetric eigendecompositions alone.
    """
    real, fake = real.double(), fake.double()
    real_covariance, fake_covariance = torch.cov(real.T), torch.cov(fake.T)
    root = symmetric_root(real_covariance)
    # The trace of a positive matrix's square root is the sum of its eigenvalues' roots.
    cross = torch.linalg.eigvalsh(root @ fake_covariance @ root).clamp_min(0).sqrt().sum()
    means = (real.mean(0) - fake.mean(0)).square().sum()
    total = means + real_covariance.trace() + fake_covariance.trace() - 2 * cross
    return total.clamp_min(0)


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, Tensor]:
    """`precision` and `recall` (Kynkäänniemi 2019), `density` and `coverage` (Naeem 2020).

    Each image owns the ball that reaches to its k-th nearest neighbour in its own set. precision: share of fakes in
    some real ball; recall: share of reals in some fake ball; density: real balls a fake lies in, ÷ k; coverage:
    share of real balls that hold a fake. Needs more than k rows on either side.
    """
    across = torch.cdist(real, fake)
    real_radius, fake_radius = _radius(real, neighbours), _radius(fake, neighbours)
    in_real_ball = across < real_radius[:, None]
    return {
        "precision": in_real_ball.any(0).double().mean(),
        "recall": (across < fake_radius[None, :]).any(1).double().mean(),
        "density": in_real_ball.sum(0).double().mean() / neighbours,
        "coverage": in_real_ball.any(1).double().mean(),
    }


def mean_distance(rows: Tensor) -> Tensor:
    """Mean Euclidean distance of all pairs of different rows of (N, D)."""
    return torch.pdist(rows.float()).mean().double()


def diversity(real: Tensor, fake: Tensor) -> Tensor:
    """Mean pairwise distance of fakes ÷ that of reals: 1 is as diverse as the real data, near 0 is collapse."""
    return mean_distance(fake) / mean_distance(real)


def _radius(rows: Tensor, neighbours: int) -> Tensor:
    """Distance of each row to its k-th nearest other row; the row itself is the nearest of all, at 0."""
    return torch.cdist(rows, rows).kthvalue(neighbours + 1, dim=1).values

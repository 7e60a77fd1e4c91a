"""Sample metrics against the papers' formulas and plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pipeline.measure import metrics
from pipeline.measure.judge import Reading


def normal(rows: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, size: int, seed: int) -> Tensor:
    return normal(rows, size, seed).double() @ normal(size, size, seed + 100).double() + seed


def slow_precision_recall(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """The four definitions in plain loops, distances in float64."""
    r, f = real.double().numpy(), fake.double().numpy()

    def radius(rows: np.ndarray, index: int) -> float:
        others = sorted(math.dist(rows[index], other) for place, other in enumerate(rows) if place != index)
        return others[k - 1]

    real_balls = [radius(r, index) for index in range(len(r))]
    fake_balls = [radius(f, index) for index in range(len(f))]
    inside = [[math.dist(x, y) < ball for y in f] for x, ball in zip(r, real_balls, strict=True)]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(f))) / len(f),
        "recall": sum(any(math.dist(x, y) < ball for y, ball in zip(f, fake_balls, strict=True)) for x in r) / len(r),
        "density": sum(map(sum, inside)) / (k * len(f)),
        "coverage": sum(map(any, inside)) / len(r),
    }


def test_frechet_agrees_with_the_papers_square_root_and_does_not_depend_on_the_order_or_the_axes() -> None:
    real, fake = correlated(80, 7, 1), correlated(60, 7, 2)
    first, second = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    way = real.numpy().mean(0) - fake.numpy().mean(0)
    expected = way @ way + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    turn = torch.linalg.qr(normal(7, 7, seed=9).double()).Q
    assert metrics.frechet(real, fake) == pytest.approx(expected)
    assert metrics.frechet(fake @ turn + 5, real @ turn + 5) == pytest.approx(expected)


def test_frechet_of_fewer_rows_than_dimensions_is_finite() -> None:
    few = normal(5, 20)
    assert metrics.frechet(few, few) == pytest.approx(0, abs=1e-4)
    assert metrics.frechet(few, few + 1) == pytest.approx(20, rel=1e-4)


@pytest.mark.parametrize(
    ("real_rows", "fake_rows", "k", "scale"), [(20, 20, 3, 1.0), (40, 15, 5, 0.5), (12, 30, 1, 1.5)]
)
def test_precision_recall_density_and_coverage_agree_with_plain_loops(
    real_rows: int, fake_rows: int, k: int, scale: float
) -> None:
    real, fake = normal(real_rows, 3), scale * normal(fake_rows, 3, seed=1) + 0.3
    assert metrics.precision_recall(real, fake, k) == pytest.approx(slow_precision_recall(real, fake, k))


def test_diversity_is_the_ratio_of_mean_distances_wherever_the_sets_are() -> None:
    assert metrics.mean_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])) == pytest.approx(20 / 3)
    rows = normal(50, 20)
    for scale in (0.0, 1.0, 2.0):
        assert metrics.diversity(rows, scale * rows + 7) == pytest.approx(scale, rel=1e-4)


def test_every_sample_metric_is_registered() -> None:
    """A study can take each as its objective, and tables know which way is better."""
    read = Reading(normal(20, 4), torch.tensor([3, 3, 5, 3] * 5))
    plain = Reading(normal(20, 4), torch.full((20,), 5))
    images = metrics.Judged(normal(20, 9), read, plain, torch.full((20,), 3))
    found = metrics.compare(images, images)
    assert tuple(found) == metrics.OF_SAMPLES
    assert found["class_accuracy"] == 0.75
    assert {"frechet", "nll"} <= set(metrics.LOWER_IS_BETTER) <= set(metrics.METRICS)

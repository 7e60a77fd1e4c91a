"""Sample metrics against closed forms, slow references and the cases that give them their names."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.measure import metrics

QUALITIES = ("precision", "recall", "density", "coverage")


def draws(rows: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def rotation(size: int) -> Tensor:
    matrix: Tensor = torch.linalg.qr(draws(size, size, seed=9).double()).Q
    return matrix


def correlated(rows: int, size: int, seed: int) -> Tensor:
    return draws(rows, size, seed).double() @ draws(size, size, seed + 100).double() + seed


def modes(count: int, rows: int, seed: int) -> Tensor:
    """`rows` draws around each of `count` far apart centres."""
    centres = 100 * torch.arange(count).repeat_interleave(rows)[:, None]
    return draws(count * rows, 4, seed) + centres


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


def test_frechet_of_a_set_from_itself_is_zero() -> None:
    rows = correlated(200, 6, 1)
    assert metrics.frechet(rows, rows) == pytest.approx(0, abs=1e-6)


def test_frechet_of_a_moved_set_is_the_squared_way() -> None:
    rows, way = correlated(200, 6, 1), torch.tensor([3.0, 0, 4, 0, 0, 0])
    assert metrics.frechet(rows, rows + way) == pytest.approx(25)


def test_frechet_of_a_set_blown_up_is_that_of_its_spread() -> None:
    """For covariances C and s²C the distance is (s − 1)² tr C."""
    rows = correlated(200, 6, 1)
    rows = rows - rows.mean(0)
    assert metrics.frechet(rows, 3 * rows) == pytest.approx(4 * torch.cov(rows.T).trace().item())


def test_frechet_approaches_the_distance_of_the_gaussians_that_were_sampled() -> None:
    """Axis-aligned Gaussians: |m|² + Σ (σ_r − σ_f)²."""
    real, fake = draws(50_000, 3), draws(50_000, 3, seed=1) * torch.tensor([2.0, 1, 0.5]) + torch.tensor([1.0, 0, 0])
    assert metrics.frechet(real, fake) == pytest.approx(1 + 1 + 0 + 0.25, rel=0.03)


def test_frechet_agrees_with_the_matrix_square_root_of_the_paper() -> None:
    real, fake = correlated(80, 7, 1), correlated(60, 7, 2)
    first, second = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    way = real.numpy().mean(0) - fake.numpy().mean(0)
    expected = way @ way + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert metrics.frechet(real, fake) == pytest.approx(expected)


def test_frechet_is_symmetric() -> None:
    first, second = correlated(80, 7, 1), correlated(60, 7, 2)
    assert metrics.frechet(first, second) == pytest.approx(metrics.frechet(second, first))


def test_frechet_does_not_see_a_rotation_or_a_shift_of_the_space() -> None:
    first, second, turn = correlated(80, 7, 1), correlated(60, 7, 2), rotation(7)
    assert metrics.frechet(first @ turn + 5, second @ turn + 5) == pytest.approx(metrics.frechet(first, second))


def test_frechet_stands_fewer_rows_than_dimensions() -> None:
    few = draws(5, 20)
    assert metrics.frechet(few, few) == pytest.approx(0, abs=1e-4)
    assert metrics.frechet(few, few + 1) == pytest.approx(20, rel=1e-4)


def test_frechet_of_a_collapsed_set_is_the_whole_spread_of_the_real_one() -> None:
    real = correlated(200, 4, 1)
    fake = real.mean(0).expand(50, 4)
    assert metrics.frechet(real, fake) == pytest.approx(torch.cov(real.T).trace().item())


@pytest.mark.parametrize(("real_rows", "fake_rows", "k"), [(20, 20, 3), (40, 15, 5), (12, 30, 1)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_precision_and_recall_agree_with_plain_loops(real_rows: int, fake_rows: int, k: int, scale: float) -> None:
    real, fake = draws(real_rows, 3), scale * draws(fake_rows, 3, seed=1) + 0.3
    assert metrics.precision_recall(real, fake, k) == pytest.approx(slow_precision_recall(real, fake, k))


def test_five_neighbours_unless_told() -> None:
    real, fake = draws(40, 3), draws(40, 3, seed=1)
    assert metrics.precision_recall(real, fake) == pytest.approx(slow_precision_recall(real, fake, 5))


def test_a_set_is_perfect_against_itself() -> None:
    """Each row lies in its own ball and in those it is among the k − 1 nearest of: density is 1 too."""
    rows = draws(60, 4)
    assert metrics.precision_recall(rows, rows) == pytest.approx(dict.fromkeys(QUALITIES, 1.0))


def test_two_draws_of_one_distribution_score_high() -> None:
    scores = metrics.precision_recall(draws(1000, 2), draws(1000, 2, seed=1))
    assert min(scores.values()) > 0.9
    assert scores["density"] == pytest.approx(1, abs=0.1)


def test_sets_far_apart_score_zero() -> None:
    rows = draws(60, 4)
    assert metrics.precision_recall(rows, rows + 1000) == dict.fromkeys(QUALITIES, 0.0)


def test_a_dropped_mode_costs_recall_and_coverage_but_no_precision() -> None:
    real, fake = modes(4, 100, seed=0), modes(3, 100, seed=1)
    scores = metrics.precision_recall(real, fake)
    assert scores["precision"] > 0.9
    assert scores["recall"] <= 0.75
    assert scores["coverage"] <= 0.75
    assert scores["recall"] > 0.65


def test_an_invented_mode_costs_precision_but_no_recall() -> None:
    scores = metrics.precision_recall(modes(3, 100, seed=0), modes(4, 100, seed=1))
    assert 0.65 < scores["precision"] <= 0.75
    assert scores["recall"] > 0.9
    assert scores["coverage"] > 0.9


def test_one_outlier_among_the_reals_does_not_raise_density_as_it_does_precision() -> None:
    """Naeem 2020: the outlier's ball is huge; precision believes it alone, density averages over all balls."""
    real = torch.cat([draws(100, 2), torch.tensor([[60.0, 0.0]])])
    fake = draws(100, 2, seed=1) + torch.tensor([30.0, 0.0])
    scores = metrics.precision_recall(real, fake)
    assert scores["precision"] > 0.9
    assert scores["density"] < 0.3


def test_precision_and_recall_swap_with_the_sets() -> None:
    first, second = draws(50, 3), 0.7 * draws(40, 3, seed=1)
    there, back = metrics.precision_recall(first, second), metrics.precision_recall(second, first)
    assert (there["precision"], there["recall"]) == pytest.approx((back["recall"], back["precision"]))


def test_mean_distance_is_over_pairs_of_different_rows() -> None:
    assert metrics.mean_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])) == pytest.approx(20 / 3)


def test_real_images_are_as_diverse_as_themselves() -> None:
    rows = draws(50, 20)
    assert metrics.diversity(rows, rows) == 1


def test_one_picture_over_and_over_has_no_diversity() -> None:
    assert metrics.diversity(draws(50, 20), draws(1, 20).expand(50, 20)) == 0


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_diversity_is_the_ratio_of_scales_wherever_the_sets_lie(scale: float) -> None:
    rows = draws(50, 20)
    assert metrics.diversity(rows, scale * rows + 7) == pytest.approx(scale, rel=1e-4)


def test_diversity_does_not_grow_with_the_number_of_samples() -> None:
    assert metrics.diversity(draws(50, 20), draws(1000, 20, seed=1)) == pytest.approx(1, abs=0.05)


def test_accuracy_is_the_share_read_as_asked() -> None:
    assert metrics.accuracy(torch.tensor([3, 3, 5, 3]), 3) == 0.75

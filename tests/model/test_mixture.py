"""Mixtures by expectation–maximisation: as good as scikit-learn's, and densities for groups of any size."""

import math

import pytest
import torch
from latents import LABELS, normal
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pipeline.model import mixture
from pipeline.model.density import Density


def curved(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (10 · rows, 3) of ten groups on different arcs, which no Gaussian fits."""
    groups, noise = LABELS.repeat(rows), normal(10 * rows, 3, seed=seed)
    angle = noise[:, 0] * (0.5 + groups / 10)
    return torch.stack([3 * angle.cos(), 3 * angle.sin(), noise[:, 1]], 1) + 0.3 * noise.roll(1, 1), groups


def log_density(fitted: mixture.Mixture, rows: Tensor, groups: Tensor) -> float:
    return float(Density(*fitted).log_prob(rows, groups).mean())


def test_unseen_rows_are_as_likely_as_under_scikit_learn_s_mixture() -> None:
    (rows, groups), (unseen, theirs) = curved(400, 0), curved(400, 1)
    ours, reference = [], []
    for seed in range(3):
        ours.append(log_density(mixture.fit(rows, groups, 10, 6, seed), unseen, theirs))
        fits = [
            GaussianMixture(6, random_state=seed, reg_covar=1e-4, tol=1e-2).fit(rows[groups == group].numpy())
            for group in range(10)
        ]
        reference.append(sum(fits[group].score(unseen[theirs == group].numpy()) for group in range(10)) / 10)
    single = log_density(mixture.fit(rows, groups, 10, 1, 0), unseen, theirs)
    assert sum(ours) / 3 == pytest.approx(sum(reference) / 3, abs=0.05)
    assert min(ours) > single + 0.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_fits_as_good_a_mixture() -> None:
    """Its noise is another, so that the components differ."""
    rows, groups = curved(400, 0)
    here, there = (mixture.fit(rows.to(device), groups.to(device), 10, 6, 0) for device in ("cpu", "cuda"))
    on_gpu = log_density(mixture.Mixture(*(part.cpu() for part in there)), rows, groups)
    assert on_gpu == pytest.approx(log_density(here, rows, groups), abs=0.1)


def test_a_known_mixture_is_found() -> None:
    """Three distant Gaussians far from 0, of which one is narrow and one is correlated."""
    roots = torch.stack([torch.eye(2), 0.1 * torch.eye(2), torch.tensor([[1.0, 0.0], [0.9, 0.5]])]).double()
    centres = 1000 + torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).double()
    component = torch.arange(8000) % 4 % 3  # ½, ¼, ¼
    rows = centres[component] + (roots[component] @ normal(8000, 2)[..., None]).squeeze(-1)
    fitted = mixture.fit(rows, torch.zeros(8000, dtype=torch.int64), 1, 3, 0)
    order = torch.cdist(centres, fitted.means[0]).argmin(1)
    assert torch.allclose(fitted.weights[0, order], torch.tensor([0.5, 0.25, 0.25]).double(), atol=1e-3)
    assert torch.allclose(fitted.means[0, order], centres, atol=0.1)
    assert torch.allclose(fitted.roots[0, order], roots, atol=0.05)


def test_blocks_of_rows_sum_to_the_same_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, groups = curved(500, 0)
    threads, whole = torch.get_num_threads(), mixture.fit(rows, groups, 10, 4, 0)
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(mixture, "AT_ONCE", 1)
    for one, other in zip(whole, mixture.fit(rows, groups, 10, 4, 0), strict=True):
        assert torch.allclose(one, other)


def test_small_groups_have_a_component_for_every_two_rows_and_none_has_a_hole() -> None:
    sizes = torch.tensor([0, 1, 2, 3, 4, 9, 19, 20, 21, 60])
    groups = LABELS.repeat_interleave(sizes)
    fitted = mixture.fit(normal(len(groups), 3), groups, 10, 10, 0)
    assert torch.allclose(fitted.weights.sum(1), torch.ones(10).double())
    assert torch.equal((fitted.weights > 0).sum(1), (sizes // 2).clamp(1, 10))
    assert Density(*fitted).log_prob(normal(1000, 3, seed=1), LABELS.repeat(100)).isfinite().all()
    for group in (0, 1):  # fewer than two rows
        assert torch.equal(fitted.means[group, 0], torch.zeros(3).double())
        assert torch.equal(fitted.roots[group, 0], torch.eye(3).double())


def test_equal_rows_are_a_narrow_density_around_them() -> None:
    rows, groups = torch.full((100, 3), 7.0), torch.zeros(100, dtype=torch.int64)
    fitted = mixture.fit(rows, groups, 1, 5, 0)
    assert fitted.weights[0].tolist() == [1, 0, 0, 0, 0]
    assert torch.allclose(fitted.means[0, 0], rows[0].double())
    assert torch.allclose(fitted.roots[0, 0], math.sqrt(mixture.FLOOR) * torch.eye(3).double())


def test_rows_that_no_mixture_can_be_fitted_to_are_refused() -> None:
    rows, groups = curved(20, 0)
    for value in (math.nan, math.inf, 1e200):
        rows[3, 1] = value
        with pytest.raises(ValueError, match="latents are not finite, or too large"):
            mixture.fit(rows, groups, 10, 2, 0)


def test_the_components_of_moved_rows_keep_their_order() -> None:
    centres = 4 * normal(6, 3, seed=1)
    rows, groups = centres[torch.arange(6).repeat_interleave(10).repeat(100)] + normal(6000, 3), LABELS.repeat(600)
    moved = 1.2 * rows + 0.5
    first, anew = mixture.fit(rows, groups, 10, 6, 0), mixture.fit(moved, groups, 10, 6, 1)
    followed = mixture.fit(moved, groups, 10, 6, 1, start=first)
    distances = torch.cdist(1.2 * first.means + 0.5, followed.means)
    assert (distances.argmin(2) == torch.arange(6)).float().mean() > 0.9
    assert log_density(followed, moved, groups) == pytest.approx(log_density(anew, moved, groups), abs=0.05)

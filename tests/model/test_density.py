"""The fitted density: its probabilities, moments and samples agree, and it follows the latents of each class."""

import numpy as np
import pytest
import torch
from bands import banded
from latents import LABELS, density, model, normal, source

from pipeline.model.density import fit_density, posteriors, stacked


def test_moments_and_samples_are_those_of_the_mixture() -> None:
    z = density().sample(torch.full((100_000,), 3), source())
    mean, covariance = (moment[3] for moment in density().moments())
    assert mean.tolist() == pytest.approx([2, 1.5])  # ¼ · (−4, 0) + ¾ · (4, 2)
    assert torch.allclose(z.mean(0), mean, atol=0.05)
    assert torch.allclose(torch.cov(z.T), covariance, atol=0.15)
    assert (z[:, 0] > 0).float().mean() == pytest.approx(0.75, abs=0.01)


def test_log_prob_is_that_of_torch_s_own_mixture() -> None:
    z, labels = 3 * normal(400, 2).float(), LABELS.repeat(40)
    found = density().log_prob(z, labels)
    for digit in range(10):
        weights, means, roots = (part[digit].double() for part in density())
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, scale_tril=roots)
        )
        assert torch.allclose(found[labels == digit], mixture.log_prob(z[labels == digit].double()))
    assert found.isfinite().all()


def test_the_fitted_density_follows_each_class_s_latents() -> None:
    data = banded(200, 0)
    q = posteriors(model(), data, "grey")
    fitted = fit_density(model(), data, "grey", components=2, seed=0)
    means, covariances = fitted.moments()
    for digit in range(10):
        rows = q.mu[data.labels == digit]
        aggregate = torch.cov(rows.T) + q.log_var[0].exp().diag()  # of the means, plus that of q(z∣x) around each
        tolerance = 0.2 * aggregate.trace()
        assert torch.allclose(means[digit], rows.mean(0), atol=float(tolerance.sqrt()))
        assert torch.allclose(covariances[digit], aggregate, atol=float(tolerance))
    assert torch.pdist(means).max() > 1  # otherwise any density would pass


def test_the_same_seed_fits_the_same_density_and_leaves_the_global_generators() -> None:
    before, before_numpy = torch.random.get_rng_state(), repr(np.random.get_state())
    first, again = (fit_density(model(), banded(30, 0), "binary", 3, seed=1) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert repr(np.random.get_state()) == before_numpy


def test_between_two_weights_components_are_mixed_in_log_beta() -> None:
    low, high = density(), density()._replace(means=5 * density().means)
    along = stacked([low, high, low], [0.01, 1.0, 4.0])
    for weight, factor in ((0.001, 1), (0.01, 1), (0.1, 3), (1.0, 5), (2.0, 3), (4.0, 1), (100.0, 1)):
        assert torch.allclose(along.at(weight).means, factor * low.means)
        assert torch.allclose(along.at(weight).roots, low.roots)

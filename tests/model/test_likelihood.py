"""Likelihoods: normalised, stable log-probabilities, with means and samples that agree with them."""

import itertools
import math
from typing import Any

import pytest
import torch
from latents import normal, source
from torch import Tensor
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal

from pipeline.model import likelihood
from pipeline.model.likelihood import LIKELIHOODS, DiscretizedLogistic, Likelihood, SigmaOptimal, names_on

SIGMAS = {"gaussian": 0.3, "sigma_learned": 0.25, "sigma_optimal": 0.2}
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def build(name: likelihood.Name, size: int = 784) -> Likelihood:
    """In float64, in eval mode, for images of `size` pixels; with σ from SIGMAS."""
    built = DiscretizedLogistic(size) if name == "discretized_logistic" else likelihood.build(name, sigma=0.3)
    if isinstance(built, SigmaOptimal):
        built.calibrate(torch.tensor(0.04))
    return built.double().eval()


def logistic(log_scale: float) -> DiscretizedLogistic:
    """Of one pixel."""
    built = DiscretizedLogistic(1).double()
    torch.nn.init.constant_(built.kept, log_scale / likelihood.PACE)
    return built


def of_values(ours: Likelihood, output: float, values: Tensor) -> Tensor:
    """p of each value (V,) of an image of one pixel."""
    return ours.log_prob(torch.full((len(values), 1), output, dtype=torch.float64), values[:, None]).exp()


def test_the_probabilities_of_black_and_white_or_of_the_256_levels_sum_to_one() -> None:
    for output in (0.0, 2.0, 1e4):
        for name in names_on("binary"):
            assert of_values(build(name, 1), output, torch.tensor([0.0, 1.0])).sum().item() == pytest.approx(1)
        for log_scale in (-8.0, 3.0):
            assert of_values(logistic(log_scale), output, LEVELS).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name, kind in LIKELIHOODS.items() if kind.sums_to_one_on == "reals"])
def test_a_density_integrates_to_one(name: likelihood.Name) -> None:
    """On a grid that is fine at the ends: on [0, 1], where the continuous Bernoulli has its mass, and around it."""
    unit = (1 - torch.linspace(0, math.pi, 20_001, dtype=torch.float64).cos()) / 2
    x = unit if name == "continuous_bernoulli" else 11 * unit - 5
    for output in (-40.0, 1e-4, 2.0):
        assert torch.trapezoid(of_values(build(name, 1), output, x), x).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", [*SIGMAS, "bernoulli", "continuous_bernoulli"])
def test_log_probability_mean_and_spread_of_samples_are_torch_s(name: likelihood.Name) -> None:
    """torch's series near λ = ½ has a lower order, hence the tolerance."""

    def reference(outputs: Tensor) -> Any:
        if name in SIGMAS:
            return Normal(outputs.sigmoid(), SIGMAS[name])
        return (Bernoulli if name == "bernoulli" else ContinuousBernoulli)(logits=outputs)

    ours, outputs = build(name), torch.cat([3 * normal(6, 784), 1e-3 * normal(6, 784, seed=3)])
    pixels = normal(12, 784, seed=1).sigmoid()
    pixels = pixels.round() if name == "bernoulli" else pixels
    assert torch.allclose(ours.log_prob(outputs, pixels), reference(outputs).log_prob(pixels).sum(-1), rtol=1e-6)
    assert torch.allclose(ours.mean(outputs), reference(outputs).mean.float(), atol=1e-5)
    few = torch.tensor([-6.0, -0.5, 0.0, 2.0, 9.0])
    samples = ours.sample(few.expand(200_000, -1), source())
    if name not in SIGMAS:  # whose samples are clamped
        assert torch.allclose(samples.var(0), reference(few.double()).variance.float(), atol=0.002)


def test_a_level_has_the_mass_of_the_logistic_around_it() -> None:
    """By differences of its distribution function, at a scale where they lose nothing; all mass beyond at the ends."""
    outputs, scale, ours = normal(256, 1), 0.1, build("discretized_logistic", 1)
    assert isinstance(ours, DiscretizedLogistic)
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])])
    below, above = (((edge - ours.location(outputs)[:, 0]) / scale).sigmoid() for edge in (edges[:-1], edges[1:]))
    assert torch.allclose(ours.log_prob(outputs, LEVELS[:, None]).exp(), above - below)
    between = LEVELS[:, None] + 0.4 / 255  # rounded
    assert torch.equal(ours.log_prob(outputs, between)[:-1], ours.log_prob(outputs, LEVELS[:, None])[:-1])


def test_the_samples_of_the_logistic_are_levels_as_often_as_their_probability() -> None:
    ours, outputs = build("discretized_logistic", 1).float(), torch.tensor([[1.5]])
    levels = ours.sample(outputs.expand(400_000, 1), source()) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    shares = torch.bincount(levels.round().long()[:, 0], minlength=256) / 400_000
    assert torch.allclose(shares, ours.log_prob(outputs.expand(256, 1), LEVELS.float()[:, None]).exp(), atol=0.002)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_extremes_and_their_gradients_stay_finite_in_float32(name: likelihood.Name) -> None:
    for output, pixel, training in itertools.product((-1e4, -100.0, 0.0, 1e4), (0.0, 0.5, 1.0), (False, True)):
        ours = build(name).float().train(training)
        outputs = torch.full((2, 784), output, requires_grad=True)
        log_prob = ours.log_prob(outputs, torch.full((2, 784), pixel))
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (outputs, *ours.parameters()))
        assert ours.mean(outputs).isfinite().all()
        assert ours.sample(outputs, source()).isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_of_z_are_scored_together_and_half_precision_in_full(name: likelihood.Name) -> None:
    ours, outputs, pixels = build(name).float(), normal(4, 3, 784).bfloat16(), normal(3, 784, seed=2).sigmoid().float()
    together = ours.log_prob(outputs, pixels)
    assert together.dtype == torch.float32
    assert torch.equal(together, ours.log_prob(outputs.float(), pixels))
    for row in range(4):
        assert torch.allclose(together[row], ours.log_prob(outputs[row], pixels), rtol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_mean_and_repeat_with_the_seed(name: likelihood.Name) -> None:
    ours = build(name, 9).float()
    outputs = torch.tensor([-40.0, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 3.0, 40.0])
    samples, again = (ours.sample(outputs.expand(100_000, -1), source()) for _ in range(2))
    assert torch.equal(samples, again)
    assert torch.allclose(samples.mean(0), ours.mean(outputs), atol=0.006)
    assert 0 <= ours.mean(outputs).min() <= ours.mean(outputs).max() <= 1


def test_the_optimal_sigma_explains_the_batch_best_in_train_mode() -> None:
    """−log p is then D/2 (log 2π σ² + 1) and its gradient that of D/2 log MSE."""
    outputs, pixels = normal(5, 784).requires_grad_(), normal(5, 784, seed=1).sigmoid()
    error = (pixels - outputs.sigmoid()).square().mean()
    best = build("sigma_optimal").train().log_prob(outputs, pixels).mean()
    assert best.item() == pytest.approx(-392 * (math.log(2 * math.pi * error.item()) + 1))
    values = best, -392 * error.log()
    found, expected = (torch.autograd.grad(value, outputs, retain_graph=True)[0] for value in values)
    assert torch.allclose(found, expected)

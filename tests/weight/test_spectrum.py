"""The spectrum held to linear VAEs that are trained to the end, with every expectation exact."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bands import banded
from latents import normal, source
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.multivariate_normal import MultivariateNormal
from torch.distributions.normal import Normal

from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.weight.spectrum import SOLVED, Spectrum, of_class, of_split

SIZES = (0.3, 0.22, 0.15, 0.11, 0.08, 0.05)  # standard deviations of the made data's directions
LATENTS = 4
SIGMA = 0.1


def pictures(pixels: int, sizes: tuple[float, ...] = SIZES) -> Tensor:
    """100 pictures (100, pixels) in [0, 1] around a grey one, which vary along orthogonal directions."""
    directions = torch.linalg.qr(normal(pixels, len(sizes), seed=1)).Q
    places = normal(100, len(sizes)) * torch.tensor(sizes, dtype=torch.float64)
    return (torch.linspace(0.3, 0.6, pixels, dtype=torch.float64) + places @ directions.T).clamp(0, 1)


def bands(per_class: int) -> Split:
    """Pictures of a quarter of the pixels, whose covariance is solved in no time."""
    data = banded(per_class, 0)
    return replace(data, images=data.images[..., ::2, ::2])


@cache
def of_bands(likelihood: str = "bernoulli", latents: int = LATENTS) -> Spectrum:
    """By the rule alone."""
    return of_split(bands(12), likelihood, "grey", SIGMA, latents, solve=False)


def one_class(images: Tensor, variance: float | None, pixels: int | None = None) -> Spectrum:
    eigenvalues = of_class(images, "grey", None if variance is None else torch.tensor(variance)).eigenvalues
    return Spectrum(eigenvalues[None], torch.ones(1, dtype=torch.float64), LATENTS, pixels)


def to_the_end(weights: list[Tensor], terms: Callable[[], tuple[Tensor, Tensor]], beta: float, **limits: Any) -> None:
    """Minimises reconstruction + β · kl, the two that `terms` gives, by L-BFGS on all images at once."""
    found: dict[str, Any] = {"max_iter": 2000, "tolerance_grad": 1e-8, "line_search_fn": "strong_wolfe"} | limits
    optimizer = torch.optim.LBFGS(weights, **found)

    def closure() -> Tensor:
        optimizer.zero_grad()
        reconstruction, kl = terms()
        loss = reconstruction + beta * kl
        loss.backward()
        return loss

    optimizer.step(closure)


# Of images (N, pixels), and of mean and variance of the decoder's outputs: the expected reconstruction, nats per image
Error = Callable[[Tensor, Tensor, Tensor], Tensor]
AT, SHARE = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(12))


def gaussian_error(images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return ((images - mean).square() + variance).sum(1).mean() / (2 * SIGMA**2)


def best_sigma(images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of a Gaussian whose σ² is the mean squared error."""
    return 0.5 * images.shape[1] * ((images - mean).square() + variance).mean().log()


def cross_entropy(images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of logits N(mean, variance), by Gauss-Hermite quadrature."""
    logits = mean + AT[:, None, None] * variance.sqrt()
    softplus = torch.einsum("k,knd->nd", SHARE / SHARE.sum(), F.softplus(logits))
    return (softplus - images * mean).sum(1).mean()


def trained(images: Tensor, error: Error, beta: float) -> tuple[float, int]:
    """kl and active latents of a VAE with a linear encoder and decoder, trained to the end on all images at once."""
    x = images - images.mean(0)
    pixels = images.shape[1]
    encode, decode = 0.3 * normal(LATENTS, pixels, seed=2), 0.3 * normal(pixels, LATENTS, seed=3)
    bias, log_var = images.mean(0), torch.zeros(LATENTS, dtype=torch.float64)
    weights = [weight.requires_grad_() for weight in (encode, decode, bias, log_var)]

    def terms() -> tuple[Tensor, Tensor]:
        q = Normal(x @ encode.T, (log_var / 2).exp())
        outputs = q.mean @ decode.T + bias, (log_var.exp() @ decode.square().T).expand_as(x)
        kl = kl_divergence(q, Normal(torch.zeros_like(log_var), torch.ones_like(log_var))).sum(1).mean()
        return error(images, *outputs), kl

    to_the_end(weights, terms, beta, max_eval=8000, tolerance_change=1e-11)
    return terms()[1].item(), int(((x @ encode.T).var(0) > 0.01).sum())


FORETOLD = {  # the pictures, their spectrum, the error of a decoder, and how far off the spectrum may be
    "a Gaussian": (pictures(12), SIGMA**2, None, gaussian_error, 0.01),
    "a Gaussian whose sigma is that of its errors": (pictures(12), 1.0, 12, best_sigma, 0.01),
    "grey Bernoulli pixels": (pictures(120, tuple(2 * size for size in SIZES)), None, None, cross_entropy, 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.95, 1.05])
@pytest.mark.parametrize(("images", "variance", "pixels", "error", "off"), FORETOLD.values(), ids=FORETOLD)
def test_a_linear_vae_is_foretold(
    images: Tensor, variance: float | None, pixels: int | None, error: Error, off: float, share: float
) -> None:
    """Its kl, its active latents, and the weight at which it collapses; share: of that weight."""
    spectrum = one_class(images, variance, pixels)
    beta = share * spectrum.collapse()
    kl, active = trained(images, error, beta)
    assert kl == pytest.approx(spectrum.rate(beta), rel=off, abs=1e-4)
    assert active == spectrum.active(beta)


def black_and_white(count: int, pixels: int) -> Tensor:
    """Pictures (count, pixels) of 0 and 1, drawn from a linear Bernoulli decoder with logits far from 0."""
    gains = torch.tensor((9.0, 7.0, 5.0, 4.0), dtype=torch.float64)
    decode = torch.linalg.qr(normal(pixels, LATENTS, seed=1)).Q * gains
    return torch.bernoulli((normal(count, LATENTS) @ decode.T).sigmoid(), generator=source())


def trained_posteriors(x: Tensor, beta: float) -> float:
    """kl of a linear Bernoulli decoder trained to the end, where no encoder limits each image's own posterior."""
    size = (len(x), LATENTS)
    decode, bias = 0.3 * normal(x.shape[1], LATENTS, seed=3), x.mean(0).logit(0.01)
    mu, log_std, below = 0.3 * normal(*size, seed=2), 0.0 * normal(*size), 0.0 * normal(*size, LATENTS)
    weights = [weight.requires_grad_() for weight in (decode, bias, mu, log_std, below)]

    def terms() -> tuple[Tensor, Tensor]:
        root = torch.diag_embed(log_std.exp()) + below.tril(-1)
        variance = torch.einsum("dl,nlk->ndk", decode, root).square().sum(2)
        kl = kl_divergence(MultivariateNormal(mu, scale_tril=root), of_prior).mean()
        return cross_entropy(x, mu @ decode.T + bias, variance), kl

    of_prior = MultivariateNormal(torch.zeros(LATENTS, dtype=x.dtype), torch.eye(LATENTS, dtype=x.dtype))

    to_the_end(weights, terms, beta, max_eval=4000, tolerance_change=1e-12, history_size=30)
    return terms()[1].item()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_linear_bernoulli_decoder_is_foretold_where_pixels_are_black_and_white(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """share: of the weight of collapse. The rule to second order is off by a fifth and more."""
    x = black_and_white(200, 40)
    of_rule = one_class(x, None)
    beta = share * of_rule.collapse()
    monkeypatch.setattr("pipeline.weight.spectrum.KNOTS", (beta,))
    solved = replace(of_rule, excess=of_class(x, "grey", None, LATENTS).excess[None])
    kl = trained_posteriors(x, beta)
    assert solved.rate(beta) == pytest.approx(kl, rel=0.05)
    assert of_rule.rate(beta) < 0.8 * kl


def test_classes_are_solved_side_by_side_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that share one small product wait for each other: on a busy machine, twelve times the CPU time."""
    threads, used = torch.get_num_threads(), []

    def rate(*_: object) -> tuple[float, bool]:
        used.append(torch.get_num_threads())
        return 1.0, True

    monkeypatch.setattr("pipeline.weight.bernoulli.rate", rate)
    try:
        torch.set_num_threads(2)
        of_split(bands(4), "bernoulli", "grey", SIGMA, LATENTS)
        assert set(used) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_weights_whose_solution_does_not_settle_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x = black_and_white(100, 20)
    assert of_class(x, "grey", None, LATENTS).unsettled == []
    monkeypatch.setattr("pipeline.weight.bernoulli.STEPS", 5)  # one check: there is nothing to compare with yet
    assert of_class(x, "grey", None, LATENTS).unsettled == [0.3, 3.0]
    assert of_class(x, "grey", None).unsettled == []


@pytest.mark.parametrize("likelihood", SOLVED)
def test_a_class_collapses_where_the_weight_crosses_its_largest_eigenvalue(likelihood: str) -> None:
    spectrum = of_bands(likelihood)
    for digit, weight in enumerate(spectrum.collapses().tolist()[:3]):
        below, above = weight * (1 - 1e-6), weight * (1 + 1e-6)
        assert 0 < spectrum.rates(below)[digit] < 1e-4
        assert spectrum.actives(below)[digit] >= 1
        assert spectrum.rates(above)[digit] == spectrum.actives(above)[digit] == 0
    assert spectrum.rate(1.001 * spectrum.collapse()) == 0
    if likelihood in ("bernoulli", "gaussian"):
        assert torch.equal(spectrum.collapses(), spectrum.eigenvalues[:, 0])


@pytest.mark.parametrize(("likelihood", "latents"), [("bernoulli", 1), ("gaussian", LATENTS), ("sigma_optimal", 1)])
def test_a_budget_of_nats_has_its_weight(likelihood: str, latents: int) -> None:
    spectrum = of_bands(likelihood, latents)
    weights = [spectrum.weight_for(nats) for nats in (0.1, 1.0, 5.0)]
    assert [spectrum.rate(weight) for weight in weights] == pytest.approx([0.1, 1, 5], rel=1e-9)
    assert weights == sorted(weights, reverse=True)


def test_each_further_latent_carries_less_and_those_that_do_not_pay_carry_nothing() -> None:
    beta = 2.0
    every = of_bands(latents=196)
    rates = [replace(every, latents=latents).rate(beta) for latents in range(1, 12)]
    gains = [later - rate for rate, later in pairwise(rates)]
    assert gains == sorted(gains, reverse=True)
    assert replace(every, latents=every.active(beta)).rate(beta) == every.rate(beta)


def test_half_the_sigma_acts_like_a_quarter_of_the_weight() -> None:
    half = of_split(bands(12), "gaussian", "grey", SIGMA / 2, LATENTS)
    assert half.rate(4 * 2.0) == pytest.approx(of_bands("gaussian").rate(2.0))


def test_binary_pixels_have_the_spectrum_of_their_draws() -> None:
    images = pictures(12)
    draws = torch.bernoulli(images.repeat(4000, 1), generator=source())
    found, expected = of_class(images, "binary", None).eigenvalues, of_class(draws, "grey", None).eigenvalues
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert found.mean() == pytest.approx(1)  # uncorrelated pixels would all have λ = 1


def test_classes_count_by_their_images() -> None:
    data = bands(12)
    few = data[(data.labels != 3) | (torch.arange(len(data)) < 40)]
    spectrum = of_split(few, "bernoulli", "grey", SIGMA, LATENTS, solve=False)
    assert spectrum.shares[3] == pytest.approx(4 / 112)
    assert spectrum.rate(1.0) == pytest.approx(float(spectrum.shares @ spectrum.rates(1.0)))
    torch.testing.assert_close(spectrum.rates(1.0)[4], of_bands().rates(1.0)[4])


def test_a_pixel_that_never_changes_counts_for_nothing() -> None:
    images = pictures(12)
    padded = torch.cat([images, torch.zeros(100, 3)], dim=1)
    expected = torch.cat([of_class(images, "grey", None).eigenvalues, torch.zeros(3)])
    torch.testing.assert_close(of_class(padded, "grey", None).eigenvalues, expected)


def test_a_class_whose_images_are_all_alike_carries_nothing() -> None:
    data = bands(4)
    alike = torch.where(data.labels == 7, (data.labels == 7).int().argmax(), torch.arange(len(data)))
    rates = of_split(data[alike], "bernoulli", "grey", SIGMA, LATENTS).rates(0.5)
    assert rates[7] == 0
    assert all(rate > 0 for digit, rate in enumerate(rates) if digit != 7)
    first = [int((data.labels == label).int().argmax()) for label in data.labels]
    with pytest.raises(UserError, match="no weight gives any kl"):
        of_split(data[torch.tensor(first)], "bernoulli", "grey", SIGMA, LATENTS).weight_for(1.0)


def test_what_has_no_spectrum_is_refused_by_name() -> None:
    data = bands(4)
    with pytest.raises(UserError, match="digit 7 has no training images"):
        of_split(data[data.labels != 7], "bernoulli", "grey", SIGMA, LATENTS)
    for name in LIKELIHOODS.keys() - set(SOLVED):
        with pytest.raises(UserError, match=f"no closed form for objective.likelihood {name}: it knows bernoulli, "):
            of_split(data, name, "grey", SIGMA, LATENTS)
    spectrum = of_bands()
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="needs a KL weight above 0"):
            spectrum.rate(weight)
        with pytest.raises(UserError, match="budget must be a positive number of nats"):
            spectrum.weight_for(weight)

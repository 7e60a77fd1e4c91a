"""Likelihoods: normalised, stable log-probabilities whose means and draws agree with them."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as Reference
from torch.distributions import ContinuousBernoulli, Normal

from pipeline.model import likelihood
from pipeline.model.likelihood import Bernoulli, DiscretizedLogistic, Likelihood, SigmaOptimal

PIXELS = Bernoulli()


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_image(pixels: int) -> Tensor:
    """(2^pixels, pixels): all binary images of that many pixels."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=pixels)), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 5, 784])
def test_binary_pixels_have_the_log_probability_of_independent_coins(size: int) -> None:
    logits, pixels = 3 * draws(6, size), (draws(6, size, seed=1) > 0).double()
    expected = Reference(logits=logits).log_prob(pixels).sum(-1)
    assert torch.allclose(PIXELS.log_prob(logits, pixels), expected)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_probabilities_of_all_images_sum_to_one(size: int) -> None:
    log_probs = PIXELS.log_prob(4 * draws(1, size).expand(2**size, size), every_image(size))
    assert log_probs.exp().sum() == pytest.approx(1)


@pytest.mark.parametrize("logit", [-100.0, -30.0, 30.0, 100.0])
def test_extreme_logits_stay_finite_and_right_in_float32(logit: float) -> None:
    """A pixel that contradicts the logit costs |logit| nats; one that agrees costs almost nothing."""
    outputs = torch.full((1, 10), logit)
    agreeing = torch.full((1, 10), float(logit > 0))
    assert PIXELS.log_prob(outputs, agreeing).item() == pytest.approx(0, abs=1e-6)
    assert PIXELS.log_prob(outputs, 1 - agreeing).item() == pytest.approx(-10 * abs(logit))


@pytest.mark.parametrize("size", [112, 784])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0, 1000.0])
def test_products_of_probabilities_give_the_log_probability_of_the_plain_formula(scale: float, size: int) -> None:
    """Without a gradient seven logarithms stand for 784; grey pixels, several codes an image, strided outputs."""
    outputs = (scale * draws(size, 4, 3)).movedim(0, -1).float()
    grey = torch.rand(3, size, generator=torch.Generator().manual_seed(4))
    plain = PIXELS.log_prob(outputs.double(), grey.double())
    with torch.no_grad():
        fast = PIXELS.log_prob(outputs, grey)
    assert torch.allclose(fast, plain.float(), rtol=1e-6, atol=1e-6 * size)
    assert torch.allclose(likelihood.log_prob_by_products(outputs.double(), grey.double()), plain, rtol=1e-12)


@pytest.mark.parametrize("logit", [-1000.0, 0.0, 1000.0])
def test_products_of_784_equal_factors_are_no_number_too_small(logit: float) -> None:
    outputs, pixels = torch.full((2, 784), logit), torch.full((2, 784), float(logit > 0))
    expected = PIXELS.log_prob(outputs, pixels)
    assert torch.allclose(likelihood.log_prob_by_products(outputs, pixels), expected, atol=1e-4)


@pytest.mark.parametrize("size", [10, 784])
@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_the_cross_entropy_of_compiled_code_is_the_plain_one_with_its_gradient(scale: float, size: int) -> None:
    """Grey pixels, several codes an image."""
    outputs = (scale * draws(size, 4, 3)).movedim(0, -1).requires_grad_()
    grey = torch.rand(3, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    share = torch.rand(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, plain = likelihood.CompiledCrossEntropy.apply(outputs, grey), PIXELS.log_prob(outputs, grey)
    assert torch.allclose(found, plain, rtol=1e-12)
    gradient, expected = (torch.autograd.grad((share * value).sum(), outputs)[0] for value in (found, plain))
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_gradients_at_extreme_logits_are_finite_and_right() -> None:
    outputs = torch.tensor([[-100.0, 100.0]], requires_grad=True)
    PIXELS.log_prob(outputs, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[1.0, -1.0]]


def test_gradients_agree_with_finite_differences() -> None:
    pixels = torch.rand(3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: PIXELS.log_prob(logits, pixels), draws(3, 7).requires_grad_())


def test_grey_pixels_give_the_mean_over_their_binary_draws() -> None:
    """The cross entropy is linear in x: the grey log-probability is the expectation over binary images."""
    logits, grey = draws(1, 6), torch.rand(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = every_image(6)
    chances = (grey * images + (1 - grey) * (1 - images)).prod(-1)
    expected = (chances * PIXELS.log_prob(logits.expand(64, 6), images)).sum()
    assert PIXELS.log_prob(logits, grey).item() == pytest.approx(expected.item())


def test_the_logit_of_the_pixel_itself_explains_it_best() -> None:
    grey = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64)
    best = PIXELS.log_prob(grey.logit(), grey)
    assert (PIXELS.log_prob(grey.logit() + 0.1 * draws(50, 3), grey) < best).all()


def test_many_codes_of_one_image_are_scored_at_once() -> None:
    logits, pixels = draws(4, 3, 5), (draws(3, 5, seed=1) > 0).double()
    together = PIXELS.log_prob(logits, pixels)
    assert together.shape == (4, 3)
    for code in range(4):
        assert torch.allclose(together[code], PIXELS.log_prob(logits[code], pixels))


def test_half_precision_outputs_are_summed_in_full_precision() -> None:
    logits, pixels = draws(2, 784).bfloat16(), (draws(2, 784, seed=1) > 0).float()
    scored = PIXELS.log_prob(logits, pixels)
    assert scored.dtype == torch.float32
    assert torch.allclose(scored, PIXELS.log_prob(logits.float(), pixels))


def test_the_mean_is_the_chance_of_a_one() -> None:
    logits = draws(20, 1).float()
    chance = PIXELS.log_prob(logits, torch.ones(20, 1)).exp()
    assert torch.allclose(PIXELS.mean(logits).squeeze(1), chance)


def test_draws_are_binary_with_the_mean_and_repeat_with_the_seed() -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0]).expand(20_000, 4)
    drawn, again = (PIXELS.sample(logits, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(drawn, again)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.allclose(drawn.mean(0), PIXELS.mean(logits[0]), atol=0.015)


NAMES: tuple[likelihood.Name, ...] = likelihood.Name.__args__  # type: ignore[attr-defined]
DENSITIES: tuple[likelihood.Name, ...] = ("gaussian", "sigma_learned", "sigma_optimal")
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def build(name: likelihood.Name, size: int = 784) -> Likelihood:
    """In float64, in eval mode, for images of `size` pixels; the σ are 0.3, 0.25 and 0.2."""
    built = DiscretizedLogistic(size) if name == "discretized_logistic" else likelihood.build(name, sigma=0.3)
    if isinstance(built, SigmaOptimal):
        built.calibrate(torch.tensor(0.04))
    return built.double().eval()


def one_pixel(name: likelihood.Name, output: float, values: Tensor) -> Tensor:
    """log p of each value (V,) of an image of one pixel."""
    return build(name, 1).log_prob(torch.full((len(values), 1), output, dtype=torch.float64), values[:, None])


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_params_allow_is_built(name: likelihood.Name) -> None:
    assert isinstance(likelihood.build(name, sigma=0.1), likelihood.LIKELIHOODS[name])


def test_a_gaussian_without_its_sigma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a sigma \(objective\.sigma\)"):
        likelihood.build("gaussian")


@pytest.mark.parametrize("output", [-40.0, -3.0, -0.1, 0.0, 1e-4, 0.5, 8.0])
def test_the_continuous_bernoulli_integrates_to_one(output: float) -> None:
    """On a grid that is fine where the mass is, at the ends."""
    x = (1 - torch.linspace(0, math.pi, 20_001, dtype=torch.float64).cos()) / 2
    assert torch.trapezoid(one_pixel("continuous_bernoulli", output, x).exp(), x).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("output", [-4.0, 0.0, 2.0])
def test_a_gaussian_integrates_to_one(name: likelihood.Name, output: float) -> None:
    x = torch.linspace(-5, 6, 20_001, dtype=torch.float64)
    assert torch.trapezoid(one_pixel(name, output, x).exp(), x).item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [-8.0, -4.0, -1.0, 3.0])
@pytest.mark.parametrize("output", [-1e4, -5.0, 0.0, 2.0, 1e4])
def test_the_probabilities_of_the_256_levels_sum_to_one(output: float, scale: float) -> None:
    logistic = DiscretizedLogistic(1).double()
    torch.nn.init.constant_(logistic.kept, scale / likelihood.PACE)
    outputs = torch.full((256, 1), output, dtype=torch.float64)
    assert logistic.log_prob(outputs, LEVELS[:, None]).exp().sum().item() == pytest.approx(1)


def test_the_continuous_bernoulli_is_torch_s() -> None:
    """Which has a series near λ = ½ too, but of a lower order: hence the tolerance there."""
    logits = torch.cat([3 * draws(6, 784), 1e-3 * draws(6, 784, seed=3)])
    pixels = draws(12, 784, seed=1).sigmoid()
    expected = ContinuousBernoulli(logits=logits).log_prob(pixels).sum(-1)
    assert torch.allclose(build("continuous_bernoulli").log_prob(logits, pixels), expected, rtol=1e-6)
    means = ContinuousBernoulli(logits=logits).mean.float()
    assert torch.allclose(build("continuous_bernoulli").mean(logits), means, atol=1e-5)


@pytest.mark.parametrize(("name", "sigma"), [("gaussian", 0.3), ("sigma_learned", 0.25), ("sigma_optimal", 0.2)])
def test_a_gaussian_is_torch_s(name: likelihood.Name, sigma: float) -> None:
    outputs, pixels = draws(6, 784), draws(6, 784, seed=1).sigmoid()
    expected = Normal(outputs.sigmoid(), sigma).log_prob(pixels).sum(-1)
    assert torch.allclose(build(name).log_prob(outputs, pixels), expected)


def test_a_level_s_probability_is_the_logistic_s_mass_around_it() -> None:
    """By differences of its distribution function, where they lose nothing; all beyond at the ends."""
    outputs, scale, logistic = draws(256, 1), 0.1, DiscretizedLogistic(1).double()
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])])
    below, above = (((edge - logistic.location(outputs)[:, 0]) / scale).sigmoid() for edge in (edges[:-1], edges[1:]))
    assert torch.allclose(logistic.log_prob(outputs, LEVELS[:, None]).exp(), above - below)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_every_likelihood_agree_with_finite_differences(name: likelihood.Name, training: bool) -> None:
    """Near λ = ½ and at the levels' ends too. sigma_optimal's while training: see below."""
    ours = build(name, 7).train(training and name != "sigma_optimal")
    pixels = torch.tensor([[0.0, 1.0, 0.5, 0.2, 1 / 255, 254 / 255, 0.0]], dtype=torch.float64)
    outputs = torch.tensor([[0.0, 1e-5, -0.19, 0.21, 3.0, -30.0, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda outputs: ours.log_prob(outputs, pixels), outputs)


@pytest.mark.parametrize("name", ["sigma_learned", "discretized_logistic"])
def test_gradients_of_its_own_weights_agree_with_finite_differences(name: likelihood.Name) -> None:
    ours, outputs, pixels = build(name, 5), draws(3, 5), (255 * draws(3, 5, seed=1).sigmoid()).round() / 255
    (weight,) = ours.parameters()
    before = weight.detach().clone()
    gradient = torch.autograd.grad(ours.log_prob(outputs, pixels).sum(), weight)[0].sum()
    with torch.no_grad():
        sums = []
        for step in (1e-6, -1e-6):
            weight.copy_(before + step)
            sums.append(ours.log_prob(outputs, pixels).sum())
    assert gradient.item() == pytest.approx(((sums[0] - sums[1]) / 2e-6).item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("output", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("pixel", [0.0, 0.5, 1.0])
def test_extremes_stay_finite_in_float32_and_so_do_their_gradients(
    name: likelihood.Name, training: bool, output: float, pixel: float
) -> None:
    ours = build(name).float().train(training)
    outputs = torch.full((2, 784), output, requires_grad=True)
    log_prob = ours.log_prob(outputs, torch.full((2, 784), pixel))
    log_prob.sum().backward()
    assert log_prob.shape == (2,)
    assert log_prob.isfinite().all()
    for tensor in (outputs, *ours.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    for picture in (ours.mean(outputs), ours.sample(outputs, torch.Generator().manual_seed(0))):
        assert picture.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_summed_in_full_precision_by_all(name: likelihood.Name) -> None:
    ours, outputs, pixels = build(name).float(), draws(2, 784).bfloat16(), draws(2, 784, seed=1).sigmoid().float()
    assert torch.equal(ours.log_prob(outputs, pixels), ours.log_prob(outputs.float(), pixels))


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_and_the_same_seed_draws_the_same(name: likelihood.Name) -> None:
    ours = build(name, 9).float()
    outputs = torch.tensor([-40.0, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 3.0, 40.0])
    drawn, again = (ours.sample(outputs.expand(100_000, -1), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(drawn, again)
    assert torch.allclose(drawn.mean(0), ours.mean(outputs), atol=0.006)
    assert 0 <= ours.mean(outputs).min() <= ours.mean(outputs).max() <= 1


def test_draws_of_the_continuous_bernoulli_have_its_variance() -> None:
    outputs = torch.tensor([-6.0, -0.5, 0.0, 2.0, 9.0])
    drawn = build("continuous_bernoulli").sample(outputs.expand(200_000, -1), torch.Generator().manual_seed(0))
    variance = ContinuousBernoulli(logits=outputs.double()).variance.float()
    assert torch.allclose(drawn.var(0), variance, rtol=0.02)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_draws_of_the_logistic_are_levels_as_often_as_their_probability_says() -> None:
    logistic = build("discretized_logistic", 1).float()
    outputs = torch.tensor([[1.5]])
    levels = logistic.sample(outputs.expand(400_000, 1), torch.Generator().manual_seed(0)) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    counts = torch.bincount(levels.round().long()[:, 0], minlength=256) / 400_000
    expected = logistic.log_prob(outputs.expand(256, 1), LEVELS.float()[:, None]).exp()
    assert torch.allclose(counts, expected, atol=0.002)


@pytest.mark.parametrize("scale", [-7.0, -5.0, -2.0, 0.0])
def test_the_logistic_s_mean_is_that_of_its_levels(scale: float) -> None:
    logistic = DiscretizedLogistic(1).double()
    torch.nn.init.constant_(logistic.kept, scale / likelihood.PACE)
    for output in (-9.0, -1.3, 0.4, 9.0):
        outputs = torch.full((256, 1), output, dtype=torch.float64)
        mean = (logistic.log_prob(outputs, LEVELS[:, None]).exp() * LEVELS).sum().item()
        assert logistic.mean(outputs[:1]).item() == pytest.approx(mean, abs=0.5 / 255)


@pytest.mark.parametrize("scale", [-3.0, -1.5])
def test_a_pixel_may_be_surely_black_or_surely_white_whatever_the_scale(scale: float) -> None:
    logistic = DiscretizedLogistic(1).double()
    torch.nn.init.constant_(logistic.kept, scale / likelihood.PACE)
    ends = logistic.log_prob(torch.tensor([[-20.0], [20.0]]).double(), torch.tensor([[0.0], [1.0]]).double())
    assert ends.exp().min() > 0.98


def test_pixels_between_levels_count_as_the_nearest() -> None:
    outputs, levels = draws(1, 784), (255 * draws(1, 784, seed=1).sigmoid()).round()
    ours = build("discretized_logistic")
    assert torch.equal(ours.log_prob(outputs, (levels + 0.4) / 255), ours.log_prob(outputs, levels / 255))


def test_the_optimal_sigma_explains_the_batch_best_while_it_trains() -> None:
    """−log p is then D/2 (log 2π σ² + 1), and no other σ gives less."""
    outputs, pixels = draws(5, 784), draws(5, 784, seed=1).sigmoid()
    ours = build("sigma_optimal")
    error = (pixels - outputs.sigmoid()).square().mean()
    best = ours.train().log_prob(outputs, pixels).mean()
    assert best.item() == pytest.approx(-392 * (math.log(2 * math.pi * error) + 1))
    for sigma in (0.9 * error.sqrt(), 1.1 * error.sqrt()):
        assert Normal(outputs.sigmoid(), sigma).log_prob(pixels).sum(-1).mean() < best


def test_the_optimal_sigma_sends_the_gradient_that_it_has_as_a_function_of_the_batch() -> None:
    """−D/2 log MSE through and through: holding σ still loses nothing, since at the best σ nothing is to be had."""
    outputs, pixels = draws(5, 784).requires_grad_(), draws(5, 784, seed=1).sigmoid()
    (held,) = torch.autograd.grad(build("sigma_optimal").train().log_prob(outputs, pixels).mean(), outputs)
    whole = -392 * (pixels - outputs.sigmoid()).square().mean().log()
    assert torch.allclose(held, torch.autograd.grad(whole, outputs)[0])


def test_outside_training_an_image_s_log_probability_does_not_depend_on_its_neighbours() -> None:
    outputs, pixels, ours = draws(5, 784), draws(5, 784, seed=1).sigmoid(), build("sigma_optimal")
    together = ours.log_prob(outputs, pixels)
    assert torch.allclose(together[:1], ours.log_prob(outputs[:1], pixels[:1]))
    ours.train()
    assert not torch.allclose(ours.log_prob(outputs, pixels)[:1], ours.log_prob(outputs[:1], pixels[:1]))

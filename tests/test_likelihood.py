"""The Bernoulli likelihood: a normalised, stable log-probability whose mean and draws agree with it."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as Reference

from pipeline import likelihood
from pipeline.likelihood import Bernoulli

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


def test_every_name_that_params_allow_is_built() -> None:
    for name in likelihood.Name.__args__:  # type: ignore[attr-defined]
        assert isinstance(likelihood.build(name), torch.nn.Module)

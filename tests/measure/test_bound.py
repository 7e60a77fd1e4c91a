"""The importance-weighted bound against the exact log-likelihood, and the latents in use."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.splits import Split, to_unit
from pipeline.measure import bound
from pipeline.model import prior
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import posteriors
from pipeline.training import objective

ONE = Architecture(1, (16,), (16,), "concat", encoder_sees_label=True)
COUNT = 6


def split(count: int = COUNT, seed: int = 0) -> Split:
    """Images of black and white alone: grey and binary pixels are the same, so that nothing else is random."""
    generator = torch.Generator().manual_seed(seed)
    return Split(255 * torch.randint(0, 2, (count, 1, 28, 28), generator=generator).byte(), torch.arange(count) % 10)


def greys(count: int) -> Split:
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(2)).byte()
    return Split(images, torch.arange(count) % 10)


def model(name: prior.Name = "standard") -> CVAE:
    """One latent dimension that the pixels depend on by several nats, and a posterior that is far from the best."""
    random = build(replace(ONE, prior=name, prior_components=2 if name == "mixture" else 1), 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in random.prior_weights.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
        random.pixels.weight *= 2
        random.log_var.bias.sub_(0.5)
    return random


def indifferent() -> CVAE:
    """The decoder is deaf to z and the posterior is the prior: every draw's ratio is log p(x∣y) itself."""
    deaf = model()
    for layer in (deaf.mu, deaf.log_var):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    first = deaf.decoder[0]
    assert isinstance(first, nn.Linear)
    nn.init.zeros_(first.weight[:, 0])
    return deaf


def exact(model: CVAE, data: Split) -> Tensor:
    """log ∫ p(x∣z,y) p(z∣y) dz by the trapezoid rule on a fine grid, (N,) nats per image."""
    z = torch.linspace(-9, 9, 2001)
    with torch.no_grad():
        outputs = model.decode(z[:, None, None].expand(-1, len(data), 1), data.labels)
        log_p_x = model.likelihood.log_prob(outputs, to_unit(data.images).flatten(1)).double()
        log_p_z = model.prior().log_prob(z[:, None, None].expand(-1, len(data), 1), data.labels).double()
    log_joint = log_p_x + log_p_z
    return torch.logsumexp(log_joint, 0) + math.log(18 / 2000)


def elbo(model: CVAE, data: Split, draws: int = 4000) -> Tensor:
    """The evidence lower bound with the KL in closed form, averaged over many draws."""
    noise = torch.randn(draws * len(data), 1, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        terms = objective.terms(model, to_unit(data.images).repeat(draws, 1, 1, 1), data.labels.repeat(draws), noise)
    return -(terms.reconstruction + terms.kl).view(draws, len(data)).mean(0)


def averaged(k: int, repeats: int, ours: CVAE | None = None) -> float:
    """The bound's mean over images and independent draws."""
    many = split()[torch.arange(COUNT).repeat(repeats)]
    return float(bound.log_likelihood(ours or model(), many, "grey", k, seed=0).mean())


def test_the_bound_with_many_draws_is_the_exact_log_likelihood() -> None:
    estimate = bound.log_likelihood(model(), split(), "grey", k=5000, seed=0)
    assert (estimate - exact(model(), split())).abs().max() < 0.2


@pytest.mark.parametrize("name", prior.PRIORS)
def test_the_bound_tightens_with_more_draws_and_stays_below_the_truth(name: prior.Name) -> None:
    """Under each prior: z is drawn from q alone, but weighed by p(z∣y)."""
    ours = model(name)
    truth = float(exact(ours, split()).mean())
    values = [averaged(k, seeds, ours) for k, seeds in ((1, 1000), (3, 300), (10, 100), (500, 2))]
    steps = [later - earlier for earlier, later in zip(values, [*values[1:], truth], strict=True)]
    assert min(steps[:-1]) > 0.05
    assert steps[-1] > -0.05


def test_one_draw_gives_the_evidence_lower_bound() -> None:
    assert averaged(k=1, repeats=1000) == pytest.approx(float(elbo(model(), split()).mean()), abs=0.3)


def test_the_evidence_lower_bound_lies_below_the_truth_for_every_image() -> None:
    assert (elbo(model(), split()) < exact(model(), split())).all()


def test_the_bound_of_the_true_posterior_needs_one_draw() -> None:
    deaf = indifferent()
    for k in (1, 7):
        assert torch.allclose(bound.log_likelihood(deaf, split(), "grey", k, 0).double(), exact(deaf, split()))


@pytest.mark.parametrize(("k", "rows"), [(40, 16), (40, 7), (40, 90), (40, 40), (60, 40)])
def test_the_bound_does_not_depend_on_how_the_draws_are_cut(k: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = averaged(k, repeats=5)
    monkeypatch.setattr(bound, "ROWS", rows)
    assert averaged(k, repeats=5) == pytest.approx(whole, abs=0.15)


@pytest.mark.parametrize("name", prior.PRIORS)
def test_draws_decoded_image_by_image_give_the_bound_of_all_at_once(
    name: prior.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise: the two ways may differ by the order of their sums alone."""
    ours = model(name)
    with monkeypatch.context() as patch:
        patch.setattr(ours, "decode", None)
        fast = bound.log_likelihood(ours, greys(10), "grey", 200, 0)
    monkeypatch.setattr(bound, "ONE_BY_ONE", 10**9)
    plain = bound.log_likelihood(ours, greys(10), "grey", 200, 0)
    assert torch.allclose(fast, plain, atol=1e-3, rtol=0)


def test_images_keep_their_order_where_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data = greys(10)
    monkeypatch.setattr(bound, "ROWS", 3 * 2000)
    together = bound.log_likelihood(model(), data, "grey", 2000, 0)
    alone = torch.cat([bound.log_likelihood(model(), data[slice(i, i + 1)], "grey", 2000, 0) for i in range(10)])
    assert (together - alone).abs().max() < 0.1
    assert (together.roll(1) - alone).abs().max() > 1


def test_the_same_seed_gives_the_same_bound_and_another_another() -> None:
    first, again, other = (bound.log_likelihood(model(), split(), "grey", 5, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_measuring_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    bound.log_likelihood(model(), greys(3), "binary", 5, 0)
    posteriors(model(), greys(3), "binary")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_binary_pixels_are_measured_as_binary_images() -> None:
    """Every logit is 1, so that log p(x) = Σ x − 784 log(1 + e): the draws' Σ x is whole, and differs by seed."""
    blind = indifferent()
    nn.init.zeros_(blind.pixels.weight)
    nn.init.ones_(blind.pixels.bias)
    data = Split(torch.full((1, 1, 28, 28), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    ones = torch.stack([bound.log_likelihood(blind, data, "binary", 1, seed) for seed in range(3)]).double()
    ones = ones + 784 * math.log(1 + math.e)
    assert torch.allclose(ones, ones.round(), atol=1e-3)
    assert len(ones.unique()) > 1


def test_the_binary_draw_does_not_depend_on_the_number_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds with more draws are compared on the same pixels: with a deaf model they are then the same number."""
    monkeypatch.setattr(bound, "ROWS", 8)
    deaf = indifferent()
    one, many = (bound.log_likelihood(deaf, greys(20), "binary", k, 0) for k in (1, 4))
    assert torch.allclose(one, many, atol=1e-2)


def test_posteriors_are_the_encoder_s_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "ROWS", 7)
    data = greys(25)
    mu, log_var = posteriors(model(), data, "grey")
    expected = model().encode(to_unit(data.images), data.labels)
    assert torch.allclose(mu, expected[0], atol=1e-6)
    assert torch.allclose(log_var, expected[1], atol=1e-6)
    assert not mu.requires_grad


def test_a_dimension_is_active_where_its_mean_varies() -> None:
    """The rule is on the variance: a standard deviation of 0.11 is active, one of 0.09 is not."""
    wave = torch.tensor([-1.0, 1.0]).repeat(500)
    mu = torch.stack([0.11 * wave, 0.09 * wave, 0 * wave + 5, 3 * wave], 1)
    assert bound.active_dimensions(mu).tolist() == [0, 3]


def test_a_constant_code_has_no_active_dimension() -> None:
    assert bound.active_dimensions(torch.full((10, 4), 2.0)).tolist() == []

"""The iwae bound against the exact log-likelihood, and the active latent dimensions."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.splits import Split, to_unit
from pipeline.measure import bound
from pipeline.model import prior
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.training import objective

ONE = Architecture(1, (16,), (16,), "concat", encoder_sees_label=True)
COUNT = 6


def split(count: int = COUNT) -> Split:
    """Black and white images: grey and binary pixels are the same."""
    generator = torch.Generator().manual_seed(0)
    return Split(255 * torch.randint(0, 2, (count, 1, 28, 28), generator=generator).byte(), torch.arange(count) % 10)


def greys(count: int) -> Split:
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=torch.Generator().manual_seed(2)).byte()
    return Split(images, torch.arange(count) % 10)


def model(name: prior.Name = "standard") -> CVAE:
    """One latent dimension, which changes log p(x∣z) by several nats, and a q far from the true posterior."""
    random = build(replace(ONE, prior=name, prior_components=2 if name == "mixture" else 1), 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in random.prior_weights.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
        random.pixels.weight *= 2
        random.log_var.bias.sub_(0.5)
    return random


def ignoring_z() -> CVAE:
    """The decoder ignores z, and q is the prior: so every ratio is log p(x∣y) itself."""
    ours = model()
    for layer in (ours.mu, ours.log_var):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    first = ours.decoder[0]
    assert isinstance(first, nn.Linear)
    nn.init.zeros_(first.weight[:, 0])
    return ours


def exact(model: CVAE, data: Split) -> Tensor:
    """log ∫ p(x∣z,y) p(z∣y) dz on a fine grid: (N,) nats per image."""
    z = torch.linspace(-9, 9, 2001)[:, None, None].expand(-1, len(data), 1)
    with torch.no_grad():
        outputs = model.decode(z, data.labels)
        log_p_x = model.likelihood.log_prob(outputs, to_unit(data.images).flatten(1)).double()
        log_p_z = model.prior().log_prob(z, data.labels).double()
    return torch.logsumexp(log_p_x + log_p_z, 0) + math.log(18 / 2000)


def averaged(k: int, repeats: int, ours: CVAE) -> float:
    """The bound's mean over images and independent samples."""
    many = split()[torch.arange(COUNT).repeat(repeats)]
    return float(bound.log_likelihood(ours, many, "grey", k, seed=0).mean())


@pytest.mark.parametrize("name", prior.PRIORS)
def test_the_bound_rises_with_k_and_stays_below_the_truth(name: prior.Name) -> None:
    ours = model(name)
    truth = float(exact(ours, split()).mean())
    values = [averaged(k, seeds, ours) for k, seeds in ((1, 1000), (3, 300), (10, 100), (500, 2))]
    steps = [later - earlier for earlier, later in zip(values, [*values[1:], truth], strict=True)]
    assert min(steps[:-1]) > 0.05
    assert steps[-1] > -0.05
    estimate = bound.log_likelihood(ours, split(), "grey", k=5000, seed=0)
    assert (estimate - exact(ours, split())).abs().max() < 0.2


def test_with_one_sample_it_is_the_evidence_lower_bound() -> None:
    """With the KL in closed form, as a mean over samples of z."""
    many = split()[torch.arange(COUNT).repeat(4000)]
    noise = torch.randn(len(many), 1, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        terms = objective.terms(model(), to_unit(many.images), many.labels, noise)
    lower = -(terms.reconstruction + terms.kl).view(-1, COUNT).mean(0)
    assert averaged(k=1, repeats=1000, ours=model()) == pytest.approx(float(lower.mean()), abs=0.3)
    assert (lower < exact(model(), split())).all()


def test_where_q_is_the_true_posterior_one_sample_is_enough() -> None:
    ours = ignoring_z()
    for k in (1, 7):
        assert torch.allclose(bound.log_likelihood(ours, split(), "grey", k, 0).double(), exact(ours, split()))


@pytest.mark.parametrize("name", prior.PRIORS)
def test_decoding_one_image_at_a_time_gives_the_same_bound(name: prior.Name, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = bound.log_likelihood(model(name), greys(10), "grey", 200, 0)
    monkeypatch.setattr(bound, "ONE_BY_ONE", 1000)
    assert torch.allclose(fast, bound.log_likelihood(model(name), greys(10), "grey", 200, 0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("at_once", [3 * 2000, 900])
def test_the_bound_does_not_depend_on_the_batches(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with several images in each, nor with a part of one image's latents."""
    data = greys(10)
    monkeypatch.setattr(bound, "DECODED_AT_ONCE", at_once)
    together = bound.log_likelihood(model(), data, "grey", 2000, 0)
    monkeypatch.undo()
    alone = torch.cat([bound.log_likelihood(model(), data[slice(i, i + 1)], "grey", 2000, 0) for i in range(10)])
    assert (together - alone).abs().max() < 0.1
    assert (together.roll(1) - alone).abs().max() > 1


def test_binary_pixels_are_sampled_once_by_the_seed_whatever_k_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every logit is 1, so that log p(x) = Σ x − 784 log(1 + e): for binary x, Σ x is an integer."""
    ours = ignoring_z()
    nn.init.zeros_(ours.pixels.weight)
    nn.init.ones_(ours.pixels.bias)
    monkeypatch.setattr(bound, "DECODED_AT_ONCE", 8)
    once, again, other = (
        bound.log_likelihood(ours, greys(20), "binary", k, seed) for k, seed in ((1, 0), (4, 0), (1, 1))
    )
    ones = once.double() + 784 * math.log(1 + math.e)
    assert torch.allclose(ones, ones.round(), atol=1e-3)
    assert torch.allclose(once, again, atol=1e-2)
    assert not torch.allclose(once, other, atol=1)


def test_a_dimension_is_active_where_its_mean_varies() -> None:
    """The rule is on the variance: a standard deviation of 0.11 is active, one of 0.09 is not."""
    wave = torch.tensor([-1.0, 1.0]).repeat(500)
    mu = torch.stack([0.11 * wave, 0.09 * wave, 0 * wave + 5, 3 * wave], 1)
    assert bound.active_dimensions(mu).tolist() == [0, 3]

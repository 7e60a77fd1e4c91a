"""Gaussians and priors: densities that integrate to one, samples that come from them, divergences that agree."""

import math

import pytest
import torch
from latents import LABELS
from latents import normal as noise
from torch.distributions import Distribution, Independent, kl_divergence
from torch.distributions import Normal as Reference

from pipeline.model import prior
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.gaussian import Normal
from pipeline.model.prior import PRIORS, Mixtures, by_label


def normal(*shape: int, seed: int = 0) -> Normal:
    return Normal(noise(*shape, seed=seed), noise(*shape, seed=seed + 100))


def reference(q: Normal) -> Distribution:
    return Independent(Reference(q.mu, (q.log_var / 2).exp()), 1)


def model(name: prior.Name, latent_size: int = 2) -> CVAE:
    """A small CVAE whose prior has moved away from its start."""
    sizes = Architecture(latent_size, (16,), (16,), "concat", True, prior=name, prior_components=3)
    built = build(sizes, 0).double()
    with torch.no_grad():
        built.mu.weight *= 15
        for weight in built.prior_weights.parameters():
            weight.add_(0.6 * noise(*weight.shape, seed=1))
    return built


def density(name: prior.Name, latent_size: int = 2) -> prior.Prior:
    with torch.no_grad():
        return model(name, latent_size).prior()


def test_a_normal_is_torch_s_own() -> None:
    q, p, z = normal(5, 3), normal(5, 3, seed=1), noise(4, 5, 3, seed=2)
    assert torch.allclose(q.log_prob(z), reference(q).log_prob(z))
    assert torch.allclose(q.kl(p).sum(-1), kl_divergence(reference(q), reference(p)))
    assert torch.allclose(q.sample(z), q.mu + reference(q).stddev * z)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_integrates_to_one(name: prior.Name) -> None:
    z = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    log_probs = density(name, 1).log_prob(z[:, None, None].expand(-1, 10, 1), LABELS)
    assert torch.allclose(torch.trapezoid(log_probs.exp(), z, dim=0), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("name", PRIORS)
def test_samples_come_from_the_density_and_have_its_mean(name: prior.Name) -> None:
    """A histogram of the samples of one label against the density at the centres of its bins."""
    ours, count, width = density(name, 1), 200_000, 0.25
    z = ours.sample(torch.full((count,), 4), torch.Generator().manual_seed(0))
    centres = torch.arange(-8, 8, width, dtype=torch.float64) + width / 2
    shares = torch.histc(z.float(), 64, -8, 8).double() / count / width
    expected = ours.log_prob(centres[:, None], torch.full((64,), 4)).exp()
    assert (shares - expected).abs().max() < 0.02 * expected.max() + 0.01
    assert z.mean().item() == pytest.approx(ours.mean(LABELS[4:5]).item(), abs=0.05)


@pytest.mark.parametrize("name", ["standard", "class"])
def test_the_standard_prior_is_one_and_a_learned_gaussian_starts_as_it(name: prior.Name) -> None:
    fresh = build(Architecture(2, (8,), (8,), "concat", encoder_sees_label=True, prior=name), 0).prior()
    z = noise(10, 2).float()
    assert torch.allclose(fresh.log_prob(z, LABELS), Reference(0.0, 1.0).log_prob(z).sum(-1))


def test_the_kl_of_a_mixture_of_one_gaussian_has_the_closed_form_as_its_mean() -> None:
    p, count = normal(10, 2), 100_000
    closed, sampled = by_label(p), Mixtures(Normal(p.mu[:, None], p.log_var[:, None]))
    for label in (0, 3):
        q = Normal(*(part.expand(count, 2) for part in normal(2, seed=4)))
        labels, z = LABELS[label].expand(count), q.sample(noise(count, 2, seed=5))
        exact = closed.kl(q, z, labels)[0].sum().item()
        estimates = sampled.kl(q, z, labels).sum(-1)
        error = 5 * float(estimates.std()) / math.sqrt(count)
        assert estimates.mean().item() == pytest.approx(exact, abs=error)
        assert error < 0.1 * exact


def test_the_components_of_a_vamp_prior_are_posteriors_of_its_pictures() -> None:
    ours = model("mixture")
    components = ours.prior().components  # type: ignore[attr-defined]
    for label in (0, 6):
        pictures = ours.prior_weights.pseudo_inputs[label].sigmoid().view(3, 1, 28, 28)  # type: ignore[index]
        for part, expected in zip(components, ours.encode(pictures, torch.full((3,), label)), strict=True):
            assert torch.allclose(part[label], expected)


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "standard"])
def test_every_weight_of_a_prior_learns(name: prior.Name) -> None:
    ours, q = model(name), normal(10, 2, seed=8)
    ours.prior().kl(q, q.sample(noise(10, 2, seed=7)), LABELS).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in ours.prior_weights.parameters())

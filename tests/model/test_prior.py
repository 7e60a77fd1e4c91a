"""Priors: densities that integrate to one, draws that come from them, divergences that agree with each other."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from pipeline.model import prior
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.gaussian import Normal as Gaussian
from pipeline.model.prior import Mixtures, by_label

LABELS = torch.arange(10)
NAMES: tuple[prior.Name, ...] = prior.Name.__args__  # type: ignore[attr-defined]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(name: prior.Name, latent_size: int = 2, components: int = 3) -> CVAE:
    """A small CVAE whose prior has wandered off from where it starts."""
    count = components if name == "mixture" else 1
    architecture = Architecture(
        latent_size, (16,), (16,), "concat", encoder_sees_label=True, prior=name, prior_components=count
    )
    built = build(architecture, 0).double()
    with torch.no_grad():
        built.mu.weight *= 15
        for weight in built.prior_weights.parameters():
            weight.add_(0.6 * draws(*weight.shape, seed=1))
    return built


def density(name: prior.Name, latent_size: int = 2) -> prior.Prior:
    with torch.no_grad():
        return model(name, latent_size).prior()


def kl(mu: Tensor, log_var: Tensor, prior_mu: Tensor, prior_log_var: Tensor) -> Tensor:
    return Gaussian(mu, log_var).kl(Gaussian(prior_mu, prior_log_var))


def test_kl_is_that_of_two_gaussians() -> None:
    mu, log_var, prior_mu, prior_log_var = (draws(5, 3, seed=seed) for seed in range(4))
    posterior, before = (
        Independent(Normal(m, (v / 2).exp()), 1) for m, v in ((mu, log_var), (prior_mu, prior_log_var))
    )
    expected = kl_divergence(posterior, before)
    assert torch.allclose(Gaussian(mu, log_var).kl(Gaussian(prior_mu, prior_log_var)).sum(-1), expected)


def test_kl_of_a_gaussian_from_itself_is_zero() -> None:
    mu, log_var = draws(5, 3), draws(5, 3, seed=1)
    assert Gaussian(mu, log_var).kl(Gaussian(mu, log_var)).abs().max() == 0


@pytest.mark.parametrize("moved", range(4))
def test_kl_is_positive_where_any_parameter_differs(moved: int) -> None:
    parameters = [draws(5, 3), draws(5, 3, seed=1), draws(5, 3), draws(5, 3, seed=1)]
    parameters[moved] = parameters[moved] + 0.01 * draws(5, 3, seed=2)
    assert kl(*parameters).min() > 0


def test_kl_is_no_symmetric_distance() -> None:
    mu, log_var = draws(1, 3), draws(1, 3, seed=1)
    there = Gaussian(mu, log_var).kl(Gaussian(0 * mu, 0 * log_var))
    assert not torch.allclose(there, Gaussian(0 * mu, 0 * log_var).kl(Gaussian(mu, log_var)))


def test_gradients_of_kl_agree_with_finite_differences() -> None:
    parameters = [draws(4, 3, seed=seed).requires_grad_() for seed in range(4)]
    assert torch.autograd.gradcheck(kl, parameters)


def test_log_normal_is_the_density_of_a_gaussian() -> None:
    z, mu, log_var = (draws(4, 3, seed=seed) for seed in range(3))
    assert torch.allclose(
        Gaussian(mu, log_var).log_prob(z), Independent(Normal(mu, (log_var / 2).exp()), 1).log_prob(z)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_integrates_to_one_over_a_line(name: prior.Name) -> None:
    z = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    log_probs = density(name, 1).log_prob(z[:, None, None].expand(-1, 10, 1), LABELS)
    assert torch.allclose(torch.trapezoid(log_probs.exp(), z, dim=0), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_integrates_to_one_over_a_plane(name: prior.Name) -> None:
    line = torch.linspace(-12, 12, 301, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    for label in (0, 7):
        log_probs = density(name, 2).log_prob(z, torch.full((len(z),), label))
        assert (log_probs.exp().sum() * (24 / 300) ** 2).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_from_the_density(name: prior.Name) -> None:
    """A histogram of draws of one label against the density at the bins' centres."""
    ours, count, width = density(name, 1), 200_000, 0.25
    z = ours.sample(torch.full((count,), 4), torch.Generator().manual_seed(0))
    centres = torch.arange(-8, 8, width, dtype=torch.float64) + width / 2
    shares = torch.histc(z.float(), 64, -8, 8).double() / count / width
    expected = ours.log_prob(centres[:, None], torch.full((64,), 4)).exp()
    assert (shares - expected).abs().max() < 0.02 * expected.max() + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_that_of_the_draws(name: prior.Name) -> None:
    ours = density(name)
    z = ours.sample(LABELS.repeat(20_000), torch.Generator().manual_seed(0)).view(-1, 10, 2)
    assert torch.allclose(z.mean(0), ours.mean(LABELS), atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_every_label_has_a_prior_of_its_own_unless_it_is_standard(name: prior.Name) -> None:
    log_probs = density(name).log_prob(torch.zeros(10, 2, dtype=torch.float64), LABELS)
    assert (len(log_probs.unique()) == 1) == (name == "standard")


def test_the_standard_prior_is_a_standard_normal() -> None:
    z = draws(5, 10, 2)
    assert torch.allclose(density("standard").log_prob(z, LABELS), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_a_learned_gaussian_starts_as_the_standard_prior() -> None:
    fresh = build(Architecture(2, (8,), (8,), "concat", encoder_sees_label=True, prior="class"), 0).prior()
    z = draws(10, 2).float()
    assert torch.allclose(fresh.log_prob(z, LABELS), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_a_mixture_is_torch_s() -> None:
    mu, log_var, z = draws(10, 3, 2), draws(10, 3, 2, seed=1), draws(5, 10, 2, seed=2)
    reference = MixtureSameFamily(
        Categorical(torch.ones(10, 3, dtype=torch.float64)), Independent(Normal(mu, (log_var / 2).exp()), 1)
    )
    assert torch.allclose(Mixtures(Gaussian(mu, log_var)).log_prob(z, LABELS), reference.log_prob(z))


def test_a_mixture_of_one_gaussian_is_that_gaussian() -> None:
    """The same density, and by Monte Carlo the same divergence as in closed form."""
    prior_mu, prior_log_var = draws(10, 2), draws(10, 2, seed=1)
    closed, sampled = (
        by_label(Gaussian(prior_mu, prior_log_var)),
        Mixtures(Gaussian(prior_mu[:, None], prior_log_var[:, None])),
    )
    z = draws(6, 10, 2, seed=2)
    assert torch.allclose(sampled.log_prob(z, LABELS), closed.log_prob(z, LABELS))
    count = 100_000
    for label in (0, 3):
        labels, mu, log_var = (part.expand(count, *part.shape) for part in (LABELS[label], draws(2), draws(2, seed=4)))
        z = mu + (log_var / 2).exp() * draws(count, 2, seed=5)
        exact = closed.kl(Gaussian(mu[:1], log_var[:1]), z[:1], labels[:1]).sum(-1)
        draws_of_it = sampled.kl(Gaussian(mu, log_var), z, labels).sum(-1)
        error = 5 * float(draws_of_it.std()) / math.sqrt(count)
        assert draws_of_it.mean().item() == pytest.approx(exact.item(), abs=error)
        assert error < 0.1 * exact


def test_components_are_the_encoder_s_posteriors_of_the_pseudo_inputs() -> None:
    ours = model("mixture", components=4)
    density = ours.prior()
    assert isinstance(density, Mixtures)
    pictures = ours.prior_weights.pseudo_inputs.sigmoid()
    for label in (0, 6):
        mu, log_var = ours.encode(pictures[label].view(4, 1, 28, 28), torch.full((4,), label))
        assert torch.allclose(density.components.mu[label], mu)
        assert torch.allclose(density.components.log_var[label], log_var)


@pytest.mark.parametrize("name", ["class", "mixture"])
def test_a_prior_learns(name: prior.Name) -> None:
    """Every weight of it has a gradient in the KL, and following it leads the KL down."""
    ours = model(name)
    mu, log_var = draws(10, 2, seed=8), draws(10, 2, seed=9) - 1
    z = mu + (log_var / 2).exp() * draws(10, 2, seed=7)

    def kl() -> Tensor:
        return ours.prior().kl(Gaussian(mu, log_var), z, LABELS).sum(-1).mean()

    before = kl()
    before.backward()
    with torch.no_grad():
        for weight in ours.prior_weights.parameters():
            assert weight.grad is not None
            assert weight.grad.any()
            weight.sub_(1e-2 * weight.grad)
    assert kl() < before


@pytest.mark.parametrize("sees", [False, True])
def test_any_encoder_can_make_the_mixture(sees: bool) -> None:
    small = Architecture(2, (8,), (8,), "sum", encoder_sees_label=sees, prior="mixture", prior_components=2)
    for kind, channels in (("mlp", ()), ("conv", (4,))):
        ours = build(replace(small, architecture=kind, channels=channels), 0)  # type: ignore[arg-type]
        assert ours.prior().sample(LABELS, torch.Generator().manual_seed(0)).shape == (10, 2)

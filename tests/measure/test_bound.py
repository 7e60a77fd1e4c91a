"""The iwae bound against the exact log-likelihood, and the active latent dimensions."""

import doctest
import math
from dataclasses import replace

import pytest
import torch
from latents import black_and_white
from torch import Tensor, nn

from pipeline.data.splits import Pixels, Split, to_unit
from pipeline.measure import bound
from pipeline.model import likelihood, prior
from pipeline.model.cvae import CVAE, Architecture, Model, build
from pipeline.model.gaussian import LOG_2PI, Normal
from pipeline.training import objective

ONE = Architecture(1, (16,), (16,), "concat", encoder_sees_label=True)
COUNT = 6
IMAGES = black_and_white(COUNT)


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


def log_likelihood(model: CVAE, split: Split, pixels: Pixels, k: int, seed: int, kl_weight: float = 1.0) -> Tensor:
    """The bound alone, by default with q as the proposal."""
    return bound.log_likelihood(model, split, pixels, k, seed, kl_weight).log_likelihood


def averaged(k: int, repeats: int, ours: CVAE, kl_weight: float = 1.0) -> float:
    """The bound's mean over images and independent samples."""
    many = IMAGES[torch.arange(COUNT).repeat(repeats)]
    return float(log_likelihood(ours, many, "grey", k, 0, kl_weight).mean())


@pytest.mark.parametrize(("name", "kl_weight"), [*((name, 1.0) for name in prior.PRIORS), ("standard", 0.1)])
def test_the_bound_rises_with_k_and_stays_below_the_truth(name: prior.Name, kl_weight: float) -> None:
    """With q as the proposal and with a wider one."""
    ours = model(name)
    truth = float(exact(ours, IMAGES).mean())
    values = [averaged(k, seeds, ours, kl_weight) for k, seeds in ((1, 600), (10, 60), (200, 8))]
    assert values[0] + 0.05 < values[1] < values[2] - 0.02
    assert values[2] < truth + 0.05
    estimate = log_likelihood(ours, IMAGES, "grey", 2000, 0, kl_weight)
    assert (estimate - exact(ours, IMAGES)).abs().max() < 0.2


def test_with_one_sample_it_is_the_evidence_lower_bound() -> None:
    """With the KL in closed form, as a mean over samples of z."""
    many = IMAGES[torch.arange(COUNT).repeat(2000)]
    noise = torch.randn(len(many), 1, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        terms = objective.terms(model(), to_unit(many.images), many.labels, noise)
    lower = -(terms.reconstruction + terms.kl).view(-1, COUNT).mean(0)
    assert averaged(k=1, repeats=1000, ours=model()) == pytest.approx(float(lower.mean()), abs=0.3)
    assert (lower < exact(model(), IMAGES)).all()


class Linear(Model):
    """x = W z + σ · noise with orthogonal columns of W, whose q is the best one at a KL weight of β.

    Along column j the pixels say as much of z_j as a measurement with variance σ² ÷ |w_j|². The best q at β takes
    β times that variance.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.latent_size, sigma = 3, 0.5
        basis = torch.linalg.qr(torch.randn(784, 3, generator=torch.Generator().manual_seed(0))).Q
        self.strength = torch.tensor([40.0, 12.0, 0.5])  # |w_j|² ÷ σ², from well seen to hardly
        self.columns = nn.Parameter(sigma * self.strength.sqrt() * basis)
        self.beta, self.likelihood = beta, PlainGaussian(sigma)

    def encode(self, images: Tensor, context: Tensor) -> Normal:  # noqa: ARG002
        precision = 1 + self.strength / self.beta
        mu = images.flatten(1) @ self.columns / (0.25 * self.beta * precision)
        return Normal(mu, -precision.log().expand_as(mu))

    def decode(self, z: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        return z @ self.columns.T

    def prior(self) -> prior.Prior:
        return prior.Gaussians(lambda labels: Normal(*torch.zeros(2, len(labels), 3)))

    @torch.no_grad()
    def exact(self, images: Tensor) -> Tensor:
        """log N(x; 0, W Wᵀ + σ² I), (N,)."""
        x = images.flatten(1)
        along = (x @ self.columns).square() / (0.25 * self.strength)  # squared length of x along each column
        squares = (x.square().sum(1) - along.sum(1)) / 0.25 + (along / (0.25 * (1 + self.strength))).sum(1)
        return -0.5 * (squares + 784 * (math.log(0.25) + LOG_2PI) + (1 + self.strength).log().sum())


class PlainGaussian(likelihood.Gaussian):
    """N(output, σ²), where the project's own takes a sigmoid of the output."""

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        return likelihood.gaussian((pixels - outputs).square(), self.log_sigma)


def drawn(ours: Linear, count: int) -> Tensor:
    """Images from the model itself, (N, 1, 28, 28)."""
    source = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(count, size, generator=source) for size in (3, 784))
    return (ours.decode(z, z) + 0.5 * noise).detach().view(-1, 1, 28, 28)


@pytest.mark.parametrize("beta", [0.02, 1.0, 4.0])
def test_the_bound_meets_the_exact_log_likelihood_at_every_kl_weight(beta: float) -> None:
    ours = Linear(beta)
    images, source = drawn(ours, 20), torch.Generator().manual_seed(2)
    k = 1000
    found, effective = bound.importance_weighted(ours, images, torch.zeros(20).long(), k, source, beta)
    assert (found - ours.exact(images)).abs().max() < 0.2
    assert float((found - ours.exact(images)).mean().abs()) < 0.02
    assert effective.median() > k / 20
    if beta == 1:
        assert torch.allclose(found, ours.exact(images), atol=1e-2)  # q is the posterior: every weight is p(x)
        assert torch.allclose(effective, torch.full((20,), 1000.0), rtol=1e-2)
    if beta < 1:  # q itself is too narrow a proposal
        narrow, few = bound.importance_weighted(ours, images, torch.zeros(20).long(), k, source, 1.0)
        assert float((ours.exact(images) - narrow).mean()) > 0.2
        assert few.median() < effective.median() / 3


def test_the_proposal_is_wider_below_a_kl_weight_of_one_alone_and_never_without_end() -> None:
    assert doctest.testmod(bound).failed == 0
    assert bound.width(1e-9) == bound.WIDEST


def test_effective_samples_count_equal_weights_and_ignore_a_common_factor() -> None:
    weights = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[:, 0], weights[:, 1] = 1.0, (torch.arange(50) == 3).double()
    weights[:, 2] = (torch.arange(50) < 20).double()
    found = bound.effective_samples(weights.log() - 9000)
    assert found[:3].tolist() == pytest.approx([50, 1, 20])
    assert found.tolist() == pytest.approx((weights.sum(0) ** 2 / weights.square().sum(0)).tolist())


def test_decoding_one_image_at_a_time_gives_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = log_likelihood(model(), greys(10), "grey", 200, 0)
    monkeypatch.setattr(bound, "ONE_BY_ONE", 1000)
    assert torch.allclose(fast, log_likelihood(model(), greys(10), "grey", 200, 0), atol=1e-3, rtol=0)


def test_the_bound_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with several images in each, nor with a part of one image's latents."""
    data = greys(10)
    alone = torch.cat([log_likelihood(model(), data[slice(i, i + 1)], "grey", 2000, 0) for i in range(10)])
    for at_once in (3 * 2000, 900):
        monkeypatch.setattr(bound, "DECODED_AT_ONCE", at_once)
        together = log_likelihood(model(), data, "grey", 2000, 0)
        assert (together - alone).abs().max() < 0.1
        assert (together.roll(1) - alone).abs().max() > 1


def test_binary_pixels_are_sampled_once_by_the_seed_whatever_k_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every logit is 1, so that log p(x) = Σ x − 784 log(1 + e): for binary x, Σ x is an integer."""
    ours = ignoring_z()
    nn.init.zeros_(ours.pixels.weight)
    nn.init.ones_(ours.pixels.bias)
    monkeypatch.setattr(bound, "DECODED_AT_ONCE", 8)
    once, again, other = (log_likelihood(ours, greys(20), "binary", k, seed) for k, seed in ((1, 0), (4, 0), (1, 1)))
    ones = once.double() + 784 * math.log(1 + math.e)
    assert torch.allclose(ones, ones.round(), atol=1e-3)
    assert torch.allclose(once, again, atol=1e-2)
    assert not torch.allclose(once, other, atol=1)


def test_a_dimension_is_active_where_its_mean_varies() -> None:
    """The rule is on the variance: a standard deviation of 0.11 is active, one of 0.09 is not."""
    wave = torch.tensor([-1.0, 1.0]).repeat(500)
    mu = torch.stack([0.11 * wave, 0.09 * wave, 0 * wave + 5, 3 * wave], 1)
    assert bound.active_dimensions(mu).tolist() == [0, 3]

"""The objective: divergences and bounds as the papers define them, in nats per image at any batch size."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pipeline import objective
from pipeline.model import CVAE, PRESETS, Architecture, build
from pipeline.objective import Terms

SMALL = Architecture(3, (12,), (12,), "concat", encoder_sees_label=True)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(size: int, latent_size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and noise."""
    return draws(size, 1, 28, 28).sigmoid(), torch.arange(size) % 10, draws(size, latent_size, seed=1)


def small() -> CVAE:
    return build(SMALL, 0).double()


def gradient(model: CVAE, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def test_the_terms_are_those_of_the_evidence_lower_bound() -> None:
    model, (images, labels, noise) = small(), batch(6)
    mu, log_var = model.encode(images, labels)
    posterior = Independent(Normal(mu, (log_var / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    z = mu + (log_var / 2).exp() * noise
    cross_entropy = F.binary_cross_entropy(model.decode(z, labels).sigmoid(), images.flatten(1), reduction="none")
    terms = objective.terms(model, images, labels, noise)
    assert torch.allclose(terms.reconstruction, cross_entropy.sum(1))
    assert torch.allclose(terms.kl, kl_divergence(posterior, prior))


def test_the_loss_at_weight_one_is_minus_the_evidence_lower_bound() -> None:
    """By Monte Carlo: E_q[log p(x,z∣y) − log q(z∣x,y)], with no closed-form KL."""
    model, (images, labels, _), count = small(), batch(4), 4000
    pixels = (images > 0.5).double()
    mu, log_var = model.encode(pixels, labels)
    posterior = Independent(Normal(mu, (log_var / 2).exp()), 1)
    z = mu + (log_var / 2).exp() * draws(count, 4, 3, seed=5)
    log_p_x = Independent(Bernoulli(logits=model.decode(z, labels)), 1).log_prob(pixels.flatten(1))
    log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1)
    elbo = (log_p_x + log_p_z - posterior.log_prob(z)).mean()
    ours = objective.terms(model, pixels.repeat(count, 1, 1, 1), labels.repeat(count), draws(count * 4, 3, seed=6))
    assert objective.loss(ours, 1.0).item() == pytest.approx(-elbo.item(), abs=0.1)


def test_gradients_flow_through_the_draw_to_the_encoder() -> None:
    """Finite differences with the noise held still: the reparameterisation trick."""
    model, (images, labels, noise) = small(), batch(3)
    direction, step = draws(3, seed=7), 1e-6
    objective.loss(objective.terms(model, images, labels, noise), 0.7).backward()
    assert model.mu.bias.grad is not None
    analytic = (model.mu.bias.grad * direction).sum().item()
    losses = []
    for sign in (1, -1):
        moved = small()
        with torch.no_grad():
            moved.mu.bias.add_(sign * step * direction)
            losses.append(objective.loss(objective.terms(moved, images, labels, noise), 0.7).item())
    assert analytic == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


def test_the_weight_multiplies_the_kl_alone() -> None:
    terms = Terms(torch.tensor([100.0, 80.0]), torch.tensor([[1.0, 2.0], [5.0, 0.0]]))
    assert [objective.loss(terms, weight).item() for weight in (0.0, 1.0, 10.0)] == [90, 94, 130]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1e5])
def test_the_balance_of_the_terms_does_not_depend_on_the_batch_size(weight: float) -> None:
    """A batch that holds every image twice has the same loss and the same gradients."""
    model, once = small(), batch(5)
    twice = [torch.cat([part, part]) for part in once]
    first, second = (objective.loss(objective.terms(model, *data), weight) for data in (once, twice))
    assert first.item() == pytest.approx(second.item())
    assert torch.allclose(gradient(model, first), gradient(model, second))


@pytest.mark.parametrize("preset", ["article", "strong"])
@pytest.mark.parametrize(("weight", "size"), [(1e-5, 128), (1.0, 4), (1e-4, 16)])
def test_the_article_s_loss_points_the_way_of_ours_at_the_converted_weight(
    preset: str, weight: float, size: int
) -> None:
    """Pixel-mean BCE + w · batch-summed KL has our gradients at β = w · 784 · B, divided by 784."""
    model = build(dataclasses.replace(PRESETS[preset], encoder_hidden=(12,), decoder_hidden=(12,)), 0).double()
    images, labels, noise = batch(size, model.latent_size)

    mu, log_var = model.encode(images, labels)
    chances = model.decode(mu + (log_var / 2).exp() * noise, labels).sigmoid()
    article = F.binary_cross_entropy(chances, images.flatten(1)) - weight * 0.5 * torch.sum(
        1 + log_var - mu.pow(2) - log_var.exp()
    )
    ours = objective.loss(objective.terms(model, images, labels, noise), objective.from_article_weight(weight, size))
    assert torch.allclose(784 * gradient(model, article), gradient(model, ours), rtol=1e-6, atol=1e-12)


def test_article_weights_convert_there_and_back() -> None:
    assert objective.from_article_weight(1e-5, 128) == pytest.approx(1.00352)
    assert objective.from_article_weight(1, 128) == 100_352
    assert objective.to_article_weight(objective.from_article_weight(3e-4, 50), 50) == pytest.approx(3e-4)

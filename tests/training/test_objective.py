"""The objective: divergences and bounds as the papers define them, in nats per image at any batch size."""

import doctest
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from latents import normal as draws
from settings import OBJECTIVE, objective_params
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pipeline.base.errors import UserError
from pipeline.base.params import parse
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.training import objective, schedule
from pipeline.training.objective import ObjectiveParams, Terms

SMALL = Architecture(3, (12,), (12,), "concat", encoder_sees_label=True)
MIXTURE = replace(SMALL, prior="mixture", prior_components=2)


def batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and noise."""
    return draws(size, 1, 28, 28).sigmoid(), torch.arange(size) % 10, draws(size, 3, seed=1)


def small() -> CVAE:
    return build(SMALL, 0).double()


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
    objective.loss(terms, 0.0).backward()  # reaches the encoder through z alone: the reparameterisation trick
    assert all(layer.bias.grad is not None and layer.bias.grad.all() for layer in (model.mu, model.log_var))


def random_terms() -> Terms:
    """Some of the five dimensions have a KL above 1 nat on average, some below."""
    parts = draws(12, 5).abs() * torch.tensor([0.1, 3.0, 0.9, 6.0, 0.2], dtype=torch.float64)
    return Terms(100 + draws(12, seed=1), parts.requires_grad_())


def test_a_dimension_below_its_free_bits_has_no_gradient() -> None:
    """Below λ in the mean over the batch; single images may be above."""
    reconstruction, parts = terms = random_terms()
    loss = objective.loss(terms, 2.0, free_bits=1.0)
    means = parts.mean(0)
    assert loss.item() == pytest.approx((reconstruction.mean() + 2 * means.clamp(min=1).sum()).item())
    (gradient,) = torch.autograd.grad(loss, parts)
    assert [bool(column.any()) for column in gradient.T] == [bool(mean > 1) for mean in means]
    assert (parts[:, means < 1] > 1).any()


def test_a_capacity_draws_the_kl_from_both_sides() -> None:
    reconstruction, parts = terms = random_terms()
    kl = parts.detach().sum(-1).mean().item()
    for capacity, sign in ((kl - 2, 1), (kl + 2, -1)):
        loss = objective.loss(terms, 3.0, capacity)
        assert loss.item() == pytest.approx(reconstruction.mean().item() + 3 * 2)
        (gradient,) = torch.autograd.grad(loss, parts)
        assert (gradient.sign() == sign).all()


@pytest.mark.parametrize("architecture", [SMALL, replace(SMALL, prior="class"), MIXTURE])
def test_the_loss_of_several_draws_is_minus_the_importance_weighted_bound(architecture: Architecture) -> None:
    """By torch's own distributions: log 1/K Σ p(x∣z,y) p(z∣y) / q(z∣x,y) (Burda 2016, eq. 8)."""
    model, (images, labels, _) = build(architecture, 0).double(), batch(6)
    pixels, noise = (images > 0.5).double(), draws(5, 6, 3, seed=2)
    mu, log_var = model.encode(pixels, labels)
    posterior = Independent(Normal(mu, (log_var / 2).exp()), 1)
    z = mu + (log_var / 2).exp() * noise
    p_x = Independent(Bernoulli(logits=model.decode(z, labels)), 1).log_prob(pixels.flatten(1))
    ratio = p_x + model.prior().log_prob(z, labels) - posterior.log_prob(z)
    expected = -(ratio.exp().mean(0).log()).mean()  # few nats, so that exp is safe in float64
    terms = objective.terms(model, pixels, labels, noise)
    assert terms.kl.shape == terms.reconstruction.shape == (5, 6)
    assert objective.loss(terms, 1.0).item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_loss_falls_with_the_number_of_draws_and_equal_draws_count_as_one() -> None:
    model, (images, labels, _) = small().requires_grad_(requires_grad=False), batch(4)
    model.log_var.bias.add_(1)  # posteriors wider than needed, so that draws differ

    def loss(noise: Tensor) -> float:
        return objective.loss(objective.terms(model, images, labels, noise), 1.0).item()

    noise = draws(400, 4, 3)
    by_count = [sum(map(loss, noise.split(count))) * count / 400 for count in (1, 2, 5, 20)]
    assert by_count == sorted(by_count, reverse=True)
    assert by_count[0] - by_count[-1] > 0.01
    assert loss(noise[:1].expand(7, -1, -1)) == pytest.approx(loss(noise[:1]), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 3, "free_bits": 0.5}, "objective.draws must be 1 with free_bits"),
        ({"draws": 3, "schedule": "capacity"}, "objective.draws must be 1 with schedule capacity"),
        ({"likelihood": "gaussian", "pixels": "binary"}, "objective.pixels must be grey with likelihood gaussian"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(ObjectiveParams, OBJECTIVE | changes, "p.yaml: objective")
    assert str(caught.value).startswith(f"p.yaml: {message}")


def test_a_schedule_gives_a_share_of_the_weight_or_a_capacity() -> None:
    expected = {"constant": (1.0, None), "warmup": (0.1, None), "cyclical": (0.5, None), "capacity": (1.0, 2.5)}
    for name, pressure in expected.items():
        aim = objective_params(schedule=name, schedule_share=0.5, cycles=5, capacity=25.0)
        assert schedule.pressure(5, 100, aim) == pressure
    assert doctest.testmod(schedule).failed == 0

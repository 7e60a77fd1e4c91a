"""The KL weight of any loss: the gradient of the loss as it is written is that of ours at the β that is said."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bands import banded
from imports import ROOT
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pipeline.cli.weight import said
from pipeline.data.splits import to_unit
from pipeline.model import likelihood
from pipeline.model.cvae import PRESETS, build
from pipeline.training import objective
from pipeline.weight.convert import CONVENTIONS, SPREAD, Loss, article_readings

LATENTS, COUNT = 5, 12
SPLIT = banded(2, 0)[torch.arange(COUNT)]
X = to_unit(SPLIT.images).double()
NOISE = torch.randn(COUNT, LATENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MODEL = build(replace(PRESETS["article"], latent_size=LATENTS, encoder_hidden=(16,), decoder_hidden=(16,)), 0).double()
# Of a weight, the decoder's pictures (N, 784), and the kl by image and latent (N, L)
Written = Callable[[float, Tensor, Tensor], Tensor]


def bce(pictures: Tensor, reduction: str = "mean") -> Tensor:
    return F.binary_cross_entropy(pictures, X.flatten(1), reduction=reduction)


def squares(pictures: Tensor) -> Tensor:
    return F.mse_loss(pictures, X.flatten(1), reduction="none")


def images(pictures: Tensor) -> Tensor:
    return pictures.view(-1, 28, 28, 1)


# Each reduces as its source does. Keras's cross entropy is a mean over the last axis, the one colour. Higgins's β is
# β_norm · N ÷ M, with N values of an image and M latents. In latent-diffusion no optimizer has the log variance.
WRITTEN: dict[str, Written] = {
    "article": lambda w, pictures, kl: bce(pictures) + w * kl.sum(),
    **dict.fromkeys(("article-sum", "pytorch"), lambda w, pictures, kl: bce(pictures, "sum") + w * kl.sum()),
    "keras": lambda w, pictures, kl: (
        F.binary_cross_entropy(images(pictures), images(X), reduction="none").mean(-1).sum((1, 2)).mean()
        + w * kl.sum(1).mean()
    ),
    "pytorch-vae": lambda w, pictures, kl: squares(pictures).mean() + w * kl.sum(1).mean(0),
    "pythae": lambda w, pictures, kl: (0.5 * squares(pictures).sum(-1) + w * kl.sum(-1)).mean(0),
    "beta-vae": lambda w, pictures, kl: bce(pictures, "sum") + w * 784 / LATENTS * kl.sum(),
    "pyro": lambda w, pictures, kl: (
        -(Independent(Bernoulli(pictures, validate_args=False), 1).log_prob(X.flatten(1)) - w * kl.sum(1)).sum()
    ),
    "latent-diffusion": lambda w, pictures, kl: (X.flatten(1) - pictures).abs().sum() / len(X) + w * kl.sum() / len(X),
}


class Laplace(likelihood.Likelihood):
    """Each pixel has Laplace noise of scale 1 around sigmoid(output)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        return -((pixels - outputs.sigmoid()).abs() / self.scale + math.log(2 * self.scale)).sum(-1)


def likelihood_of(reconstruction: str, spread: float | None) -> likelihood.Likelihood:
    if spread is None:
        return likelihood.build("bernoulli")
    return Laplace(spread) if reconstruction == "l1" else likelihood.Gaussian(spread).double()


def gradient(loss: Tensor) -> list[Tensor]:
    return [part.flatten() for part in torch.autograd.grad(loss, list(MODEL.parameters()))]


def gradient_of_ours(reconstruction: str, beta: float, spread: float | None, sampled: bool = False) -> list[Tensor]:
    """Of our objective. sampled: with the kl at the sample, as one draw of several has it."""
    MODEL.likelihood = likelihood_of(reconstruction, spread)
    terms = objective.terms(MODEL, X, SPLIT.labels, NOISE[None] if sampled else NOISE)
    return gradient(objective.loss(terms, beta))


def gradient_of_theirs(written: Written, weight: float, sampled: bool = False) -> list[Tensor]:
    """sampled: with the kl at the sample, log q − log p, as Pyro has it."""
    mu, log_var = MODEL.encode(X, SPLIT.labels)
    z = mu + (log_var / 2).exp() * NOISE
    q, p = Normal(mu, (log_var / 2).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    kl = q.log_prob(z) - p.log_prob(z) if sampled else kl_divergence(q, p)
    return gradient(written(weight, MODEL.decode(z, SPLIT.labels).sigmoid(), kl))


def same_direction(theirs: list[Tensor], ours: list[Tensor]) -> bool:
    """Whether one is a positive multiple of the other, to 1e-6."""
    one, other = torch.cat(theirs), torch.cat(ours)
    factor = float(one.norm() / other.norm())
    return bool(torch.allclose(one, factor * other, rtol=1e-6, atol=1e-6 * float(one.abs().max())))


def sized(loss: Loss) -> Loss:
    """The loss with the sizes of this test's model and batch."""
    return replace(loss, pixels=784, latents=LATENTS, batch_size=COUNT)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_a_known_loss_as_it_is_written_is_ours_at_the_beta_that_is_said(name: str, beta: float) -> None:
    loss = sized(CONVENTIONS[name].loss).at(beta)
    sampled = name == "pyro"
    theirs = gradient_of_theirs(WRITTEN[name], loss.weight, sampled)
    first = SPREAD[loss.reconstruction]
    assert same_direction(theirs, gradient_of_ours(loss.reconstruction, beta, first, sampled))
    assert not same_direction(theirs, gradient_of_ours(loss.reconstruction, 1.001 * beta, first, sampled))
    if loss.spread is not None:  # the same loss as an evidence lower bound, and at any other σ
        assert same_direction(theirs, gradient_of_ours(loss.reconstruction, 1.0, loss.spread))
        assert same_direction(theirs, gradient_of_ours(loss.reconstruction, loss.beta_at(0.3), 0.3))


def reduced(values: Tensor, over: str, axis: int) -> Tensor:
    return values.sum(axis) if over == "sum" else values.mean(axis)


def every_loss() -> Iterator[Loss]:
    names = ("reconstruction", "over_pixels", "over_batch", "kl_over_latents", "kl_over_batch")
    for values in product(SPREAD, *[("sum", "mean")] * 4):
        shape: Any = dict(zip(names, values, strict=True))
        yield sized(Loss(0.7, factor=0.25, **shape))


def test_any_loss_is_ours_at_its_beta() -> None:
    errors: dict[str, Callable[[Tensor], Tensor]] = {
        "bce": lambda pictures: bce(pictures, "none"),
        "mse": squares,
        "half-mse": lambda pictures: squares(pictures) / 2,
        "l1": lambda pictures: (pictures - X.flatten(1)).abs(),
    }
    betas = set()
    for loss in every_loss():

        def written(w: float, pictures: Tensor, kl: Tensor, loss: Loss = loss) -> Tensor:
            rec = reduced(reduced(errors[loss.reconstruction](pictures), loss.over_pixels, 1), loss.over_batch, 0)
            return rec + w * 0.25 * reduced(reduced(kl, loss.kl_over_latents, 1), loss.kl_over_batch, 0)

        theirs = gradient_of_theirs(written, loss.weight)
        assert same_direction(theirs, gradient_of_ours(loss.reconstruction, loss.beta, SPREAD[loss.reconstruction])), (
            loss
        )
        assert loss.at(loss.beta).weight == pytest.approx(loss.weight)
        betas.add(round(loss.beta, 9))
    assert len(betas) > 10


def test_the_articles_weight_is_one_under_one_reading_of_its_text() -> None:
    betas = {said: loss.beta for said, loss in article_readings().items()}
    assert betas["mean BCE, KL summed"] == pytest.approx(1.00352)
    assert betas["mean BCE, KL averaged"] == pytest.approx(0.00784)
    assert betas["summed BCE, KL summed"] == pytest.approx(1e-5)
    squared = article_readings()["mean squared error, KL summed"]
    assert squared.beta_at(0.1) == pytest.approx(50.176)


def test_the_page_has_every_known_loss_with_its_beta() -> None:
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").splitlines()
    for name, (loss, _) in CONVENTIONS.items():
        (row,) = [line for line in page if line.startswith(f"| `{name}` |") and "://" not in line]
        assert f" {said(loss.beta)} |" in row, name

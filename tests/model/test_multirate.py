"""The multi-rate CVAE: at one β an ordinary CVAE, trained as any other model."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from solo import AIM, CPU, PARAMS, SMALL, TRAIN, VALIDATION, weights
from torch import Tensor

from pipeline.model import multirate
from pipeline.model.cvae import Architecture
from pipeline.model.multirate import MultiRate
from pipeline.stages.saved import resume_training, save_training
from pipeline.training import objective
from pipeline.training.fit import fit, start
from pipeline.weight.curve import drawn_view

SPAN = (0.01, 30.0)
ARCHITECTURES = {
    "mlp": SMALL,
    "no hidden layer, blind, sum": Architecture(4, (), (), "sum", encoder_sees_label=False, prior="class"),
    "resnet, product": replace(SMALL, architecture="resnet", channels=(3, 4), blocks=1, conditioning="product"),
}


def told(architecture: Architecture = SMALL, balance: float = 0.5, seed: int = 0) -> MultiRate:
    """A MultiRate in float64 that tells its layers something: untrained, it changes none."""
    model = multirate.build(architecture, SPAN, balance, seed).double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.network[-1].parameters():
            weight.copy_(torch.randn(weight.shape, generator=source, dtype=torch.float64))
    return model


def conditions(labels: Tensor, *kl_weights: float) -> Tensor:
    return multirate.condition(labels, torch.tensor(kl_weights, dtype=torch.float64).log())


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_at_one_weight_it_is_an_ordinary_cvae(architecture: Architecture) -> None:
    """With each image at another weight in the same batch, and several draws of z."""
    model, kl_weights = told(architecture), (0.01, 0.7, 30.0)
    images, labels = TRAIN.images[:3].double() / 255, TRAIN.labels[:3]
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context = model.context(conditions(labels, *kl_weights))
    q, outputs = model.encode(images, context), model.decode(z, context)
    for row, kl_weight in enumerate(kl_weights):
        plain, one = model.at(kl_weight), slice(row, row + 1)
        assert not any(isinstance(layer, multirate.Told) for layer in plain.modules())
        for found, expected in zip(plain.encode(images[one], labels[one]), q, strict=True):
            torch.testing.assert_close(found, expected[one], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain.decode(z[:, one], labels[one]), outputs[:, one], rtol=1e-9, atol=1e-9)
    assert not torch.equal(weights(model.at(0.01)), weights(model.at(30)))


def test_the_loss_is_that_of_each_images_own_weight() -> None:
    """Plain reference: the CVAE at each image's weight by itself, weighed by hand."""
    model = told(balance=0.3)
    images, labels, noise = TRAIN.images[:2], TRAIN.labels[:2], torch.ones(2, 4, dtype=torch.float64)
    given = conditions(labels, 0.1, 10.0)
    factor, share = model.weighing(given)
    found = objective.loss(objective.terms(model, images, given, noise), 1.0 * factor, share=share)
    drawn = torch.linspace(math.log(SPAN[0] / 1.3), math.log(SPAN[1] * 1.3), 5001, dtype=torch.float64).exp()
    expected = 0.0
    for row, kl_weight in enumerate((0.1, 10.0)):
        one = slice(row, row + 1)
        terms = objective.terms(model.at(kl_weight), images[one], labels[one], noise[one])
        own = (1 + kl_weight) ** -0.3 / float((1 + drawn).pow(-0.3).mean())
        expected += own * (terms.reconstruction + kl_weight * terms.kl).item() / 2
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_untrained_only_its_posteriors_know_the_weight() -> None:
    """They are those of a linear Gaussian VAE: narrow where β is low, near N(0, I) where it is high."""
    model = multirate.build(SMALL, SPAN, 0.5, seed=3)
    low, high = model.at(0.01), model.at(30)
    assert torch.equal(weights(low.decoder), weights(high.decoder))
    assert torch.equal(weights(low.encoder), weights(high.encoder))
    assert (high.log_var.bias - low.log_var.bias).mean().item() == pytest.approx(math.log(30 / 50 / (0.01 / 20.01)))
    assert torch.equal(weights(model), weights(multirate.build(SMALL, SPAN, 0.5, seed=3)))


def test_a_weight_outside_of_the_span_and_a_prior_that_needs_the_encoder_are_refused() -> None:
    for kl_weight in (0.0099, 30.1):
        with pytest.raises(ValueError, match=r"not between 0\.01 and 30"):
            multirate.build(SMALL, SPAN, 0.5, seed=0).at(kl_weight)
    with pytest.raises(ValueError, match="must not depend on its encoder"):
        multirate.build(replace(SMALL, prior="mixture", prior_components=2), SPAN, 0.5, seed=0)


def test_an_interrupted_training_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    """Bit for bit, with averaged weights, by the code that trains every model."""
    params, path = replace(PARAMS, ema=0.9), tmp_path / "unfinished.safetensors"
    whole, first, second = (start(multirate.build(SMALL, SPAN, 0.5, seed), params, CPU) for seed in (7, 7, 99))
    records = [list(fit(whole, TRAIN, VALIDATION, params, AIM, drawn_view(whole.model, "grey")))]
    next(fit(first, TRAIN, VALIDATION, params, AIM, drawn_view(first.model, "grey")))
    save_training(path, first, {})
    resume_training(path, second)
    records.append(list(fit(second, TRAIN, VALIDATION, params, AIM, drawn_view(second.model, "grey"))))
    assert torch.equal(weights(second.model), weights(whole.model))
    assert [len(found) for found in records] == [3, 2]
    assert not torch.equal(weights(whole.model.at(0.01)), weights(whole.model.at(30)))
    copy.deepcopy(whole.trained)  # nothing of a step is left in its layers

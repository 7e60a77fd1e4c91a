"""The article's experiment: its loss in our units, its members, and sentences that follow from the figures."""

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bands import banded, judge
from settings import train_params
from torch import nn

from pipeline.base.errors import UserError
from pipeline.data.splits import to_unit
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import CVAE, PRESETS, build
from pipeline.training import objective
from pipeline.weight import article
from pipeline.weight.article import CONDITIONINGS, CONTRAST, TUNED, Member, Result

TRAIN, UNSEEN = banded(20, 0), banded(12, 1)
PARAMS = train_params(epochs=2, batch_size=50)


@cache
def evaluator() -> Evaluator:
    return Evaluator(judge, UNSEEN, TRAIN, article.AIM.pixels, 0)


def as_written(model: CVAE, weight: float, noise: torch.Tensor) -> torch.Tensor:
    """The article's loss as its code has it: a mean over pixels and images, and a sum over the batch."""
    images, labels = to_unit(UNSEEN.images).double(), UNSEEN.labels
    mu, log_var = model.encode(images, labels)
    pictures = model.decode(mu + (log_var / 2).exp() * noise, labels).sigmoid()
    kl = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum()
    return F.binary_cross_entropy(pictures, images.flatten(1)) + weight * kl


@pytest.mark.parametrize("weight", [1.0, 1e-5])
@pytest.mark.slow
def test_the_articles_loss_is_ours_but_for_a_factor_of_784(weight: float) -> None:
    """So its gradients point where ours do, which is all that Adam sees."""
    model = build(Member(weight).architecture, 0).double()
    noise = torch.randn(len(UNSEEN), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = torch.autograd.grad(as_written(model, weight, noise), list(model.parameters()))
    terms = objective.terms(model, to_unit(UNSEEN.images).double(), UNSEEN.labels, noise)
    kl_weight = objective.from_article_weight(weight, len(UNSEEN))
    ours = torch.autograd.grad(objective.loss(terms, kl_weight), list(model.parameters()))
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one * 784, other)


def test_the_two_weights_are_the_equal_betas_of_the_article() -> None:
    assert Member(1.0).kl_weight == 100_352
    assert Member(TUNED).kl_weight == pytest.approx(1.00352)


def test_every_shape_meets_both_weights_once_and_a_stack_has_one_shape() -> None:
    stacks = article.stacks()
    members = [member for stack in stacks for member in stack]
    assert len(members) == len(set(members))
    assert {Member(*values) for values in product(CONTRAST, CONDITIONINGS, (False, True))} <= set(members)
    assert all(len({member.architecture for member in stack}) == 1 for stack in stacks)
    assert stacks[0][0].architecture == PRESETS["article"]
    assert all(member.is_articles for member in stacks[0])
    assert not any(member.is_articles for stack in stacks[1:] for member in stack)


@pytest.mark.slow
def test_a_stack_is_trained_and_measured() -> None:
    stack = [Member(1.0, "concat", encoder_sees_label=True), Member(TUNED, "concat", encoder_sees_label=True)]
    members = article.start(stack, PARAMS, torch.device("cpu"))
    records = list(article.fit(stack, members, TRAIN, UNSEEN, PARAMS))
    assert [record.figures["kl_weight"] for record in records[-1].values()] == [100_352, pytest.approx(1.00352)]
    result = article.measure(stack[1], members.model(1), evaluator(), 1)
    row = result.row()
    assert row["elbo"] == pytest.approx(records[-1][1].figures["validation/elbo"])
    assert row["conditioning"] == "concat"
    assert {"prior_class_accuracy", "fitted_diversity", "digit_in_code", "active_units"} <= set(row)
    assert row["prior_class_accuracy"] == result.samples["prior"]["class_accuracy"]


def test_a_member_that_diverges_is_named() -> None:
    params = replace(PARAMS, learning_rate=1e30)
    stack = [Member(TUNED)]
    members = article.start(stack, params, torch.device("cpu"))
    with pytest.raises(UserError, match=r"weight 1e-05 diverged in epoch 1 at train.learning_rate 1e\+30"):
        list(article.fit(stack, members, TRAIN, UNSEEN, params))


def telling(size: float) -> CVAE:
    """Its code is the digit, as a step of `size` in one of ten dimensions, with the noise of N(0, I)."""
    architecture = replace(PRESETS["article"], latent_size=10, encoder_hidden=(), encoder_sees_label=True)
    model = build(architecture, 0)
    with torch.no_grad():
        for layer in (model.mu, model.log_var):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        model.mu.weight[:, -10:] = size * torch.eye(10)
    return model


def test_a_code_that_tells_the_digit_is_read_and_one_drowned_in_noise_is_not() -> None:
    assert article.digit_in_code(telling(10.0), TRAIN, UNSEEN, 0) > 0.99
    # Its means still tell digits apart without fail; its draws, which the decoder gets, do not.
    assert article.digit_in_code(telling(1e-4), TRAIN, UNSEEN, 0) < 0.3


def result(member: Member, **changes: Any) -> Result:
    """A member's result with a class_accuracy and a diversity that both samplers share."""
    figures = {"kl": 10.0, "active_units": 8, "digit_in_code": 0.6, "accuracy": 0.3, "diversity": 0.6} | changes
    samples = {"class_accuracy": figures["accuracy"], "diversity": figures["diversity"]}
    return Result(
        member,
        figures.get("reconstruction", 100.0),
        figures["kl"],
        int(figures["active_units"]),
        figures["digit_in_code"],
        {"prior": samples, "fitted": samples},
    )


def as_the_article_has_it(**changes: dict[str, Any]) -> list[Result]:
    figures: dict[str, dict[str, Any]] = {
        "one": {"reconstruction": 180.0, "kl": 0.0, "active_units": 0, "diversity": 0.1, "accuracy": 0.6},
        "tuned": {},
        "weak": {"kl": 50.0},
        "seeing": {"digit_in_code": 0.1, "accuracy": 0.8},
    }
    members = {
        "one": Member(1.0),
        "tuned": Member(TUNED),
        "weak": Member(1e-6),
        "seeing": Member(TUNED, encoder_sees_label=True),
    }
    return [result(member, **figures[name] | changes.get(name, {})) for name, member in members.items()]


def test_the_sentences_say_what_the_article_found() -> None:
    units, bound, price, label = article.claims(as_the_article_has_it())
    assert "β = 100,352" in units
    assert "0 of 8 units active" in units
    assert "the collapse is a matter of units" in units
    assert "is the evidence lower bound to within 0.35% of its KL" in bound
    assert "it reaches the highest elbo, -110.0 nats against -150.0" in bound
    assert "from 0.60 to 0.30: the one is bought with the other" in price
    assert "reads 60% of them" in price
    assert "10% of the codes and class_accuracy is 0.80: the code no longer has to carry" in label
    assert label.endswith("class_accuracy is 0.80, with sum and an encoder that sees the label.")


def test_the_sentences_say_the_opposite_of_opposite_figures() -> None:
    units, bound, price, label = article.claims(
        as_the_article_has_it(
            one={"active_units": 3, "accuracy": 0.2}, weak={"kl": 5.0}, seeing={"digit_in_code": 0.9, "accuracy": 0.2}
        )
    )
    assert "the weight alone does not decide over collapse" in units
    assert "yet of the 3 weights trained w = 1e-6 reaches the highest elbo, -105.0 nats" in bound
    assert "neither pays for the other" in price
    assert "that alone changes little" in label
    assert label.endswith("class_accuracy is 0.30, with sum and an encoder that does not see it.")


@pytest.mark.parametrize(
    ("digit_in_code", "accuracy", "words"),
    [(0.1, 0.32, "yet samples are no better"), (0.58, 0.7, "as before"), (0.58, 0.32, "changes little")],
)
def test_what_seeing_the_label_does_is_said_as_it_turned_out(digit_in_code: float, accuracy: float, words: str) -> None:
    seeing = {"digit_in_code": digit_in_code, "accuracy": accuracy}
    assert words in article.claims(as_the_article_has_it(seeing=seeing))[3]

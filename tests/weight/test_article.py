"""The article's experiment: its loss in our units, its members, and their figures."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from bands import JUDGES, banded
from settings import train_params
from torch import nn

from pipeline.base.errors import UserError
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import CVAE, PRESETS, build
from pipeline.weight import article, convert
from pipeline.weight.article import CONDITIONINGS, CONTRAST, TUNED, Member

TRAIN, HELD_OUT = banded(20, 0), banded(12, 1)
PARAMS = train_params(epochs=2, batch_size=50)


def test_a_stack_is_trained_and_measured_and_a_member_that_diverges_is_named() -> None:
    stack = [Member(1.0, "concat", encoder_sees_label=True), Member(TUNED, "concat", encoder_sees_label=True)]
    members = article.start(stack, PARAMS, torch.device("cpu"))
    records = list(article.fit(stack, members, TRAIN, HELD_OUT, PARAMS))
    assert [record.figures["train/kl_weight"] for record in records[-1].values()] == [100_352, pytest.approx(1.00352)]
    evaluator = Evaluator(JUDGES, HELD_OUT, TRAIN, article.AIM.pixels, 0)
    figures = article.measure(members.model(1), evaluator, 1)
    assert figures["elbo"] == pytest.approx(records[-1][1].figures["validation/elbo"])
    assert {"prior/class_accuracy", "fitted/diversity", "digit_in_latent", "active_units"} <= set(figures)
    params = replace(PARAMS, learning_rate=1e30)
    members = article.start(stack[1:], params, torch.device("cpu"))
    with pytest.raises(UserError, match=r"weight 1e-05 diverged in epoch 1 at train.learning_rate 1e\+30"):
        list(article.fit(stack[1:], members, TRAIN, HELD_OUT, params))


def encoding_the_digit(size: float) -> CVAE:
    """Its latent is a step of `size` in the digit's own dimension of ten, plus the noise of N(0, I)."""
    architecture = replace(PRESETS["article"], latent_size=10, encoder_hidden=(), encoder_sees_label=True)
    model = build(architecture, 0)
    with torch.no_grad():
        for layer in (model.mu, model.log_var):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        model.mu.weight[:, -10:] = size * torch.eye(10)
    return model


def test_a_digit_is_read_from_the_latent_unless_noise_hides_it() -> None:
    assert article.digit_in_latent(encoding_the_digit(10.0), TRAIN, HELD_OUT, 0) > 0.99
    # The means of q still tell the digits apart. Its samples, which the decoder gets, do not.
    assert article.digit_in_latent(encoding_the_digit(1e-4), TRAIN, HELD_OUT, 0) < 0.3


def test_every_shape_has_both_weights_once_and_a_stack_has_one_shape() -> None:
    stacks = article.stacks()
    members = [member for stack in stacks for member in stack]
    assert len(members) == len(set(members))
    assert {Member(*values) for values in product(CONTRAST, CONDITIONINGS, (False, True))} <= set(members)
    assert all(len({member.architecture for member in stack}) == 1 for stack in stacks)
    assert convert.from_article_weight(1.0, article.BATCH_SIZE) == Member(1.0).kl_weight == 100_352

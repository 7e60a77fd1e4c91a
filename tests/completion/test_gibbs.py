"""Completions by a CVAE that was trained on whole pictures."""

from functools import partial

import pytest
import torch
from latents import black_and_white

from pipeline.completion import gibbs
from pipeline.completion.masks import named_masks
from pipeline.model.cvae import CVAE, Architecture, build

LEFT = named_masks()["right"]  # what is visible
PICTURES = black_and_white(10).images.squeeze(1).float() / 255
complete = partial(gibbs.complete, count=5, seed=0)


@pytest.fixture(scope="module")
def model() -> CVAE:
    """Its decoder draws one picture for each label, whatever the latents are."""
    made = build(Architecture(2, (8,), (), "concat", encoder_sees_label=True), 0)
    with torch.no_grad():
        made.pixels.weight[:, :2] = 0
        made.pixels.weight[:, 2:] = 20 * (PICTURES.view(10, 784).T - 0.5)
        made.pixels.bias.zero_()
    return made


def test_the_visible_part_chooses_the_label(model: CVAE) -> None:
    found = complete(model, PICTURES[7], LEFT, None)
    assert torch.allclose(found, PICTURES[7].expand(5, -1, -1), atol=1e-3)


def test_a_given_label_fills_what_is_hidden_and_nothing_else(model: CVAE) -> None:
    found = complete(model, PICTURES[7], LEFT, 2)
    assert torch.equal(found[:, LEFT], PICTURES[7][LEFT].expand(5, -1))
    assert torch.allclose(found[:, ~LEFT], PICTURES[2][~LEFT].expand(5, -1), atol=1e-3)


def test_a_seed_repeats_chains_and_the_likeliest_come_first() -> None:
    made = build(Architecture(2, (8,), (8,), "concat", encoder_sees_label=True), 0)
    with torch.no_grad():
        for part in made.parameters():
            part.mul_(4)
    found = complete(made, PICTURES[7], LEFT, 3)
    assert torch.equal(found, complete(made, PICTURES[7], LEFT, 3))
    assert not torch.equal(found, complete(made, PICTURES[7], LEFT, 3, seed=1))
    assert not torch.equal(found[0], found[1])

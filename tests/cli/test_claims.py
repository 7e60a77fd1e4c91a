"""The conclusions of `cvae reproduce article` follow from the figures."""

from typing import Any

import pytest

from pipeline.cli.claims import claims
from pipeline.weight.article import TUNED, Member, Result

FOUND: dict[Member, dict[str, float]] = {
    Member(1.0): {"elbo": -180.0, "kl": 0.0, "active_units": 0, "prior/diversity": 0.1, "prior/class_accuracy": 0.6},
    Member(TUNED): {},
    Member(1e-6): {"elbo": -150.0, "kl": 50.0},
    Member(TUNED, encoder_sees_label=True): {"digit_in_latent": 0.1, "prior/class_accuracy": 0.8},
}
USUAL = {
    "elbo": -110.0, "kl": 10.0, "active_units": 8, "digit_in_latent": 0.6, "prior/class_accuracy": 0.3,
    "prior/diversity": 0.6,
}  # fmt: skip


def results(*changes: dict[str, Any]) -> list[Result]:
    """What the article found, and changes to each member in turn."""
    changes = (*changes, *[{}] * (len(FOUND) - len(changes)))
    pairs = zip(FOUND.items(), changes, strict=True)
    return [Result(member, USUAL | figures | change) for (member, figures), change in pairs]


def test_the_conclusions_are_the_articles_where_the_figures_are() -> None:
    units, bound, price, label = claims(results())
    assert "β = 100,352" in units
    assert "0 of 8 units are active" in units
    assert "the collapse is a matter of units" in units
    assert "is the evidence lower bound to within 0.35% of its KL" in bound
    assert "it reaches the highest elbo: -110.0 nats, against -150.0" in bound
    assert "from 0.60 to 0.30: diversity costs accuracy" in price
    assert "reads 60% of the digits" in price
    assert "10% of the digits can be read from the latents, and class_accuracy is 0.80: the latent no longer" in label
    assert label.endswith("class_accuracy is 0.80, with sum and an encoder that sees the label.")


def test_opposite_figures_give_opposite_conclusions() -> None:
    one, seeing = (
        {"active_units": 3, "prior/class_accuracy": 0.2},
        {"digit_in_latent": 0.9, "prior/class_accuracy": 0.2},
    )
    units, bound, price, label = claims(results(one, {}, {"elbo": -105.0}, seeing))
    assert "the weight alone does not decide" in units
    assert "But of the 3 weights trained w = 1e-6 reaches the highest elbo: -105.0 nats" in bound
    assert "diversity does not cost accuracy" in price
    assert label.endswith("class_accuracy is 0.30, with sum and an encoder that does not see it.")


@pytest.mark.parametrize(
    ("digit", "accuracy", "words"),
    [(0.1, 0.32, "but samples are no better"), (0.58, 0.7, "as before"), (0.58, 0.32, "changes little")],
)
def test_the_encoders_label_gets_the_outcome_that_it_had(digit: float, accuracy: float, words: str) -> None:
    assert words in claims(results({}, {}, {}, {"digit_in_latent": digit, "prior/class_accuracy": accuracy}))[3]

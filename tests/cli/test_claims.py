"""The conclusions of `cvae reproduce article` follow from the figures."""

from typing import Any

from pipeline.cli.article import claims
from pipeline.weight.article import TUNED, Member

USUAL = {
    "elbo": -110.0, "kl": 10.0, "active_units": 8, "digit_in_latent": 0.6, "prior/class_accuracy": 0.3,
    "prior/diversity": 0.6,
}  # fmt: skip


def results(one: dict[str, Any], lower: dict[str, Any], seeing: dict[str, Any]) -> dict[Member, dict[str, float]]:
    """USUAL at the tuned weight, and changes to it at w = 1, at w = 1e-6, and with an encoder that sees the label."""
    changed = {Member(1.0): one, Member(TUNED): {}, Member(1e-6): lower, Member(TUNED, encoder_sees_label=True): seeing}
    return {member: USUAL | changes for member, changes in changed.items()}


def test_the_conclusions_are_the_articles_where_the_figures_are() -> None:
    one = {"elbo": -180.0, "active_units": 0, "prior/diversity": 0.1, "prior/class_accuracy": 0.6}
    seeing = {"digit_in_latent": 0.1, "prior/class_accuracy": 0.8}
    units, bound, price, label = claims(results(one, {"elbo": -150.0}, seeing))
    for words in ("β = 100,352", "0 and 8 of 8 units are active", "the collapse is a matter of units"):
        assert words in units
    assert "is the evidence lower bound to within 0.35% of its KL" in bound
    assert "w = 1e-5 reaches the highest elbo: -110.0 nats, against -150.0 at the next best, w = 1e-6" in bound
    assert "class_accuracy is 0.60 and 0.30: diversity costs accuracy" in price
    assert "reads 60% of the digits" in price
    assert "10% of the digits can be read from the latent, and class_accuracy is 0.80: samples are better" in label
    assert label.endswith("class_accuracy is 0.80, with sum and an encoder that sees the label.")


def test_opposite_figures_give_opposite_conclusions() -> None:
    one = {"active_units": 3, "prior/class_accuracy": 0.2, "prior/diversity": 0.1}
    units, bound, price, label = claims(results(one, {"elbo": -105.0}, {"prior/class_accuracy": 0.2}))
    assert "the weight alone does not decide" in units
    assert "w = 1e-6 reaches the highest elbo: -105.0 nats" in bound
    assert "diversity does not cost accuracy" in price
    assert "this alone changes little" in label

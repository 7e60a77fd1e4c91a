"""Words: the doctor's fit the case, and those of `cvae reproduce article` follow from the figures."""

import re
from dataclasses import replace
from typing import Any

from imports import ROOT
from sick import CASES, aimed, healthy, sigma_case

from pipeline.base import params
from pipeline.cli.article import claims
from pipeline.cli.findings import WORDS, Words, words
from pipeline.measure.doctor import CHECKS, Case, diagnose
from pipeline.weight.article import TUNED, Member


def said(case: Case) -> Words:
    (finding,) = diagnose(case).findings
    return words(case, finding)


def test_a_finding_has_words_whose_remedy_names_keys_of_params_yaml() -> None:
    assert WORDS.keys() == CHECKS.keys()
    known = params.read(ROOT / "params.yaml")
    for name, case, _ in CASES:
        says, remedy = said(case)
        assert says.endswith("."), name
        keys = re.findall(rf"\b({'|'.join(known)})\.(\w+)", remedy)
        assert keys, name
        assert all(key in known[section] for section, key in keys), name


def test_a_remedy_does_not_name_what_the_model_has_already() -> None:
    remedy = said(sigma_case(0.1, 0.2, "sigma_optimal")).remedy
    assert "sigma_optimal" not in remedy
    assert "train.epochs" in remedy
    case = replace(healthy(prior__frechet=50), conditioning="sum")
    summed, learned = said(case).remedy, said(replace(case, prior="mixture", conditioning="concat")).remedy
    assert "model.conditioning concat" in summed
    assert "model.prior" in summed
    assert learned == "Use sample.sampler fitted, which needs no training."


def test_the_weight_that_a_wrong_sigma_amounts_to_is_named() -> None:
    says, remedy = said(sigma_case(0.4, 0.2))
    assert "a weight of 4 at the best" in says
    assert remedy == "Set objective.sigma 0.2; or set objective.likelihood sigma_optimal, which computes σ."


def test_a_collapse_beyond_the_spectrum_is_told_and_missed_latents_are_counted() -> None:
    case = healthy(kl=0.0, active_units=0, spectrum__collapse_weight=45.2, spectrum__active_units=0)
    beyond, within = (said(aimed(case, kl_weight=weight)).remedy for weight in (50.0, 40.0))
    assert "Lower objective.kl_weight below 45.2: above it, the spectrum" in beyond
    assert "spectrum" not in within
    says, remedy = said(healthy(active_units=3))
    assert says.startswith("3 latents are active. The spectrum of the data says that 16 pay")
    assert "objective.schedule warmup" in remedy


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
    for told in ("β = 100,352", "0 and 8 of 8 units are active", "the collapse is a matter of units"):
        assert told in units
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

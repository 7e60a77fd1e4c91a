"""The doctor's words: every finding has them, and they fit the case."""

import re
from dataclasses import replace

from imports import ROOT
from sick import CASES, aimed, healthy, sigma_case

from pipeline.base import params
from pipeline.cli.findings import WORDS, Words, words
from pipeline.measure.doctor import CHECKS, Case, diagnose


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

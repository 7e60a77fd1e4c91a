"""The doctor's words: every finding has them, and they fit the case."""

import re
from dataclasses import replace

import pytest
from imports import ROOT
from sick import CASES, healthy, sigma_case

from pipeline.base import params
from pipeline.cli.findings import WORDS, Words, words
from pipeline.measure.doctor import CHECKS, Case, diagnose


def said(case: Case) -> Words:
    (finding,) = diagnose(case).findings
    return words(case, finding)


def test_every_check_has_words() -> None:
    assert WORDS.keys() == CHECKS.keys()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_remedy_names_keys_of_params_yaml(name: str, case: Case) -> None:
    known = params.read(ROOT / "params.yaml")
    says, remedy = said(case)
    assert says.endswith(".")
    for section, key in re.findall(rf"\b({'|'.join(known)})\.(\w+)", remedy):
        assert key in known[section], name


def test_a_remedy_does_not_name_what_the_model_has_already() -> None:
    remedy = said(sigma_case(0.1, 0.2, "sigma_optimal")).remedy
    assert "sigma_optimal" not in remedy
    assert "train.epochs" in remedy
    case = replace(healthy(prior__frechet=50), conditioning="sum")
    summed, learned = said(case).remedy, said(replace(case, prior="mixture", conditioning="concat")).remedy
    assert "model.conditioning concat" in summed
    assert "model.prior" in summed
    assert "model.conditioning" not in learned
    assert "model.prior" not in learned


def test_the_weight_that_a_wrong_sigma_amounts_to_is_named() -> None:
    says, remedy = said(sigma_case(0.4, 0.2))
    assert "a weight of 4 at the best" in says
    assert "objective.sigma 0.2" in remedy

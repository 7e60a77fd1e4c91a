"""The doctor: each finding follows from its figures, and none is made without them."""

import math
from dataclasses import replace

import pytest
import torch
from bands import JUDGES, banded
from settings import objective_params
from sick import CASES, aimed, healthy, history, sigma_case

from pipeline.measure.doctor import CHECKS, Case, diagnose, sigma_ratio
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import Architecture, build
from pipeline.model.density import Density


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    diagnosis = diagnose(healthy())
    assert diagnosis.findings == ()
    assert set(diagnosis.fine) == set(CHECKS) == {name for name, _, _ in CASES}
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize(("name", "sick", "not_yet"), CASES)
def test_a_finding_appears_beyond_its_thresholds_and_needs_its_figures(name: str, sick: Case, not_yet: Case) -> None:
    (found,) = diagnose(sick).findings
    assert found.name == name
    assert diagnose(sick).verdict == ("healthy" if found.severity == "note" else name)
    assert found.evidence
    for one in found.evidence:
        assert one.value > one.threshold if one.beyond == "above" else one.value < one.threshold
    assert name in diagnose(not_yet).fine
    assert name in diagnose(replace(sick, figures={}, history=())).unchecked


def test_a_figure_that_is_not_finite_counts_as_missing() -> None:
    assert diagnose(healthy(kl=math.nan)).unchecked["collapsed"] == "kl"


def test_the_most_severe_comes_first_and_the_verdict_names_all_but_notes() -> None:
    diagnosis = diagnose(healthy(judge_accuracy=0.9, prior__frechet=90, active_units=0, grey_floor=60))
    assert [found.severity for found in diagnosis.findings] == ["severe", "warning", "warning", "note"]
    assert diagnosis.verdict == "collapsed, prior_hole, judge_unfit"


def test_the_best_sigma_follows_from_the_reconstruction_under_another() -> None:
    for sigma, best in ((0.1, 0.4), (1.0, 0.05)):
        assert sigma_ratio(sigma_case(sigma, best)) == pytest.approx(sigma / best, rel=1e-3)
    assert sigma_ratio(aimed(sigma_case(0.1, 0.4), likelihood="bernoulli")) is None


def test_an_evaluation_has_the_figures_of_all_checks() -> None:
    model, aim = build(Architecture(4, (32,), (32,), "concat", encoder_sees_label=True), 0), objective_params()
    density = Density(torch.ones(10, 1), torch.ones(10, 1, 4), torch.eye(4).expand(10, 1, 4, 4))
    evaluator = Evaluator(JUDGES, banded(12, 1), banded(30, 0), "grey", 0)
    full = evaluator.evaluate(model, density, 20, 1.0).figures
    # The doctor's command adds what the spectrum of the data expects.
    assert diagnose(Case(aim, full, history(9, 8))).unchecked == {"latents_missed": "spectrum/active_units"}
    # Samples need a judge, and the nll takes long. The rest is checked without.
    lacking = diagnose(Case(aim, evaluator.fit_figures(model), history(9, 8))).unchecked
    of_samples = {"label_ignored", "prior_hole", "over_regularised", "images_remembered", "judge_unfit"}
    assert set(lacking) == of_samples | {"nll_loose", "latents_missed"}

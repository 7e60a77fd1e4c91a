"""The doctor: each finding follows from its figures, and none is made without them."""

import doctest
import math
from dataclasses import replace

import pytest
import torch
from bands import banded, judge
from settings import objective_params
from sick import CASES, SICK, aimed, healthy, history, sigma_case

from pipeline.measure import doctor
from pipeline.measure.doctor import Case
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import Architecture, build
from pipeline.model.density import Density


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    diagnosis = doctor.diagnose(healthy())
    assert diagnosis.findings == ()
    assert set(diagnosis.fine) == set(doctor.CHECKS) == set(SICK)
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_sick_case_gets_its_name_alone_with_evidence_beyond_its_threshold(name: str, case: Case) -> None:
    diagnosis = doctor.diagnose(case)
    assert diagnosis.verdict == name
    (found,) = diagnosis.findings
    assert found.evidence
    for one in found.evidence:
        assert one.value >= one.threshold if one.beyond == "at least" else one.value <= one.threshold
    without = doctor.diagnose(replace(case, figures={}, history=()))
    assert without.findings == ()
    assert name in without.unchecked


def test_a_figure_that_is_not_finite_counts_as_missing() -> None:
    assert doctor.diagnose(healthy(kl=math.nan)).unchecked["collapsed"] == "kl"


def test_the_most_severe_comes_first_and_the_verdict_names_all() -> None:
    diagnosis = doctor.diagnose(healthy(judge_accuracy=0.9, prior__frechet=90, active_units=0))
    assert [found.severity for found in diagnosis.findings] == ["severe", "warning", "warning"]
    assert diagnosis.verdict == "collapsed, prior_hole, judge_unfit"


def test_a_note_leaves_a_model_healthy() -> None:
    diagnosis = doctor.diagnose(healthy(grey_floor=60))
    assert [found.severity for found in diagnosis.findings] == ["note"]
    assert diagnosis.verdict == "healthy"
    assert doctor.diagnose(aimed(healthy(grey_floor=60), pixels="binary")).findings == ()


def test_a_hole_is_measured_against_what_real_images_reach() -> None:
    assert doctor.prior_hole(healthy(prior__frechet=1.0, fitted__frechet=0.4, real__frechet=0.8)) is None
    assert doctor.prior_hole(healthy(prior__frechet=2.0, fitted__frechet=0.4, real__frechet=0.8)) is not None


def test_a_negative_reconstruction_is_no_share() -> None:
    case = aimed(healthy(reconstruction=-600, fitted__diversity=0.6, sigma=0.1), likelihood="continuous_bernoulli")
    assert doctor.over_regularised(case) is None


def test_a_run_whose_first_half_brought_nearly_all_is_trained() -> None:
    assert doctor.under_trained(replace(healthy(), history=history(200, 110, 101, 100.5, 100.2, 100))) is None


def test_the_loss_is_taken_at_the_weight_aimed_at() -> None:
    """During a warm-up of the KL weight the reconstruction alone would not fall."""
    rows = [{"validation/reconstruction": 100.0, "validation/kl": kl} for kl in (60.0, 40.0, 25.0, 15.0)]
    assert doctor.under_trained(replace(healthy(), history=rows)) is not None
    assert doctor.under_trained(replace(aimed(healthy(), kl_weight=0.01), history=rows)) is None


@pytest.mark.parametrize(("sigma", "best"), [(0.1, 0.4), (0.25, 0.2), (1.0, 0.05)])
def test_the_best_sigma_follows_from_the_reconstruction_under_another(sigma: float, best: float) -> None:
    case = sigma_case(sigma, best)
    assert doctor.best_sigma(case.figures["reconstruction"], sigma) == pytest.approx(best, rel=1e-3)


def test_an_evaluation_has_the_figures_of_all_checks() -> None:
    model, aim = build(Architecture(4, (32,), (32,), "concat", encoder_sees_label=True), 0), objective_params()
    density = Density(torch.ones(10, 1), torch.ones(10, 1, 4), torch.eye(4).expand(10, 1, 4, 4))
    evaluator = Evaluator(judge, banded(12, 1), banded(30, 0), "grey", 0)
    full = evaluator.evaluate(model, density, 20).figures
    assert doctor.diagnose(Case(aim, full, history(9, 8))).unchecked == {}
    lacking = doctor.diagnose(Case(aim, evaluator.fit_figures(model), history(9, 8))).unchecked
    assert set(lacking) == {
        "label_ignored", "prior_hole", "over_regularised", "images_remembered", "judge_unfit",
    }  # fmt: skip


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(doctor)
    assert result.attempted
    assert not result.failed

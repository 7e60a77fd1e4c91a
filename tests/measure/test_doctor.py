"""The doctor: each finding from its figures, none without them, and advice that names a key of params.yaml."""

import doctest
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bands import banded, judge
from settings import objective_params

from pipeline.base import params
from pipeline.data.splits import PIXELS
from pipeline.measure import doctor
from pipeline.measure.doctor import Case
from pipeline.measure.evaluator import Evaluator
from pipeline.model import likelihood
from pipeline.model.cvae import Architecture, build
from pipeline.model.density import Density
from pipeline.model.likelihood import Gaussian

ROOT = Path(__file__).parents[2]
SMALL = Architecture(4, (32,), (32,), "concat", encoder_sees_label=True)
DENSITY = Density(torch.ones(10, 1), torch.ones(10, 1, 4), torch.eye(4).expand(10, 1, 4, 4))


def history(*losses: float) -> list[dict[str, float]]:
    """Epochs whose loss on validation is as given at a KL weight of 1."""
    return [{"validation/reconstruction": loss - 10, "validation/kl": 10.0} for loss in losses]


def healthy(**figures: float) -> Case:
    """A case with nothing to find but what `figures` change; names have `__` for the slash."""
    good = {
        "reconstruction": 80.0, "kl": 20.0, "active_units": 12, "judge_accuracy": 0.995, "grey_floor": 30.0,
        "prior/class_accuracy": 0.95, "prior/diversity": 0.9, "prior/frechet": 3.0,
        "fitted/class_accuracy": 0.98, "fitted/diversity": 0.9, "fitted/frechet": 2.5, "real/frechet": 0.8,
        "fitted/log_density": -16.5, "fitted/log_density_train": -16.0,
    }  # fmt: skip
    changed = {name.replace("__", "/"): value for name, value in figures.items()}
    return Case(objective_params(), good | changed, history(200, 120, 102, 101, 100, 100), "standard", "concat")


def aimed(case: Case, **changes: Any) -> Case:
    return replace(case, aim=objective_params(**changes))


def sigma_case(sigma: float, best: float, name: likelihood.Name = "gaussian") -> Case:
    """A Gaussian's case whose errors have the standard deviation `best`."""
    outputs, pixels = torch.zeros(1, PIXELS), 0.5 + best * torch.where(torch.arange(PIXELS) % 2 == 0, 1, -1)
    reconstruction = -float(Gaussian(sigma).log_prob(outputs, pixels))
    return aimed(healthy(reconstruction=reconstruction, sigma=sigma), likelihood=name, sigma=sigma)


SICK = {
    "collapsed": [
        healthy(kl=0.01, active_units=0),
        healthy(active_units=0),
        healthy(prior__diversity=0.1, fitted__diversity=0.15),
    ],
    "label_ignored": [
        healthy(prior__class_accuracy=0.1),
        healthy(prior__class_accuracy=0.1, fitted__class_accuracy=0.1),
    ],
    "prior_hole": [healthy(prior__frechet=6.0)],
    "over_regularised": [
        healthy(fitted__diversity=0.6, reconstruction=130, kl=3),
        aimed(healthy(fitted__diversity=0.6), kl_weight=4),
        aimed(healthy(fitted__diversity=0.6, sigma=0.1), kl_weight=4, likelihood="discretized_logistic"),
    ],
    "under_trained": [
        replace(healthy(), history=history(200, 150, 130, 115)),
        replace(healthy(), history=history(200, 150)),
    ],
    "overfitted": [replace(healthy(), history=history(200, 120, 100, 101, 103))],
    "images_remembered": [healthy(fitted__log_density=-21.0, fitted__log_density_train=-12.0)],
    "likelihood_mismatched": [
        sigma_case(0.4, 0.2),
        sigma_case(0.1, 0.2),
        sigma_case(0.4, 0.2, "sigma_learned"),
        sigma_case(0.1, 0.2, "sigma_optimal"),
    ],
    "judge_unfit": [healthy(judge_accuracy=0.9)],
}
CASES = [(name, case) for name, cases in SICK.items() for case in cases]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    diagnosis = doctor.diagnose(healthy())
    assert diagnosis.findings == ()
    assert set(diagnosis.fine) == set(doctor.CHECKS)
    assert diagnosis.verdict == "healthy"


def test_every_check_has_a_case_that_it_finds() -> None:
    assert set(SICK) == set(doctor.CHECKS)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_sick_case_gets_its_name_and_no_other(name: str, case: Case) -> None:
    assert doctor.diagnose(case).verdict == name


@pytest.mark.parametrize(("name", "case"), CASES)
def test_evidence_is_beyond_its_threshold(name: str, case: Case) -> None:
    (found,) = doctor.diagnose(case).findings
    assert found.name == name
    assert found.evidence
    for one in found.evidence:
        assert one.value >= one.threshold if one.beyond == "at least" else one.value <= one.threshold


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_remedy_names_keys_that_there_are(name: str, case: Case) -> None:
    """A remedy that tells to set a key that params.yaml does not have would be refused."""
    known = params.read(ROOT / "params.yaml")
    (found,) = doctor.diagnose(case).findings
    for section, key in re.findall(rf"\b({'|'.join(known)})\.(\w+)", found.remedy):
        assert key in known[section], name


@pytest.mark.parametrize(("name", "case"), CASES)
def test_without_figures_nothing_is_found_and_all_is_said_to_be_unchecked(name: str, case: Case) -> None:
    diagnosis = doctor.diagnose(replace(case, figures={}, history=()))
    assert diagnosis.findings == ()
    assert name in diagnosis.unchecked


def test_nobody_is_told_to_take_the_likelihood_that_they_have() -> None:
    (found,) = doctor.diagnose(sigma_case(0.1, 0.2, "sigma_optimal")).findings
    assert "sigma_optimal" not in found.remedy
    assert "train.epochs" in found.remedy


def test_a_figure_that_is_no_number_counts_as_missing() -> None:
    assert doctor.diagnose(healthy(kl=math.nan)).unchecked["collapsed"] == "kl"


def test_the_gravest_comes_first_and_all_are_in_the_verdict() -> None:
    diagnosis = doctor.diagnose(healthy(judge_accuracy=0.9, prior__frechet=90, active_units=0))
    assert [found.severity for found in diagnosis.findings] == ["severe", "warning", "warning"]
    assert diagnosis.verdict == "collapsed, prior_hole, judge_unfit"


def test_a_note_leaves_a_model_healthy() -> None:
    diagnosis = doctor.diagnose(healthy(grey_floor=60))
    assert [found.severity for found in diagnosis.findings] == ["note"]
    assert diagnosis.verdict == "healthy"
    on_binary = aimed(healthy(grey_floor=60), pixels="binary")
    assert doctor.diagnose(on_binary).findings == ()


def test_a_hole_is_measured_against_what_real_images_reach() -> None:
    """At the ceiling twice next to nothing is no hole."""
    assert doctor.prior_hole(healthy(prior__frechet=1.0, fitted__frechet=0.4, real__frechet=0.8)) is None
    assert doctor.prior_hole(healthy(prior__frechet=2.0, fitted__frechet=0.4, real__frechet=0.8)) is not None


def test_the_remedy_for_a_hole_depends_on_what_the_model_is() -> None:
    case = replace(healthy(prior__frechet=50), conditioning="sum")
    summed, learned = doctor.prior_hole(case), doctor.prior_hole(replace(case, prior="mixture", conditioning="concat"))
    assert summed is not None
    assert learned is not None
    assert "model.conditioning concat" in summed.remedy
    assert "model.conditioning" not in learned.remedy
    assert "model.prior" in summed.remedy
    assert "model.prior" not in learned.remedy


def test_a_density_below_zero_is_no_share() -> None:
    case = aimed(healthy(reconstruction=-600, fitted__diversity=0.6, sigma=0.1), likelihood="continuous_bernoulli")
    assert doctor.over_regularised(case) is None


def test_a_run_that_came_to_rest_is_trained_however_short_its_last_steps() -> None:
    assert doctor.under_trained(replace(healthy(), history=history(200, 110, 101, 100.5, 100.2, 100))) is None


def test_the_loss_is_taken_at_the_weight_that_was_aimed_at() -> None:
    """While a warm-up lets the KL grow for nothing, the reconstruction alone would say that all is well."""
    rows = [{"validation/reconstruction": 100.0, "validation/kl": kl} for kl in (60.0, 40.0, 25.0, 15.0)]
    assert doctor.under_trained(replace(healthy(), history=rows)) is not None
    assert doctor.under_trained(replace(aimed(healthy(), kl_weight=0.01), history=rows)) is None


@pytest.mark.parametrize("best", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0])
def test_the_best_sigma_follows_from_the_reconstruction_under_any_other(sigma: float, best: float) -> None:
    case = sigma_case(sigma, best)
    assert doctor.best_sigma(case.figures["reconstruction"], sigma) == pytest.approx(best, rel=1e-3)


def test_the_weight_that_a_wrong_sigma_amounts_to_is_said() -> None:
    found = doctor.likelihood_mismatched(sigma_case(0.4, 0.2))
    assert found is not None
    assert "a weight of 4 would" in found.says
    assert "objective.sigma 0.2" in found.remedy


def test_the_figures_of_an_evaluation_are_found_by_the_checks() -> None:
    model, aim = build(SMALL, 0), objective_params()
    evaluator = Evaluator(judge, banded(12, 1), banded(30, 0), "grey", 0)
    full = evaluator.evaluate(model, DENSITY, 20).figures
    assert doctor.diagnose(Case(aim, full, history(9, 8))).unchecked == {}
    lacking = doctor.diagnose(Case(aim, evaluator.fit_figures(model), history(9, 8))).unchecked
    assert set(lacking) == {
        "label_ignored", "prior_hole", "over_regularised", "images_remembered", "judge_unfit",
    }  # fmt: skip


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(doctor)
    assert result.attempted
    assert not result.failed

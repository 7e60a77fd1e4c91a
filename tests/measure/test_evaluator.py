"""Evaluation on tiny data with a judge whose verdict is known."""

import json
import math
from functools import cache

import pandas as pd
import pytest
import torch
from bands import banded, judge
from settings import objective_params
from torch import nn

from pipeline.base.errors import UserError
from pipeline.data.splits import Split, to_unit
from pipeline.measure import evaluator as evaluation
from pipeline.measure import metrics
from pipeline.measure.evaluator import EvaluateParams, Evaluation, Pictures
from pipeline.model import likelihood
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density, fit_density
from pipeline.training.objective import ObjectiveParams

SMALL = Architecture(4, (32,), (32,), "concat", encoder_sees_label=True)
AIM = objective_params(kl_weight=0.5)
PARAMS = EvaluateParams(nll_draws=50, seed=0)
SAMPLE_FIGURES = ("class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage")


TRAIN, TEST = banded(30, 0), banded(12, 1)
DENSITY = Density(torch.ones(10, 1), torch.ones(10, 1, 4), torch.eye(4).expand(10, 1, 4, 4))


def ignoring_z() -> CVAE:
    """The encoder answers with the prior and the decoder draws the class's band, whatever the code."""
    model = build(SMALL, 0)
    with torch.no_grad():
        for layer in (model.mu, model.log_var):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        first = model.decoder[0]
        assert isinstance(first, nn.Linear)
        nn.init.zeros_(first.weight)
        nn.init.zeros_(first.bias)
        first.weight[:10, 4:] = torch.eye(10)
        nn.init.zeros_(model.pixels.weight)
        nn.init.constant_(model.pixels.bias, -1.5)
        for label in range(10):
            model.pixels.weight[78 * label : 78 * label + 78, label] = 2.5
    return model


def lively() -> CVAE:
    """A random model whose codes and pictures differ from image to image."""
    model = build(SMALL, 0)
    with torch.no_grad():
        model.mu.weight *= 20
        model.pixels.weight *= 20
    return model


def run(model: CVAE, aim: ObjectiveParams = AIM) -> Evaluation:
    return evaluation.evaluate(model, DENSITY, judge, TEST, TRAIN, PARAMS, aim, "test")


@cache
def collapsed() -> Evaluation:
    return run(ignoring_z())


@cache
def healthy() -> Evaluation:
    return run(lively())


def test_the_summary_has_every_figure_by_its_name() -> None:
    summary = healthy().summary
    assert {"reconstruction", "kl", "elbo", "nll", "active_units", "collapsed", "prior", "fitted", "real"} <= set(
        summary
    )
    for sampler in ("prior", "fitted", "real"):
        assert set(SAMPLE_FIGURES) <= set(summary[sampler])
    assert {"log_density", "log_density_train"} <= set(summary["fitted"])


def test_the_summary_can_be_written_as_json() -> None:
    for result in (healthy(), collapsed()):
        assert json.loads(json.dumps(result.summary, allow_nan=False)) == result.summary


def test_the_record_holds_k_and_the_pixel_protocol() -> None:
    protocol = healthy().summary["protocol"]
    assert (protocol["nll_draws"], protocol["pixels"], protocol["split"], protocol["images"]) == (
        50,
        "grey",
        "test",
        120,
    )
    assert run(ignoring_z(), objective_params(kl_weight=2.0, pixels="binary")).summary["protocol"]["pixels"] == "binary"


@pytest.mark.parametrize("name", likelihood.LIKELIHOODS)
def test_every_likelihood_is_measured_and_only_the_exact_one_in_bits(name: likelihood.Name) -> None:
    model = build(SMALL, 0, name, sigma=0.2)
    summary = run(model, objective_params(likelihood=name)).summary
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["protocol"]["likelihood"] == name
    assert ("bits_per_dimension" in summary) == (name == "discretized_logistic")
    if name == "discretized_logistic":
        assert summary["bits_per_dimension"] == pytest.approx(summary["nll"] / 784 / math.log(2))
        assert summary["bits_per_dimension"] > 0


def test_a_row_for_each_sampler_and_digit() -> None:
    table = healthy().per_class
    assert {"sampler", "digit", *SAMPLE_FIGURES} <= set(table.columns)
    assert sorted(zip(table["sampler"], table["digit"], strict=True)) == [
        (sampler, digit) for sampler in ("fitted", "prior", "real") for digit in range(10)
    ]


@pytest.mark.parametrize("name", SAMPLE_FIGURES)
def test_a_headline_is_the_mean_over_classes(name: str) -> None:
    result = healthy()
    for sampler in ("prior", "fitted", "real"):
        rows = result.per_class[result.per_class["sampler"] == sampler]
        assert result.summary[sampler][name] == pytest.approx(rows[name].mean())


def test_a_density_that_knows_the_images_it_was_fitted_to_is_told_from_one_that_knows_where_codes_lie() -> None:
    """Of 30 images a class: a Gaussian for every second one, or one for all."""
    known, unseen = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    train, test = (
        Split(torch.randint(0, 256, (300, 1, 28, 28), generator=source, dtype=torch.uint8), torch.arange(300) % 10)
        for source in (known, unseen)
    )
    model = lively()
    with torch.no_grad():
        model.log_var.bias.fill_(-8)
        model.log_var.weight.zero_()

    def gap(components: int) -> float:
        density = fit_density(model, train, "grey", components, 0)
        says = evaluation.learned(model, density, test, train, "grey", 0)
        return says["log_density_train"] - says["log_density"]

    assert gap(1) < 1
    assert gap(15) > 10


def test_the_elbo_is_minus_both_terms_and_the_bound_with_many_draws_is_no_looser() -> None:
    summary = healthy().summary
    assert summary["elbo"] == pytest.approx(-(summary["reconstruction"] + summary["kl"]))
    assert summary["nll"] < -summary["elbo"]


def test_a_model_that_ignores_the_code_is_called_collapsed() -> None:
    summary = collapsed().summary
    assert summary["collapsed"] is True
    assert summary["active_units"] == 0
    assert summary["kl"] == pytest.approx(0, abs=1e-5)
    assert summary["prior"]["diversity"] == summary["fitted"]["diversity"] == 0
    assert summary["nll"] == pytest.approx(-summary["elbo"], rel=1e-4)


def test_a_model_that_uses_the_code_is_not() -> None:
    summary = healthy().summary
    assert summary["collapsed"] is False
    assert summary["active_units"] > 0
    assert summary["prior"]["diversity"] > 0.2


def test_a_decoder_that_is_deaf_to_an_active_code_is_called_collapsed_too() -> None:
    model = ignoring_z()
    nn.init.normal_(model.mu.weight, generator=torch.Generator().manual_seed(0))
    summary = run(model).summary
    assert summary["active_units"] > 0
    assert summary["collapsed"] is True


def test_samples_that_the_judge_reads_as_asked_are_accurate_even_where_they_are_all_alike() -> None:
    assert collapsed().summary["prior"]["class_accuracy"] == 1


def test_samples_of_a_random_model_are_not() -> None:
    assert healthy().summary["prior"]["class_accuracy"] < 0.5


def test_real_images_are_the_ceiling() -> None:
    real, prior = healthy().summary["real"], healthy().summary["prior"]
    assert real["class_accuracy"] == 1
    assert real["diversity"] == pytest.approx(1, abs=0.05)
    assert real["frechet"] < prior["frechet"]
    assert real["coverage"] > prior["coverage"]


def test_the_same_seed_measures_the_same() -> None:
    again = run(lively())
    assert again.summary == healthy().summary
    pd.testing.assert_frame_equal(again.per_class, healthy().per_class)


def test_measuring_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    run(ignoring_z())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_ask_for_the_digits_of_the_split() -> None:
    real = evaluation.read_split(judge, TEST)
    drawn = evaluation.read_samples(judge, ignoring_z(), DENSITY, real, "prior", 0)
    assert torch.equal(drawn.digits, TEST.labels)
    assert torch.equal(drawn.reading.labels, TEST.labels)


def test_the_reals_taken_for_samples_have_the_split_s_class_counts() -> None:
    digits = torch.tensor([0] * 5 + [3] * 2 + [9] * 40)
    taken = evaluation.same_classes(TRAIN, digits, seed=0)
    assert torch.bincount(taken.labels, minlength=10).tolist() == [5, 0, 0, 2, 0, 0, 0, 0, 0, 30]
    assert len(taken.images.flatten(1).unique(dim=0)) == len(taken)


def test_a_class_is_compared_with_the_same_class_alone() -> None:
    """Samples that are right but for one digit's fail that digit alone."""
    real = evaluation.read_split(judge, TEST)
    images = to_unit(TEST.images).clone()
    images[TEST.labels == 4] = images[TEST.labels == 5]
    rows = list(evaluation.compare(real, Pictures(images, TEST.labels, judge(images))))
    assert [row["class_accuracy"] for row in rows] == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert [round(row["frechet"], 6) > 0 for row in rows] == [digit == 4 for digit in range(10)]


def test_too_few_images_of_a_digit_are_refused_by_name() -> None:
    few = TEST[(TEST.labels != 6) | (torch.arange(len(TEST)) < 40)]
    real = evaluation.read_split(judge, few)
    with pytest.raises(UserError, match="digit 6 has 4 images"):
        list(evaluation.compare(real, real))


def test_six_images_of_a_digit_are_enough_for_five_neighbours() -> None:
    few = evaluation.read_split(judge, TEST[slice(0, 10 * (metrics.NEIGHBOURS + 1))])
    assert len(list(evaluation.compare(few, few))) == 10


def test_too_few_samples_are_not_blamed_on_the_split() -> None:
    real, few = evaluation.read_split(judge, TEST), evaluation.read_split(judge, TRAIN[slice(0, 30)])
    with pytest.raises(UserError, match="digit 0 has 3 images"):
        list(evaluation.compare(real, few))

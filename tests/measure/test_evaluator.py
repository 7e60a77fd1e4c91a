"""The evaluator on tiny data, with judges whose labels are known."""

import json
import math
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch
from bands import JUDGES, banded
from torch import nn

from pipeline.base.errors import UserError
from pipeline.data.splits import Pixels, Split, to_unit
from pipeline.measure.evaluator import Evaluation, Evaluator, compare, grey_floor, nested, same_classes, summary
from pipeline.measure.metrics import OF_SAMPLES, Judged
from pipeline.model import likelihood
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density

SMALL = Architecture(4, (32,), (32,), "concat", encoder_sees_label=True)
TRAIN, TEST = banded(30, 0), banded(12, 1)
DENSITY = Density(torch.ones(10, 1), torch.ones(10, 1, 4), torch.eye(4).expand(10, 1, 4, 4))
K = 50


def ignoring_z() -> CVAE:
    """q(z∣x,y) is the prior, and the decoder makes the band of the label from any latent."""
    model = build(SMALL, 0)
    first = model.decoder[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        for layer in (model.mu, model.log_var, first, model.pixels):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        first.weight[:10, 4:] = torch.eye(10)
        nn.init.constant_(model.pixels.bias, -1.5)
        for label in range(10):
            model.pixels.weight[78 * label : 78 * label + 78, label] = 2.5
    return model


def lively() -> CVAE:
    """A random model whose latents and images differ from image to image."""
    model = build(SMALL, 0)
    with torch.no_grad():
        model.mu.weight *= 20
        model.pixels.weight *= 20
    return model


def evaluator(pixels: Pixels = "grey") -> Evaluator:
    return Evaluator(JUDGES, TEST, TRAIN, pixels, 0)


@cache
def collapsed() -> Evaluation:
    return evaluator().evaluate(ignoring_z(), DENSITY, K, 1.0)


@cache
def healthy() -> Evaluation:
    return evaluator().evaluate(lively(), DENSITY, K, 1.0)


def test_there_is_every_figure_and_they_can_be_written_as_json() -> None:
    samples = {f"{name}/{metric}" for name in ("prior", "fitted", "real") for metric in OF_SAMPLES}
    for result in (healthy(), collapsed()):
        assert result.figures.keys() == samples | {
            "reconstruction", "kl", "elbo", "active_units", "nll", "effective_samples", "grey_floor", "collapsed",
            "judge_accuracy", "judge_accuracy_plain", "fitted/log_density", "fitted/log_density_train",
        }  # fmt: skip
        assert json.loads(json.dumps(nested(result.figures), allow_nan=False)) == nested(result.figures)
    figures = {"nll": 1.0, "real/frechet": 2.0, "real/recall": 3.0}
    assert nested(figures) == {"nll": 1.0, "real": {"frechet": 2.0, "recall": 3.0}}


def test_a_headline_is_the_mean_of_a_row_per_sampler_and_digit_and_a_part_measures_the_same() -> None:
    figures, table, _ = healthy()
    means = table.groupby("sampler").mean()
    for sampler in ("prior", "fitted", "real"):
        assert table[table["sampler"] == sampler]["digit"].tolist() == list(range(10))
        for name in OF_SAMPLES:
            assert figures[f"{sampler}/{name}"] == pytest.approx(means.loc[sampler, name])
    some = evaluator()
    assert some.samples(lively(), DENSITY, ["fitted"]) == {
        f"fitted/{name}": figures[f"fitted/{name}"] for name in OF_SAMPLES
    }
    assert some.ceiling.figures == {name: figures[f"real/{name}"] for name in OF_SAMPLES}
    without_judges = Evaluator(None, TEST, TRAIN, "grey", 0)
    fit = without_judges.fit_figures(lively()) | without_judges.nll(lively(), K, 1.0)
    assert fit == {name: figures[name] for name in fit}
    with pytest.raises(ValueError, match="judge"):
        _ = without_judges.ceiling


@pytest.mark.parametrize("name", likelihood.LIKELIHOODS)
def test_a_likelihood_has_bits_sigma_or_a_floor_only_where_they_mean_something(name: likelihood.Name) -> None:
    model, some = build(SMALL, 0, name, sigma=0.2), evaluator()
    nll, fit = some.nll(model, 5, 1.0), some.fit_figures(model)
    assert ("bits_per_dimension" in nll) == (name == "discretized_logistic")
    if "bits_per_dimension" in nll:
        assert nll["bits_per_dimension"] == pytest.approx(nll["nll"] / 784 / math.log(2))
    assert ("sigma" in fit) == (name in ("gaussian", "sigma_learned", "sigma_optimal"))
    assert ("grey_floor" in fit) == (name == "bernoulli")
    assert "grey_floor" not in evaluator("binary").fit_figures(model)


def test_several_sample_sets_are_averaged_and_say_how_much_they_differ() -> None:
    some = replace(evaluator(), sets=3)
    figures, table, deviation = some.sample_figures(lively(), DENSITY)
    alone = [replace(evaluator(), seed=seed).samples(lively(), DENSITY, ["prior"]) for seed in (0, 3, 4)]
    frechet = pd.Series([one["prior/frechet"] for one in alone])
    assert frechet[0] == healthy().figures["prior/frechet"]
    assert figures["prior/frechet"] == pytest.approx(frechet.mean())
    assert deviation["prior/frechet"] == pytest.approx(frechet.std())
    assert deviation["real/frechet"] > 0
    assert table[table["sampler"] == "prior"]["frechet"].mean() == pytest.approx(frechet.mean())
    assert healthy().deviation == {}
    found = summary(Evaluation(figures, table, deviation), {"sample_sets": 3})
    assert found["standard_deviation"]["prior"]["frechet"] == deviation["prior/frechet"]


def test_no_bernoulli_explains_grey_pixels_better_than_the_floor() -> None:
    images = TEST.images
    x, bernoulli = to_unit(images).flatten(1), likelihood.build("bernoulli")
    costs = [-float(bernoulli.log_prob(x.clamp(1e-6, 1 - 1e-6).logit() + shift, x).mean()) for shift in (0.0, 0.3)]
    assert costs[0] == pytest.approx(grey_floor(images), rel=1e-4)
    assert costs[1] > grey_floor(images)
    assert grey_floor((images > 60).byte() * 255) == pytest.approx(0, abs=1e-9)


def test_the_densitys_own_figures_tell_memorised_latents_from_learned_ones() -> None:
    """Of 30 images per class: a Gaussian for every second one memorises, one Gaussian for all does not."""

    def noise(seed: int) -> Split:
        source = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (300, 1, 28, 28), generator=source, dtype=torch.uint8)
        return Split(images, torch.arange(300) % 10)

    model, some = lively(), Evaluator(JUDGES, noise(1), noise(0), "grey", 0)
    nn.init.constant_(model.log_var.bias, -8)
    nn.init.zeros_(model.log_var.weight)

    def gap(components: int) -> float:
        figures = some.sample_figures(model, some.density(model, components)).figures
        return figures["fitted/log_density_train"] - figures["fitted/log_density"]

    assert gap(1) < 1
    assert gap(15) > 10


def test_a_model_that_ignores_the_latents_is_collapsed() -> None:
    figures = collapsed().figures
    assert figures["collapsed"] is True
    assert figures["active_units"] == 0
    assert figures["kl"] == pytest.approx(0, abs=1e-5)
    assert figures["prior/diversity"] == figures["fitted/diversity"] == 0
    assert figures["prior/class_accuracy"] == 1  # though all alike, its samples show the right digit
    assert figures["nll"] == pytest.approx(-figures["elbo"], rel=1e-4)
    encoding = ignoring_z()
    nn.init.normal_(encoding.mu.weight, generator=torch.Generator().manual_seed(0))
    figures = evaluator().evaluate(encoding, DENSITY, 1, 1.0).figures
    assert figures["active_units"] > 0
    assert figures["collapsed"] is True


def test_a_model_that_uses_the_latents_is_not_collapsed_and_real_images_are_the_ceiling() -> None:
    figures = healthy().figures
    assert figures["nll"] < -figures["elbo"]
    assert figures["collapsed"] is False
    assert figures["active_units"] > 0
    assert figures["prior/diversity"] > 0.2
    assert figures["prior/class_accuracy"] < 0.5
    assert figures["real/class_accuracy"] == figures["judge_accuracy"] == 1
    assert figures["real/diversity"] == pytest.approx(1, abs=0.05)
    assert figures["real/frechet"] < figures["prior/frechet"]
    assert figures["prior/frechet_tolerant"] == pytest.approx(figures["prior/frechet"] / 4)
    assert figures["real/coverage"] > figures["prior/coverage"]


def test_the_same_seed_measures_the_same_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    figures, table, _ = evaluator().evaluate(lively(), DENSITY, K, 1.0)
    assert figures == healthy().figures
    pd.testing.assert_frame_equal(table, healthy().per_class)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_real_images_in_place_of_samples_have_the_splits_class_counts() -> None:
    digits = torch.tensor([0] * 5 + [3] * 2 + [9] * 40)
    taken = same_classes(TRAIN, digits, seed=0)
    assert torch.bincount(taken.labels, minlength=10).tolist() == [5, 0, 0, 2, 0, 0, 0, 0, 0, 30]
    assert len(taken.images.flatten(1).unique(dim=0)) == len(taken)


def test_a_class_is_compared_with_the_same_class_alone_and_needs_enough_images() -> None:
    def judged(split: Split) -> Judged:
        images = to_unit(split.images)
        return Judged(images.flatten(1), JUDGES.tolerant.read(images), JUDGES.plain.read(images), split.labels)

    images = TEST.images.clone()
    images[TEST.labels == 4] = images[TEST.labels == 5]
    table = compare(judged(TEST), judged(Split(images, TEST.labels)))
    assert table["class_accuracy"].tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert [round(value, 6) > 0 for value in table["frechet"]] == [digit == 4 for digit in range(10)]
    few = judged(TEST[(TEST.labels != 6) | (torch.arange(len(TEST)) < 40)])
    for pair in ((few, few), (judged(TEST), few), (few, judged(TEST))):
        with pytest.raises(UserError, match="digit 6 has 4 images"):
            compare(*pair)

"""One training for every KL weight, on small data."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from settings import OURS, model_params, objective_params, train_params
from solo import CPU, blobs, weights

from pipeline.base.errors import UserError
from pipeline.base.params import parse, plain
from pipeline.measure.evaluator import Evaluator
from pipeline.measure.judge import Judges
from pipeline.measure.judge import build as build_judge
from pipeline.model.multirate import MultiRate
from pipeline.stages.saved import load_curve, load_splits, save_curve
from pipeline.training.fit import fit, start
from pipeline.weight.curve import (
    Point,
    WeightParams,
    best_weights,
    build,
    densities,
    drawn_view,
    measured,
    measured_weights,
    recipe,
    sheet_of,
)

TRAIN, VALIDATION = blobs(400, 0), blobs(150, 1)
MODEL = model_params(latent_size=4, encoder_hidden=(32,), decoder_hidden=(32,))


def weight_params(**changes: object) -> WeightParams:
    values = OURS["weight"] | {"epochs": 20, "batch_size": 40, "learning_rate": 0.005, "points": 3} | changes
    return parse(WeightParams, values, "weight")


@pytest.fixture(scope="module")
def trained() -> MultiRate:
    weight = weight_params()
    params = recipe(weight, train_params())
    training = start(build(MODEL, objective_params(), weight, params.seed), params, CPU)
    list(fit(training, TRAIN, VALIDATION, params, objective_params(), drawn_view(training.model, "grey")))
    return training.model


@pytest.fixture(scope="module")
def points(trained: MultiRate) -> list[Point]:
    evaluator = Evaluator(Judges(build_judge(0).eval(), build_judge(1).eval()), VALIDATION, TRAIN, "grey", 0)
    return list(measured(trained, measured_weights(weight_params()), evaluator, components=2))


def test_weights_are_drawn_log_uniformly_for_each_image(trained: MultiRate) -> None:
    source = torch.Generator().manual_seed(0)
    images, condition = drawn_view(trained, "grey")(TRAIN, source)
    log_weight = condition[:, 1].double()
    assert torch.equal(images, TRAIN.images)
    assert torch.equal(condition[:, 0].long(), TRAIN.labels)
    low, high = math.log(0.01 / 1.3), math.log(30 * 1.3)
    shares = torch.histc(log_weight, 20, low, high)
    assert log_weight.min() >= low
    assert log_weight.max() <= high
    assert (shares == len(TRAIN) / 20).all()


def test_one_network_trades_reconstruction_for_kl_along_the_range(points: list[Point]) -> None:
    table = pd.DataFrame([point.row for point in points])
    assert table["kl_weight"].tolist() == [0.01, 0.5477, 30]
    assert table["validation/kl"].is_monotonic_decreasing
    assert table["validation/reconstruction"].is_monotonic_increasing
    assert table["validation/kl"].iloc[0] > 5 * table["validation/kl"].iloc[-1]
    assert table.notna().all(axis=None)
    figures = {"frechet", "class_accuracy", "diversity"}
    assert {f"validation/{name}/{figure}" for name in ("prior", "fitted") for figure in figures} <= set(table)
    assert sheet_of(points, "prior").shape == (10 * 30 - 2, 3 * 30 - 2)


def test_a_saved_curve_is_the_same_with_its_densities(trained: MultiRate, points: list[Point], tmp_path: Path) -> None:
    path, saved = tmp_path / "curve.safetensors", {"model": plain(MODEL), "objective": plain(objective_params())}
    saved["weight"] = plain(weight_params())
    save_curve(path, trained, saved, densities(points))
    model, fitted = load_curve(path)
    assert torch.equal(weights(model.at(0.3)), weights(trained.at(0.3)))
    assert torch.equal(fitted.at(30).means, points[-1].density.means)
    with pytest.raises(UserError, match="holds no splits"):
        load_splits(path, "train")
    save_curve(path, trained, saved)
    with pytest.raises(UserError, match="run `dvc repro curve` first"):
        load_curve(path)


def test_the_best_weight_is_that_of_a_parabola() -> None:
    weights_tried = np.geomspace(0.01, 30, 25)
    table = pd.DataFrame({"kl_weight": weights_tried})
    table["validation/fitted/frechet"] = np.exp(np.log(weights_tried / 0.123) ** 2 / 9)
    table["validation/prior/frechet"] = 1 / weights_tried
    assert best_weights(table) == {"prior": 30, "fitted": 0.12}


def test_a_range_that_makes_no_sense_is_refused() -> None:
    for ends in ([3, 0.1], [1, 1], [0, 1], [0.01, 2000], [0.1]):
        with pytest.raises(UserError, match=r"^weight\.range"):
            weight_params(range=ends)


def test_a_prior_that_depends_on_the_encoder_gives_way_to_the_standard_one() -> None:
    model = build(replace(MODEL, prior="mixture"), objective_params(), weight_params(), 0)
    assert model.settings[0].prior == "standard"

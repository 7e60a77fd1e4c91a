"""Figures of a study are drawn whatever its trials, and say which trial is the best so far."""

import numpy as np
import pandas as pd
import pytest
from figures import check_drawn, sheet, words

from pipeline.show import study


def trials(states: list[str]) -> pd.DataFrame:
    """A study's table with a trial for each state; failed and running trials have no figures."""
    count = len(states)
    weight = np.geomspace(0.01, 100, count) if count > 1 else np.ones(count)
    table = pd.DataFrame({"trial": range(count), "state": states, "kl_weight": weight})
    table["validation/kl"], table["validation/reconstruction"] = 30 / (1 + weight), 70 + 10 * weight**0.5
    for name in ("frechet", "class_accuracy", "diversity"):
        for sampler in ("prior", "fitted"):
            table[f"validation/{sampler}/{name}"] = 0.3 + weight / 200
    table["feasible"] = True
    unknown = ~table["state"].isin(["COMPLETE", "PRUNED"])
    table.loc[unknown, [name for name in table.columns if "/" in name]] = np.nan
    table["feasible"] = table["feasible"].astype(object).where(~unknown, None)
    return table


STUDIES = [["COMPLETE", "PRUNED", "COMPLETE", "FAILED", "RUNNING"], ["COMPLETE"], ["PRUNED", "PRUNED"], ["FAILED"]]


@pytest.mark.parametrize("states", STUDIES)
def test_a_study_is_drawn_whatever_the_states_of_its_trials(states: list[str]) -> None:
    table = trials(states)
    for figure in (
        study.weights(table, ["frechet", "kl"], {"frechet": 0.4}, 1.0),
        study.rate_distortion(table),
        study.history(table, "validation/fitted/frechet", lower_is_better=True),
        study.pareto(table, ["validation/reconstruction", "validation/fitted/frechet"], [0]),
    ):
        check_drawn(figure)


def test_both_samplers_and_real_images_are_in_one_panel() -> None:
    figure = study.weights(trials(["COMPLETE"] * 3), ["frechet", "diversity"], {"frechet": 0.4}, 1.0)
    frechet, diversity = figure.axes
    assert {line.get_label() for line in frechet.lines} >= {"prior", "fitted", "real images"}
    assert "real images" not in {line.get_label() for line in diversity.lines}
    assert (frechet.get_xscale(), frechet.get_yscale(), diversity.get_yscale()) == ("log", "log", "linear")


def test_pruned_trials_are_hollow() -> None:
    figure = study.weights(trials(["COMPLETE", "PRUNED", "PRUNED"]), ["frechet"], {}, None)
    hollow = [points for points in figure.axes[0].collections if "pruned" in str(points.get_label())]
    assert [len(np.asarray(points.get_offsets())) for points in hollow] == [2, 2]
    assert all(len(points.get_facecolor()) == 0 for points in hollow)


def test_rate_and_distortion_are_named_by_their_weights() -> None:
    text = words(study.rate_distortion(trials(["COMPLETE", "COMPLETE", "PRUNED"])))
    assert "0.01" in text
    assert "elbo −" in text


def test_names_that_would_overlap_are_left_out() -> None:
    table = trials(["COMPLETE", "COMPLETE", "COMPLETE"]).assign(kl_weight=[0.0120, 0.0121, 3.0])
    table["validation/kl"], table["validation/reconstruction"] = [80.0, 79.9, 10.0], [70.0, 70.1, 90.0]
    assert [name for name in words(study.rate_distortion(table)).split("\n") if name in ("0.012", "3")] == [
        "0.012",
        "3",
    ]


def test_the_best_so_far_never_gets_worse() -> None:
    table = trials(["COMPLETE"] * 4).assign(**{"validation/fitted/frechet": [3.0, 5.0, 1.0, 2.0]})
    (line,) = study.history(table, "validation/fitted/frechet", lower_is_better=True).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [3.0, 3.0, 1.0, 1.0]
    (line,) = study.history(table, "validation/fitted/frechet", lower_is_better=False).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [3.0, 5.0, 5.0, 5.0]


def test_an_infeasible_trial_is_never_the_best_so_far() -> None:
    table = trials(["COMPLETE"] * 3).assign(
        **{"validation/fitted/frechet": [1.0, 5.0, 4.0]}, feasible=[False, True, True]
    )
    (line,) = study.history(table, "validation/fitted/frechet", lower_is_better=True).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [5.0, 4.0]


def test_an_outlier_does_not_hide_the_other_trials() -> None:
    table = trials(["COMPLETE", "COMPLETE", "PRUNED"])
    table.loc[2, ["validation/kl", "validation/reconstruction"]] = 1e9
    figure = study.rate_distortion(table)
    check_drawn(figure)
    (axes, _) = figure.axes
    assert axes.get_xlim()[1] < 100
    assert len(axes.lines) < 40


def test_importances_are_sorted() -> None:
    figure = study.importances_of({"a": 0.2, "b": 0.7, "c": 0.1})
    check_drawn(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["c", "a", "b"]


def test_strips_stand_below_one_another_with_their_weights() -> None:
    strips = [(f"β = {row}", sheet(1, 10), sheet(1, 10)) for row in range(5)]
    figure = study.weight_strips(strips, ("left", "right"))
    check_drawn(figure)
    assert [len(axes.get_yticks()) for axes in figure.axes] == [5, 5]
    assert "β = 0" in words(figure)
    assert "left" in words(figure)

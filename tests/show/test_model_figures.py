"""Figures of a model are drawn without a display, whatever the model's state."""

import itertools

import numpy as np
import pandas as pd
import pytest
from figures import SOURCE, check_drawn, sheet, words

from pipeline.show import model


def test_a_sheet_of_samples_has_a_title_and_a_row_per_digit() -> None:
    figure = model.digits(sheet(), "Samples at β = 1")
    check_drawn(figure)
    assert "Samples at β = 1" in words(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list("0123456789")


def test_a_sheet_keeps_its_greys() -> None:
    """They are neither inverted nor stretched."""
    picture = np.full((298, 118), 200, np.uint8)
    picture[:100] = 255
    shown = model.digits(picture, "").axes[0].images[0]
    colours = shown.to_rgba(np.array([[0, 200, 255]], np.uint8))[0, :, 0]
    assert colours == pytest.approx([0, 200 / 255, 1], abs=0.01)


def test_samplers_stand_side_by_side_each_under_its_note() -> None:
    names = ["real", "prior", "fitted"]
    figure = model.sampler_grids({name: sheet() for name in names}, {name: f"note on {name}" for name in names})
    check_drawn(figure)
    for axes, name in zip(figure.axes, names, strict=True):
        assert axes.get_title().strip() == name
        assert axes.texts[0].get_text() == f"note on {name}"


@pytest.mark.parametrize("dimensions", [0, 1, 16])
def test_a_traversal_has_a_row_for_each_dimension_or_says_that_there_is_none(dimensions: int) -> None:
    names = [f"z{index}" for index in range(dimensions)]
    figure = model.traversal(sheet(dimensions, 11) if names else None, names, "Digit 5")
    check_drawn(figure)
    if names:
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    else:
        assert "collapsed" in words(figure)


@pytest.mark.parametrize("mu", [SOURCE.normal(size=(40, 1)), SOURCE.normal(size=(40, 8)), np.zeros((40, 8))])
def test_latents_of_any_size_are_shown_once_each(mu: np.ndarray) -> None:
    figure = model.latent_space(mu, np.arange(40) % 9)  # one class is missing
    check_drawn(figure)
    assert sum(len(np.asarray(points.get_offsets())) for points in figure.axes[0].collections) == 40


def test_a_latent_space_of_two_dimensions_is_turned_alone() -> None:
    mu = SOURCE.normal(size=(10, 2)) * [1, 3] + 5
    figure = model.latent_space(mu, np.arange(10))
    shown = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    expected = np.linalg.norm(mu[:, None] - mu[None], axis=-1)
    assert np.linalg.norm(shown[:, None] - shown[None], axis=-1) == pytest.approx(expected)
    assert "100% of their variance" in words(figure)


@pytest.mark.parametrize("epochs", [1, 20])
def test_curves_are_drawn_from_the_first_epoch_on(epochs: int) -> None:
    epoch = np.arange(1, epochs + 1)
    names = [f"{split}/{term}" for split in ("train", "validation") for term in ("reconstruction", "kl", "elbo")]
    figure = model.curves(pd.DataFrame({"epoch": epoch, **dict.fromkeys(names, 100.0 / epoch)}))
    check_drawn(figure)
    for name in ("reconstruction", "kl", "elbo"):
        assert name in words(figure)


def test_bars_are_as_high_as_the_figures_of_each_class_and_sampler() -> None:
    rows = [
        {
            "sampler": sampler,
            "digit": digit,
            "class_accuracy": 0.9,
            "diversity": 1,
            "coverage": 0.5,
            "frechet": 10 + digit,
        }
        for sampler, digit in itertools.product(("prior", "fitted", "real"), range(10))
    ]
    figure = model.per_class(pd.DataFrame(rows))
    check_drawn(figure)
    assert all(len(axes.patches) == 30 for axes in figure.axes)
    panels = {axes.get_title(loc="left").split(":")[0]: axes for axes in figure.axes}
    heights = [bar.get_height() for bar in panels["frechet"].patches[:10]]  # type: ignore[attr-defined]
    assert heights == pytest.approx([10 + digit for digit in range(10)])


def test_completions_stand_between_the_visible_part_and_the_truth() -> None:
    figure = model.completions({f"{number} quadrants": sheet(columns=8) for number in (1, 2, 3)}, shown=5)
    check_drawn(figure)
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["seen", "network", "completions", "truth"]
        assert [place // 30 for place in axes.get_xticks()] == [0, 1, 4, 7]


def test_drawing_keeps_no_figure_open() -> None:
    import matplotlib.pyplot as plt

    check_drawn(model.digits(sheet(), ""))
    assert plt.get_fignums() == []

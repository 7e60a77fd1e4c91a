"""Figures: every one is drawn and saved without a display, whatever the model's state."""

import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.show import plots as figures

SOURCE = np.random.default_rng(0)


def sheet(rows: int = 10, columns: int = 4) -> np.ndarray:
    return SOURCE.integers(0, 256, (30 * rows - 2, 30 * columns - 2), dtype=np.uint8)


def words(figure: Figure) -> str:
    """Everything that is written on a figure."""
    written = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        written += [axes.get_title(), axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        written += [text.get_text() for text in axes.texts]
        written += [label.get_text() for label in axes.get_yticklabels()]
    return "\n".join(written)


def saved(figure: Figure) -> Image.Image:
    """The figure as a reader opens it; it must not be one blank colour."""
    assert isinstance(figure, Figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=40)  # sizes are in inches: it is laid out as at any other
    picture = Image.open(content)
    assert picture.format == "PNG"
    low, high = picture.convert("L").getextrema()
    assert low != high
    return picture


def per_class(frechet: float = 10.0) -> pd.DataFrame:
    metrics = ("class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage")
    rows = [
        {"sampler": sampler, "digit": digit, **dict.fromkeys(metrics, 0.5 + digit / 20), "frechet": frechet + digit}
        for sampler, digit in itertools.product(("prior", "fitted", "real"), range(10))
    ]
    return pd.DataFrame(rows)


def history(epochs: int) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    names = [f"{split}/{term}" for split in ("train", "validation") for term in ("reconstruction", "kl", "elbo")]
    return pd.DataFrame({"epoch": epoch, **dict.fromkeys(names, 100.0 / epoch)})


def test_a_sheet_of_samples_carries_its_title_and_digits() -> None:
    figure = figures.sample_grid(sheet(), "Samples at β = 1")
    saved(figure)
    assert "Samples at β = 1" in words(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list("0123456789")


def test_a_sheet_is_shown_in_its_own_greys() -> None:
    """Neither inverted nor stretched: 255 stays white where the darkest value is a light grey."""
    picture = np.full((298, 118), 200, np.uint8)
    picture[:100] = 255
    shown = figures.sample_grid(picture, "").axes[0].images[0]
    colours = shown.to_rgba(np.array([[0, 200, 255]], np.uint8))[0, :, 0]
    assert colours == pytest.approx([0, 200 / 255, 1], abs=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_samplers_stand_side_by_side_each_under_its_note(count: int) -> None:
    names = ["real", "prior", "fitted"][:count]
    figure = figures.sampler_grids({name: sheet() for name in names}, {name: f"note on {name}" for name in names})
    saved(figure)
    assert len(figure.axes) == count
    for axes, name in zip(figure.axes, names, strict=True):
        assert axes.get_title().strip() == name
        assert axes.texts[0].get_text() == f"note on {name}"


def test_reconstructions_are_drawn() -> None:
    figure = figures.reconstructions(sheet())
    saved(figure)
    assert "reconstruction" in words(figure)


@pytest.mark.parametrize("dimensions", [1, 2, 16])
def test_a_traversal_has_a_row_for_each_dimension(dimensions: int) -> None:
    names = [f"z{index}" for index in range(dimensions)]
    figure = figures.traversal(sheet(dimensions, 11), names, "Digit 5")
    saved(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names


def test_a_traversal_without_a_dimension_says_that_the_code_has_collapsed() -> None:
    figure = figures.traversal(None, [], "Digit 5")
    saved(figure)
    assert "collapsed" in words(figure)


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.slow
def test_a_latent_space_of_any_size_shows_every_image_once(size: int) -> None:
    labels = np.arange(40) % 10
    figure = figures.latent_space(SOURCE.normal(size=(40, size)), labels)
    saved(figure)
    assert sum(len(np.asarray(points.get_offsets())) for points in figure.axes[0].collections) == 40


def test_a_latent_space_keeps_the_distances_of_a_plane() -> None:
    """Two dimensions are only turned: what lies close together is shown close together."""
    mu = SOURCE.normal(size=(10, 2)) * [1, 3] + 5
    figure = figures.latent_space(mu, np.arange(10))
    shown = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    expected = np.linalg.norm(mu[:, None] - mu[None], axis=-1)
    assert np.linalg.norm(shown[:, None] - shown[None], axis=-1) == pytest.approx(expected)
    assert "100% of their variance" in words(figure)


def test_a_latent_space_says_how_much_of_the_variance_it_shows() -> None:
    """Four axes with variances 4, 3, 2 and 1: the first two hold 70 %."""
    waves = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]] * 5).T[1:].T
    mu = np.concatenate([waves, -waves]) * np.sqrt([4, 3, 3])
    assert "70% of their variance" in words(figures.latent_space(mu, np.arange(40) % 10))


def test_a_latent_space_without_any_spread_is_drawn() -> None:
    saved(figures.latent_space(np.zeros((20, 8)), np.arange(20) % 10))


def test_a_latent_space_may_lack_classes() -> None:
    saved(figures.latent_space(SOURCE.normal(size=(12, 3)), np.full(12, 4)))


@pytest.mark.parametrize("epochs", [1, 2, 20])
@pytest.mark.slow
def test_curves_are_drawn_from_the_first_epoch_on(epochs: int) -> None:
    figure = figures.curves(history(epochs))
    saved(figure)
    for name in ("reconstruction", "kl", "elbo"):
        assert name in words(figure)


@pytest.mark.slow
def test_every_class_has_a_bar_for_each_sampler() -> None:
    figure = figures.per_class(per_class())
    saved(figure)
    for axes in figure.axes:
        assert len(axes.patches) == 30


def test_bars_are_as_high_as_the_figures_they_show() -> None:
    panels = {axes.get_title(loc="left").split(":")[0]: axes for axes in figures.per_class(per_class()).axes}
    assert [bar.get_height() for bar in panels["frechet"].patches[:10]] == pytest.approx([10 + d for d in range(10)])  # type: ignore[attr-defined]


def test_drawing_opens_no_window_and_keeps_no_figure() -> None:
    import matplotlib.pyplot as plt

    saved(figures.sample_grid(sheet(), ""))
    assert plt.get_fignums() == []


def test_the_file_s_name_need_not_tell_the_format(tmp_path: Path) -> None:
    """Stages write to a temporary name first."""
    figures.sample_grid(sheet(), "").savefig(tmp_path / ".samples.png.part", format="png")
    with Image.open(tmp_path / ".samples.png.part") as picture:
        assert picture.format == "PNG"


def test_a_saved_figure_looks_like_the_drawn_one_in_few_colours(tmp_path: Path) -> None:
    sheet = np.random.default_rng(0).integers(0, 256, (298, 238)).astype(np.uint8)
    figures.sample_grid(sheet, "a title").savefig(tmp_path / "plain.png", format="png")
    picture = figures.save(figures.sample_grid(sheet, "a title"), tmp_path / "few.png")
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "few.png") as few:
        difference = np.abs(np.asarray(plain.convert("RGB")).astype(int) - np.asarray(few.convert("RGB")))
        assert few.mode == "P"
        assert np.array_equal(np.asarray(few.convert("RGB")), picture)
    assert difference.max() <= 255 / 31 / 2 + 1
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert (tmp_path / "few.png").stat().st_size < (tmp_path / "plain.png").stat().st_size / 1.5


@pytest.mark.slow
def test_a_rare_colour_among_many_is_kept(tmp_path: Path) -> None:
    """A palette of 256 gave 0 and 9 one colour in the legend of the latent space."""
    source = np.random.default_rng(0)
    means, labels = source.normal(size=(3000, 4)), source.integers(0, 10, 3000)
    picture = figures.save(figures.latent_space(means, labels), tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as saved:
        assert np.array_equal(np.asarray(saved.convert("RGB")), picture)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 256


def test_completions_stand_between_what_is_seen_and_the_truth() -> None:
    sheets = {f"{number} quadrants": sheet(columns=8) for number in (1, 2, 3)}
    figure = figures.completions(sheets, shown=5)
    assert [axes.get_title() for axes in figure.axes] == list(sheets)
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["seen", "network", "completions", "truth"]
        places = axes.get_xticks()
        assert list(places) == sorted(places)
        assert 0 < places[0] < 30 < places[1] < 60
        assert places[-1] > 8 * 30 - 30
    saved(figure)


# The study's


def trials(states: list[str]) -> pd.DataFrame:
    """A study's table: a trial for each state, of which failed ones know nothing."""
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
@pytest.mark.slow
def test_a_study_is_drawn_whatever_became_of_its_trials(states: list[str]) -> None:
    table = trials(states)
    for figure in (
        figures.study_weights(table, ["frechet", "kl"], {"frechet": 0.4}, 1.0),
        figures.rate_distortion(table),
        figures.study_history(table, "validation/fitted/frechet", lower_is_better=True),
        figures.pareto(table, ["validation/reconstruction", "validation/fitted/frechet"], [0]),
    ):
        saved(figure)


def test_both_samplers_and_the_ceiling_stand_in_one_panel() -> None:
    figure = figures.study_weights(trials(["COMPLETE"] * 3), ["frechet", "diversity"], {"frechet": 0.4}, 1.0)
    frechet, diversity = figure.axes
    assert {line.get_label() for line in frechet.lines} >= {"prior", "fitted", "real images"}
    assert "real images" not in {line.get_label() for line in diversity.lines}
    assert (frechet.get_xscale(), frechet.get_yscale(), diversity.get_yscale()) == ("log", "log", "linear")


def test_pruned_trials_are_hollow() -> None:
    figure = figures.study_weights(trials(["COMPLETE", "PRUNED", "PRUNED"]), ["frechet"], {}, None)
    hollow = [points for points in figure.axes[0].collections if "pruned" in str(points.get_label())]
    assert [len(np.asarray(points.get_offsets())) for points in hollow] == [2, 2]
    assert all(len(points.get_facecolor()) == 0 for points in hollow)


def test_rate_and_distortion_are_named_by_their_weights() -> None:
    text = words(figures.rate_distortion(trials(["COMPLETE", "COMPLETE", "PRUNED"])))
    assert "0.01" in text
    assert "elbo −" in text


def test_names_that_would_lie_on_one_another_are_one() -> None:
    table = trials(["COMPLETE", "COMPLETE", "COMPLETE"]).assign(kl_weight=[0.0120, 0.0121, 3.0])
    table["validation/kl"], table["validation/reconstruction"] = [80.0, 79.9, 10.0], [70.0, 70.1, 90.0]
    assert [name for name in words(figures.rate_distortion(table)).split("\n") if name in ("0.012", "3")] == [
        "0.012",
        "3",
    ]


def test_the_best_so_far_never_gets_worse() -> None:
    table = trials(["COMPLETE"] * 4).assign(**{"validation/fitted/frechet": [3.0, 5.0, 1.0, 2.0]})
    (line,) = figures.study_history(table, "validation/fitted/frechet", lower_is_better=True).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [3.0, 3.0, 1.0, 1.0]
    (line,) = figures.study_history(table, "validation/fitted/frechet", lower_is_better=False).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [3.0, 5.0, 5.0, 5.0]


def test_what_misses_the_constraint_is_no_best_so_far() -> None:
    table = trials(["COMPLETE"] * 3).assign(
        **{"validation/fitted/frechet": [1.0, 5.0, 4.0]}, feasible=[False, True, True]
    )
    (line,) = figures.study_history(table, "validation/fitted/frechet", lower_is_better=True).axes[0].lines
    assert list(np.asarray(line.get_ydata())) == [5.0, 4.0]


def test_a_trial_far_out_neither_hides_the_others_nor_takes_forever() -> None:
    table = trials(["COMPLETE", "COMPLETE", "PRUNED"])
    table.loc[2, ["validation/kl", "validation/reconstruction"]] = 1e9
    axes = saved_axes(figures.rate_distortion(table))
    assert axes.get_xlim()[1] < 100
    assert len(axes.lines) < 40


def saved_axes(figure: Figure) -> Axes:
    saved(figure)
    return figure.axes[0]


def test_importances_are_sorted() -> None:
    figure = figures.importances({"a": 0.2, "b": 0.7, "c": 0.1})
    saved(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["c", "a", "b"]


@pytest.mark.parametrize("rows", [1, 5])
def test_strips_stand_below_one_another_with_their_weights(rows: int) -> None:
    strips = [(f"β = {row}", sheet(1, 10), sheet(1, 10)) for row in range(rows)]
    figure = figures.weight_strips(strips, ("left", "right"))
    saved(figure)
    assert [len(axes.get_yticks()) for axes in figure.axes] == [rows, rows]
    assert "β = 0" in words(figure)
    assert "left" in words(figure)

"""Figures are drawn without a display whatever the model or the study, and show the numbers they are given."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from imports import ROOT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from pipeline.show import model, study, style
from pipeline.show.curve import curve_figure
from pipeline.show.style import SAMPLER_COLOURS, save, save_all

FRECHET = "validation/fitted/frechet"


def source() -> np.random.Generator:
    return np.random.default_rng(0)


def sheet(rows: int = 10, columns: int = 4) -> np.ndarray:
    return source().integers(0, 256, (30 * rows - 2, 30 * columns - 2), dtype=np.uint8)


def drawn(figure: Figure, folder: Path) -> Figure:
    """The same figure, which has been drawn and is not one blank colour."""
    picture = save(figure, folder / "figure.png")
    assert picture.min() < picture.max()
    return figure


def names_of_rows(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def trials(*states: str) -> pd.DataFrame:
    """A study's table with a trial for each state; failed and running trials have no figures."""
    weight = np.geomspace(0.01, 100, len(states))
    table = pd.DataFrame({"trial": range(len(states)), "state": states, "kl_weight": weight})
    table["validation/kl"], table["validation/reconstruction"] = 30 / (1 + weight), 70 + 10 * weight**0.5
    for sampler, name in itertools.product(("prior", "fitted"), ("frechet", "class_accuracy", "diversity")):
        table[f"validation/{sampler}/{name}"] = 0.3 + weight / 200
    unknown = ~table["state"].isin(["COMPLETE"])
    table.loc[unknown, [name for name in table.columns if "/" in name]] = np.nan
    return table.assign(feasible=table["state"] == "COMPLETE")


def test_a_sheet_keeps_its_greys_and_has_a_row_per_digit() -> None:
    figure = model.digits(sheet(), "Samples at β = 1")
    assert names_of_rows(figure) == list("0123456789")
    colours = figure.axes[0].images[0].to_rgba(np.array([[0, 200, 255]], np.uint8))[0, :, 0]
    assert colours == pytest.approx([0, 200 / 255, 1], abs=0.01)


def test_a_traversal_has_a_row_for_each_dimension_or_says_that_there_is_none() -> None:
    assert names_of_rows(model.traversal(sheet(3, 11), [0, 4, 5])) == ["z0", "z4", "z5"]
    assert "collapsed" in model.traversal(None, []).axes[0].get_title()


@pytest.mark.parametrize("mu", [source().normal(size=(40, 1)), np.zeros((40, 8))])
def test_each_digit_has_its_latents_of_any_size_in_its_own_panel(tmp_path: Path, mu: np.ndarray) -> None:
    labels = np.arange(40) % 9  # one class is missing
    figure = drawn(model.latent_space(mu, labels), tmp_path)
    shown = [len(np.asarray(axes.collections[-1].get_offsets())) for axes in figure.axes]
    assert [axes.get_title() for axes in figure.axes] == list("0123456789")
    assert shown == np.bincount(labels, minlength=10).tolist()


def test_bars_are_as_high_as_the_figures_of_each_class_and_sampler() -> None:
    rows = pd.DataFrame(itertools.product(("prior", "fitted", "real"), range(10)), columns=["sampler", "digit"])
    rows = rows.assign(class_accuracy=0.9, diversity=1, coverage=0.5, frechet=10 + rows["digit"])
    (axes,) = (axes for axes in model.per_class(rows).axes if axes.get_title().startswith("frechet"))
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx(rows["frechet"].tolist())


@pytest.mark.slow
def test_a_study_is_drawn_whatever_the_states_of_its_trials(tmp_path: Path) -> None:
    objectives, shares = {FRECHET: True, "validation/kl": True}, {"a": 0.2, "b": 0.7}
    for states in (["COMPLETE", "RUNNING", "COMPLETE", "FAILED"], ["DIVERGED"]):
        table, uses = trials(*states).fillna(0.5), {"explain": (0.1, 0.2, 0.3)}
        figures = study.study_figures(table, objectives, {"frechet": 0.4}, uses, [0], shares, lambda _: sheet(2, 10))
        # The first case is drawn wherever a study ends.
        found = {name: figure if "COMPLETE" in states else drawn(figure, tmp_path) for name, figure in figures}
        assert [*found][:6] == ["uses", "weights", "rate_distortion", "history", "pareto", "importances"]
        points = np.asarray(found["history"].axes[0].lines[0].get_xdata())
        assert len(points) == states.count("COMPLETE")


def test_a_curve_has_dedicated_trainings_as_means_over_seeds_with_their_errors() -> None:
    table = trials("COMPLETE", "COMPLETE").assign(**{"validation/active_units": 3.0})
    seeds = pd.DataFrame({"kl_weight": [0.5, 0.5, 2.0], "validation/kl": [7.0, 9.0, 4.0]})
    axes = curve_figure(table, dedicated=seeds).axes[1]
    assert np.asarray(axes.lines[1].get_xydata()).tolist() == [[0.5, 8], [2, 4]]
    (bars,) = axes.collections
    lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]  # type: ignore[attr-defined]
    assert lengths == pytest.approx([2, 0])  # ± one standard error, which is 1


def test_samplers_and_real_images_are_in_one_panel_with_their_errors_and_best_weights() -> None:
    table = trials("COMPLETE", "COMPLETE").assign(**{f"{FRECHET}_error": [0.1, np.nan]})
    figure = study.weights(table, ["frechet", "diversity"], {"frechet": 0.4}, {"fitted": (0.02, 0.05, 0.5)})
    frechet, diversity = figure.axes
    points = {str(line.get_label()): line for line in frechet.lines}
    assert {"prior", "fitted", "real images"} <= points.keys()
    assert len(points["fitted"].get_xydata()) == 2  # type: ignore[arg-type]
    (bars,) = frechet.collections
    lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]  # type: ignore[attr-defined]
    assert lengths == pytest.approx([0.2, 0])
    (span,) = frechet.patches
    assert span.get_extents().width > 0
    assert "real images" not in {line.get_label() for line in diversity.lines}


def test_the_best_so_far_never_gets_worse_and_is_feasible() -> None:
    table = trials(*["COMPLETE"] * 4).assign(**{FRECHET: [0.0, 5.0, 1.0, 2.0]}, feasible=[False, True, True, True])
    for lower, expected in ((True, [5, 1, 1]), (False, [5, 5, 5])):
        lines = {line.get_label(): line for line in study.history(table, FRECHET, lower).axes[0].lines}
        assert np.asarray(lines["best so far"].get_ydata()).tolist() == expected


def test_every_trial_is_within_the_axes_of_rate_and_distortion() -> None:
    table = trials("COMPLETE", "COMPLETE", "COMPLETE")
    table.loc[2, ["validation/kl", "validation/reconstruction"]] = 500.0
    (axes,) = study.rate_distortion(table).axes
    assert min(axes.get_xlim()[1], axes.get_ylim()[1]) > 500


def test_a_saved_figure_looks_like_the_drawn_one_in_few_colours_and_without_empty_bands(tmp_path: Path) -> None:
    picture = sheet(10, 8)
    model.digits(picture, "a title").savefig(tmp_path / "plain.png", format="png")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/old.png").touch()  # of an earlier run
    save_all([("few", model.digits(picture, "a title"))], tmp_path / "figures")
    (path,) = (tmp_path / "figures").iterdir()
    with Image.open(tmp_path / "plain.png") as plain, Image.open(path) as few:
        assert few.mode == "P"
        shown = np.asarray(few.convert("RGB")).astype(int)
        whole = style.trimmed(np.asarray(plain.convert("RGB")))
    assert np.abs(whole - shown).max() <= 255 / 31 / 2 + 1
    assert path.stat().st_size < (tmp_path / "plain.png").stat().st_size / 1.5
    for axes in ((1, 2), (0, 2)):
        inked = np.asarray((shown < 255).any(axes))
        first, *_, last = np.flatnonzero(inked)
        assert max(first, len(inked) - 1 - last) <= style.MARGIN


def test_a_figure_with_many_colours_keeps_them_all(tmp_path: Path) -> None:
    """A palette of 256 gave two digits one colour in a legend."""
    figure, (axes,) = style.panels(4, 3, "many")
    x, y, colours = source().random((3, 3000))
    axes.scatter(x, y, c=colours, cmap="hsv")
    shown = save(figure, tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as saved:
        assert np.array_equal(np.asarray(saved.convert("RGB")), shown)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 256


def test_text_and_lines_can_be_read_on_white() -> None:
    least = dict.fromkeys(SAMPLER_COLOURS.values(), 3) | dict.fromkeys((style.INK, style.FAINT, style.ACCENT), 4.5)
    for colour, contrast in least.items():
        values = np.array(to_rgb(colour))
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)  # as WCAG 2 computes it
        assert 1.05 / (light @ [0.2126, 0.7152, 0.0722] + 0.05) >= contrast, colour


PLAIN = """
from pathlib import Path
from pipeline.show import style
figure, (axes,) = style.panels(4, 3, "β = 1")
axes.plot([1, 2], label="$x$")
style.save(figure, Path("figure.png"))
"""


@pytest.mark.slow
def test_settings_of_notebooks_and_of_latex_change_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 30\nfont.size: 40\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "nonsense"}
    subprocess.run([sys.executable, "-c", PLAIN], cwd=tmp_path, env=environment, check=True)
    elsewhere = (tmp_path / "figure.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # of this program, which a user's matplotlibrc may have set
        exec(PLAIN)
    assert (tmp_path / "figure.png").read_bytes() == elsewhere

"""The figure of the spectrum: what each KL weight can give, and what trainings gave."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.show.style import ACCENT, INK, by_weight, legend, panels, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"kl": "kl, nats per image", "active_units": "active latents"}


def spectrum_figure(expected: pd.DataFrame, collapse: float, trials: pd.DataFrame | None = None) -> "Figure":
    """Expected kl and active latents against the KL weight, and those measured.

    expected: columns kl_weight, kl, active_units. collapse: the weight above which every class has collapsed. trials:
    kl_weight, validation/kl and validation/active_units of trained models, as in a study's or the curve's table, with
    standard errors (`…_error`) if there are; a column that is missing is not drawn.
    """
    figure, grids = panels(9.0, 3.6, *TITLES.values())
    for axes, name in zip(grids, TITLES, strict=True):
        axes.plot(expected["kl_weight"], expected[name], color=INK, linewidth=1.4, label="expected from the spectrum")
        if trials is not None and (column := f"validation/{name}") in trials:
            points(axes, trials, "kl_weight", column, ACCENT, "measured")
        axes.axvline(collapse, color=INK, linewidth=0.9, linestyle=":", label=f"collapse, β = {collapse:.3g}")
        by_weight(axes)
    legend(figure)
    return figure


def spectrum_of_trials(found: Mapping[str, Any], table: pd.DataFrame) -> "Iterator[tuple[str, Figure]]":
    """The figure and its name, with a study's complete trials over what is expected.

    found: reports/weight/spectrum.json. Nothing where the spectrum is not known.
    """
    if "expected" in found:
        complete = table[table["state"] == "COMPLETE"]
        yield "spectrum", spectrum_figure(pd.DataFrame(found["expected"]), found["collapse"], complete)


def unknown(reason: str) -> "Figure":
    """A figure that says why there is none."""
    figure, _ = panels(9.0, 1.0)
    figure.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, fontsize=9, color=INK)
    return figure

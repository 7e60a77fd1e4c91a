"""The curve: every figure of one multi-rate CVAE against the KL weight."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.show.style import BETTER, INK, SAMPLER_COLOURS, legend, logarithmic, panels, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_FIT = {
    "reconstruction": "reconstruction, nats per image",
    "kl": "kl (rate), nats per image",
    "active_units": "active latents",
}
OF_SAMPLES = ("frechet", "class_accuracy", "diversity")
SAMPLERS = ("fitted", "prior")
PREDICTED = "#0f766e"


def curve_figure(
    table: pd.DataFrame,
    real: Mapping[str, float] | None = None,
    predicted: pd.DataFrame | None = None,
    dedicated: pd.DataFrame | None = None,
) -> "Figure":
    """Six panels against the KL weight β: reconstruction, kl, active latents; frechet, accuracy, diversity by sampler.

    table: reports/weight/curve.csv. real: the sample metrics of real images. predicted: `kl_weight`, `kl` and
    `active_units` as the spectrum expects them, or empty. dedicated: trainings of one weight each, a row per
    weight and seed, with the columns of `table`; drawn as means with standard errors over seeds.
    """
    titles = [*OF_FIT.values(), *(f"{name}: {BETTER[name]}" for name in OF_SAMPLES)]
    figure, grids = panels(11.4, 6.4, *titles, rows=2)
    for axes, name in zip(grids, OF_FIT, strict=False):
        axes.plot(table["kl_weight"], table[f"validation/{name}"], color=INK, linewidth=1.6, label="one training")
        if predicted is not None and name in predicted:
            near = predicted[predicted["kl_weight"].between(table["kl_weight"].min(), table["kl_weight"].max())]
            axes.plot(near["kl_weight"], near[name], "--", color=PREDICTED, label="spectrum's prediction")
        _points(axes, dedicated, f"validation/{name}", INK, "dedicated trainings")
    for axes, name in zip(grids[len(OF_FIT) :], OF_SAMPLES, strict=True):
        for sampler in SAMPLERS:
            column, colour = f"validation/{sampler}/{name}", SAMPLER_COLOURS[sampler]
            axes.plot(table["kl_weight"], table[column], color=colour, linewidth=1.6, label=sampler)
            _points(axes, dedicated, column, colour, f"{sampler}, dedicated trainings")
        if real and name in real:
            axes.axhline(real[name], color=INK, linewidth=0.9, linestyle=":", label="real images")
        if name == "frechet":
            logarithmic(axes.yaxis)
    for axes in grids:
        logarithmic(axes.xaxis)
        plain_axes(axes, "KL weight β", "")
    legend(figure, columns=4)
    return figure


def _points(axes: "Axes", dedicated: pd.DataFrame | None, column: str, colour: str, label: str) -> None:
    """Means over seeds; bars of one standard error, where a weight has several seeds."""
    if dedicated is None or column not in dedicated:
        return
    known = dedicated.dropna(subset=[column]).groupby("kl_weight")[column].agg(["mean", "std", "count"])
    error = (known["std"] / np.sqrt(known["count"])).fillna(0.0)
    axes.errorbar(known.index, known["mean"], error, fmt="o", color=colour, markersize=4, capsize=2, label=label)

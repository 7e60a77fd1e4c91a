"""The curve: every figure of one multi-rate CVAE against the KL weight."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.show.style import INK, SAMPLER_COLOURS, by_weight, legend, logarithmic, panels, points, titled

if TYPE_CHECKING:
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
    seeds = pd.DataFrame() if dedicated is None else _over_seeds(dedicated)
    titles = [*OF_FIT.values(), *map(titled, OF_SAMPLES)]
    figure, grids = panels(11.4, 6.4, *titles, rows=2)
    for axes, name in zip(grids, OF_FIT, strict=False):
        axes.plot(table["kl_weight"], table[f"validation/{name}"], color=INK, linewidth=1.6, label="one training")
        if predicted is not None and name in predicted:
            near = predicted[predicted["kl_weight"].between(table["kl_weight"].min(), table["kl_weight"].max())]
            axes.plot(near["kl_weight"], near[name], "--", color=PREDICTED, label="spectrum's prediction")
        if f"validation/{name}" in seeds:
            points(axes, seeds, "kl_weight", f"validation/{name}", INK, "dedicated trainings")
    for axes, name in zip(grids[len(OF_FIT) :], OF_SAMPLES, strict=True):
        for sampler in SAMPLERS:
            column, colour = f"validation/{sampler}/{name}", SAMPLER_COLOURS[sampler]
            axes.plot(table["kl_weight"], table[column], color=colour, linewidth=1.6, label=sampler)
            if column in seeds:
                points(axes, seeds, "kl_weight", column, colour, f"{sampler}, dedicated trainings")
        if real and name in real:
            axes.axhline(real[name], color=INK, linewidth=0.9, linestyle=":", label="real images")
        if name == "frechet":
            logarithmic(axes.yaxis)
    for axes in grids:
        by_weight(axes)
    legend(figure, columns=4)
    return figure


def _over_seeds(trainings: pd.DataFrame) -> pd.DataFrame:
    """Means of figures over seeds with their standard errors (`…_error`), a row for each weight."""
    by_weight = trainings.groupby("kl_weight")[[name for name in trainings if str(name).startswith("validation/")]]
    return by_weight.mean().join(by_weight.sem().add_suffix("_error")).reset_index()

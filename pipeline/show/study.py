"""All figures of a study, by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.show import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 28
STRIPS = 16  # rows of the figure from collapse to chaos
EXPLAINING = ("frechet", "class_accuracy", "diversity")


def study_figures(
    table: pd.DataFrame,
    objectives: Mapping[str, bool],
    real: Mapping[str, float],
    best: float,
    front: Sequence[int],
    importances: Mapping[str, float],
    strip: Callable[[int], np.ndarray | None],
) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a study with its name.

    table: a row for each trial. objectives: their columns in the table, and whether lower is better. real: the metrics
    of real images. best: the best KL weight. front: the trials that no other beats. importances: the share of each
    parameter. strip: two rows of digits of a trial, (H, W) uint8, from the prior and from the fitted density.
    """
    names = list(objectives)
    metrics = list(dict.fromkeys([*(name.rpartition("/")[2] for name in names), *EXPLAINING]))
    yield "weights", plots.study_weights(table, metrics, real, best)
    yield "rate_distortion", plots.rate_distortion(table)
    yield "history", plots.study_history(table, names[0], objectives[names[0]])
    if len(names) > 1:
        yield "pareto", plots.pareto(table, names, front)
    if importances:
        yield "importances", plots.importances(importances)
    rows = []
    for trial in spread(table, STRIPS).to_dict("records"):
        digits = strip(trial["trial"])
        if digits is not None:
            mark = "" if trial["state"] == "COMPLETE" else " ○"
            rows.append((f"β = {trial['kl_weight']:.2g}{mark}", digits[:SIDE], digits[-SIDE:]))
    if rows:
        yield "collapse_to_chaos", plots.weight_strips(rows, ("z from the prior", "z from the fitted density"))


def spread(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` finished trials, spread evenly over their KL weights, from the highest to the lowest."""
    shown = table[table["state"].isin(["COMPLETE", "PRUNED"])].sort_values("kl_weight", ascending=False)
    if len(shown) <= most:
        return shown
    return shown.iloc[[round(place * (len(shown) - 1) / (most - 1)) for place in range(most)]]

"""Figures of a study: what each KL weight gives, and how the search went."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.show.style import (
    ACCENT,
    BETTER,
    FAINT,
    INK,
    SAMPLER_COLOURS,
    blank,
    legend,
    logarithmic,
    plain_axes,
    show_sheet,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    yield "weights", weights(table, metrics, real, best)
    yield "rate_distortion", rate_distortion(table)
    yield "history", history(table, names[0], objectives[names[0]])
    if len(names) > 1:
        yield "pareto", pareto(table, names, front)
    if importances:
        yield "importances", importances_of(importances)
    rows = []
    for trial in spread(table, STRIPS).to_dict("records"):
        digits = strip(trial["trial"])
        if digits is not None:
            mark = "" if trial["state"] == "COMPLETE" else " ○"
            rows.append((f"β = {trial['kl_weight']:.2g}{mark}", digits[:SIDE], digits[-SIDE:]))
    if rows:
        yield "collapse_to_chaos", weight_strips(rows, ("z from the prior", "z from the fitted density"))


def spread(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` finished trials, spread evenly over their KL weights, from the highest to the lowest."""
    shown = table[table["state"].isin(["COMPLETE", "PRUNED"])].sort_values("kl_weight", ascending=False)
    if len(shown) <= most:
        return shown
    return shown.iloc[[round(place * (len(shown) - 1) / (most - 1)) for place in range(most)]]


def weights(table: pd.DataFrame, metrics: Sequence[str], real: Mapping[str, float], best: float | None) -> "Figure":
    """Figures against the KL weight, a panel per metric: both samplers, complete and pruned trials.

    table: as study.trials.Trials.table gives it.
    """
    across = min(len(metrics), 3)
    down = -(-len(metrics) // across)
    figure = blank(3.9 * across, 3.4 * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels:
        axes.set_visible(False)
    for axes, metric in zip(panels, metrics, strict=False):
        axes.set_visible(True)
        columns = {sampler: f"validation/{sampler}/{metric}" for sampler in ("prior", "fitted")}
        for name, column in (columns | {"validation": f"validation/{metric}"}).items():
            if column in table:
                _by_weight(axes, table.dropna(subset=[column]), column, name)
        if metric in real:
            axes.axhline(real[metric], color=INK, linewidth=0.9, linestyle=":", label="real images")
        if best is not None:
            axes.axvline(best, color=ACCENT, linewidth=0.9, alpha=0.5, label="best")
        if metric == "frechet":
            logarithmic(axes.yaxis)
        logarithmic(axes.xaxis)
        plain_axes(axes, "KL weight β", "")
        axes.set_title(_titled(metric), fontsize=10, color=INK, loc="left")
    handles, labels = legend(figure)
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center", fontsize=9)
    return figure


def _by_weight(axes: "Axes", known: pd.DataFrame, column: str, name: str) -> None:
    """Complete trials are joined by a line; pruned ones, which trained for fewer epochs, are hollow."""
    colour = SAMPLER_COLOURS.get(name, INK)
    complete = known[known["state"] == "COMPLETE"].sort_values("kl_weight")
    axes.plot(complete["kl_weight"], complete[column], "o-", color=colour, markersize=5, linewidth=1.2, label=name)
    pruned = known[known["state"] == "PRUNED"]
    if len(pruned):
        axes.scatter(
            pruned["kl_weight"], pruned[column], s=24, facecolors="none", edgecolors=colour, label=f"{name}, pruned"
        )


def rate_distortion(table: pd.DataFrame) -> "Figure":
    """Reconstruction against kl, a point per trial, with lines of equal elbo (Alemi 2018)."""
    known = table.dropna(subset=["validation/kl", "validation/reconstruction"])
    figure, axes = titled(6.6, 5.4, "Rate and distortion by KL weight (hollow: trials that did not finish)")
    kl, reconstruction = known["validation/kl"].to_numpy(), known["validation/reconstruction"].to_numpy()
    weight = np.log10(known["kl_weight"].to_numpy(dtype=float))
    complete = (known["state"] == "COMPLETE").to_numpy()
    if len(known):
        # The axes fit the complete trials, because the others can be far out.
        shown = complete if complete.any() else np.ones(len(known), bool)
        right, top = kl[shown].max() * 1.08 + 1, reconstruction[shown].max() + 12
        bottom = reconstruction[shown].min() - 12
        _equal_sums(axes, right, bottom, top)
        axes.set_xlim(0, right)
        axes.set_ylim(bottom, top)
    span = {"vmin": weight.min(initial=0.0), "vmax": weight.max(initial=0.0), "cmap": "viridis"}
    points = axes.scatter(kl[complete], reconstruction[complete], c=weight[complete], s=46, zorder=3, **span)
    rings = [tuple(colour) for colour in points.to_rgba(weight[~complete]).tolist()]
    axes.scatter(kl[~complete], reconstruction[~complete], s=40, facecolors="none", edgecolors=rings, zorder=2)
    named: list[np.ndarray] = []
    sides = np.array([np.ptp(axes.get_xlim()) / 12, np.ptp(axes.get_ylim()) / 40])  # approximate size of a label
    for x, y, beta in zip(kl[complete], reconstruction[complete], 10 ** weight[complete], strict=True):
        if all((np.abs(np.array([x, y]) - other) > sides).any() for other in named):
            axes.annotate(f"{beta:.2g}", (x, y), xytext=(7, 4), textcoords="offset points", fontsize=8, color=INK)
            named.append(np.array([x, y]))
    bar = figure.colorbar(points, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("log₁₀ of the KL weight β", color=FAINT, fontsize=9)
    bar.ax.tick_params(colors=FAINT, labelsize=8)
    bar.outline.set_visible(False)
    plain_axes(axes, "rate: kl, nats per image", "distortion: reconstruction, nats per image")
    axes.grid(visible=False)
    return figure


def _equal_sums(axes: "Axes", right: float, bottom: float, top: float) -> None:
    """Lines of equal kl + reconstruction, which is −elbo."""
    from matplotlib.ticker import MaxNLocator

    for total in MaxNLocator(10).tick_values(bottom, top + right):
        axes.plot([0, right], [total, total - right], color="#dfe4ea", linewidth=0.8, zorder=0)
        if bottom + 3 < total < top - 3:
            axes.text(right / 80, total, f"elbo −{total:.0f}", fontsize=7, color=FAINT, va="center")


def pareto(table: pd.DataFrame, objectives: Sequence[str], front: Sequence[int]) -> "Figure":
    """The first two objectives, such as `validation/kl`, of all trials; those of the front carry their KL weight."""
    x, y = objectives[:2]
    known = table[table["state"] == "COMPLETE"]
    best = known[known["trial"].isin(front)].sort_values(x)
    figure, axes = titled(6.2, 4.8, "Trials that no other trial beats in all objectives, by KL weight")
    axes.scatter(known[x], known[y], s=30, color=FAINT, label="complete")
    # With more than two objectives, the front is no line in this plane.
    axes.plot(best[x], best[y], "o-" if len(objectives) == 2 else "o", color=ACCENT, linewidth=1, label="front")
    for at, to, beta in zip(best[x], best[y], best["kl_weight"], strict=True):
        axes.annotate(f"{beta:.2g}", (at, to), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    for name, axis in zip((x, y), (axes.xaxis, axes.yaxis), strict=True):
        if name.endswith("/frechet"):
            logarithmic(axis)
    axes.legend(frameon=False, fontsize=9)
    plain_axes(axes, _titled(x), _titled(y))
    return figure


def history(table: pd.DataFrame, objective: str, lower_is_better: bool) -> "Figure":
    """An objective, such as `validation/kl`, in the order of the trials, and the best of the complete ones so far."""
    known = table.dropna(subset=[objective])
    complete, pruned = known[known["state"] == "COMPLETE"], known[known["state"] == "PRUNED"]
    meets = complete["feasible"].astype(bool)
    eligible = complete[meets] if meets.any() else complete
    figure, axes = titled(6.4, 3.4, "All trials in order")
    axes.scatter(pruned["trial"], pruned[objective], s=30, facecolors="none", edgecolors=FAINT, label="pruned")
    axes.scatter(complete["trial"], complete[objective], s=34, color=INK, label="complete")
    poor = complete[~meets]
    if len(poor):
        axes.scatter(
            poor["trial"], poor[objective], s=60, marker="x", color=ACCENT, label="below the least class_accuracy"
        )
    best = eligible[objective].cummin() if lower_is_better else eligible[objective].cummax()
    axes.step(eligible["trial"], best, where="post", color=ACCENT, linewidth=1.4, label="best so far")
    if objective.endswith("/frechet"):
        logarithmic(axes.yaxis)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=9)
    plain_axes(axes, "trial", _titled(objective))
    return figure


def importances_of(shares: Mapping[str, float]) -> "Figure":
    """The share of the objective's variation that each parameter explains."""
    names = sorted(shares, key=lambda name: shares[name])
    figure, axes = titled(5.6, 0.9 + 0.42 * len(names), "Importance of each parameter")
    axes.barh(names, [shares[name] for name in names], 0.6, color=ACCENT)
    plain_axes(axes, "share of the objective's variation among good trials (PED-ANOVA)", "")
    return figure


def weight_strips(strips: Sequence[tuple[str, np.ndarray, np.ndarray]], notes: tuple[str, str]) -> "Figure":
    """From collapse to chaos: a row per KL weight, with its label and two strips (28, W) from the same noise."""
    names = [label for label, _, _ in strips]
    figure = blank(9.2, 0.5 + 0.42 * len(strips))
    for index, (axes, note) in enumerate(zip(figure.subplots(1, 2), notes, strict=True)):
        rows = [np.pad(pictures[index], ((1, 1), (0, 0)), constant_values=255) for _, *pictures in strips]
        show_sheet(axes, np.concatenate(rows), names if index == 0 else [""] * len(names))
        axes.set_title(note, fontsize=10, color=INK)
    return figure


def _titled(metric: str) -> str:
    name = metric.rpartition("/")[2]
    return f"{name}: {BETTER[name]}" if name in BETTER else name

"""Figures of a study: what each KL weight gives, and how the search went."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.show import style
from pipeline.show.pictures import SIDE
from pipeline.show.style import ACCENT, INK, SAMPLER_COLOURS, panels, plain_axes, points, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[float, float, float]  # the lowest, the best and the highest weight of those not told apart
STRIPS = 16  # rows of the figure from collapse to chaos
NAMED = 12  # trials beside which the figure of rate and distortion writes the weight
EXPLAINING = ("frechet", "class_accuracy", "diversity")


def study_figures(
    table: pd.DataFrame,
    objectives: Mapping[str, bool],
    real: Mapping[str, float],
    uses: Mapping[str, Span],
    front: Sequence[int],
    importances: Mapping[str, float],
    strip: Callable[[int], np.ndarray | None],
) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a study with its name.

    table: a row for each trial; complete ones are drawn. objectives: their columns in the table, and whether lower is
    better. real: the metrics of real images. uses: the weights that do best for each. front: the trials that no other
    beats. importances: the share of each parameter. strip: two rows of digits of a trial, (H, W) uint8, from the prior
    and from the density.
    """
    table, names = table[table["state"] == "COMPLETE"], list(objectives)
    metrics = list(dict.fromkeys([*(name.rpartition("/")[2] for name in names), *EXPLAINING]))
    if uses:
        yield "uses", uses_of_weights(uses)
    spans = {sampler: uses[f"draw_{sampler}"] for sampler in ("fitted", "prior") if f"draw_{sampler}" in uses}
    yield "weights", weights(table, metrics, real, spans)
    yield "rate_distortion", rate_distortion(table)
    yield "history", history(table, names[0], objectives[names[0]])
    if len(names) > 1:
        yield "pareto", pareto(table, names, front)
    if importances:
        yield "importances", importances_of(importances)
    shown = spread(table, STRIPS)
    names_and_rows = zip(shown["kl_weight"], map(strip, shown["trial"]), strict=True)
    strips = [(f"β = {weight:.3g}", rows) for weight, rows in names_and_rows if rows is not None]
    if strips:
        yield "collapse_to_chaos", weight_strips(strips)


def spread(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` trials, spread evenly over their KL weights, from the highest to the lowest."""
    shown = table.sort_values("kl_weight", ascending=False)
    places = np.linspace(0, len(shown) - 1, min(most, len(shown)))
    return shown.iloc[places.round().astype(int)]


def uses_of_weights(uses: Mapping[str, Span]) -> "Figure":
    """For each use its best weight, and a bar over those that can't be told apart from it."""
    figure, (axes,) = panels(6.6, 0.9 + 0.42 * len(uses), "The best weight for each use, and all that do as well")
    names = list(uses)[::-1]
    for row, name in enumerate(names):
        low, best, high = uses[name]
        axes.plot([low, high], [row, row], "-", color=ACCENT, linewidth=7, alpha=0.35, solid_capstyle="round")
        axes.plot([best], [row], "o", color=ACCENT, markersize=6)
    axes.set(ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(range(len(names)), [name.replace("_", ", ") for name in names])
    style.logarithmic(axes.xaxis)
    plain_axes(axes, "KL weight β: lowest mean, and the weights not told apart from it (95 %)", "")
    return figure


def weights(
    table: pd.DataFrame, metrics: Sequence[str], real: Mapping[str, float], spans: Mapping[str, Span]
) -> "Figure":
    """Figures against the KL weight, a panel per metric: both samplers, means and standard errors of trials.

    spans: by sampler, the weights that are best by frechet.
    """
    rows = -(-len(metrics) // 3)
    figure, grids = panels(3.9 * min(len(metrics), 3), 3.4 * rows, *map(titled, metrics), rows=rows)
    for axes, metric in zip(grids, metrics, strict=True):
        for name in ("prior", "fitted", "validation"):
            column = f"validation/{metric}" if name == "validation" else f"validation/{name}/{metric}"
            if column in table:
                own = table.sort_values("kl_weight")
                points(axes, own, "kl_weight", column, SAMPLER_COLOURS.get(name, INK), name, "o-")
        if metric in real:
            axes.axhline(real[metric], color=INK, linewidth=0.9, linestyle=":", label="real images")
        if metric == "frechet":
            for sampler, (low, _, high) in spans.items():
                axes.axvspan(low * 0.97, high * 1.03, color=SAMPLER_COLOURS[sampler], alpha=0.12, linewidth=0)
        style.by_weight(axes)
    style.legend(figure)
    return figure


def _named(axes: "Axes", table: pd.DataFrame, x: str, y: str) -> None:
    """Writes the KL weight beside each trial, unless another's is in its place."""
    places: list[tuple[float, float]] = []
    wide, high = np.ptp(table[x]) / 12 + 1e-9, np.ptp(table[y]) / 30 + 1e-9
    for trial in table.to_dict("records"):
        at, to = trial[x], trial[y]
        if all(abs(at - other) > wide or abs(to - above) > high for other, above in places):
            text = f"{trial['kl_weight']:.3g}"
            axes.annotate(text, (at, to), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
            places.append((at, to))


def rate_distortion(table: pd.DataFrame) -> "Figure":
    """Reconstruction against kl, a point per trial, with lines of equal elbo (Alemi 2018)."""
    x, y = "validation/kl", "validation/reconstruction"
    figure, (axes,) = panels(6.6, 5.4, "Rate and distortion by KL weight, with lines of equal elbo")
    points(axes, table, x, y, ACCENT, "complete")
    known = table.dropna(subset=[x, y])
    if len(known):
        _named(axes, spread(known, NAMED), x, y)
        right, bottom, top = known[x].max() * 1.08 + 1, known[y].min() - 12, known[y].max() + 12
        kl, reconstruction = np.meshgrid(np.linspace(-right / 50, right), np.linspace(bottom, top))
        lines = axes.contour(
            kl, reconstruction, -(kl + reconstruction), 10, colors="#dfe4ea", linewidths=0.8, linestyles="-", zorder=0
        )
        axes.set(xlim=(-right / 50, right), ylim=(bottom, top))  # room for the collapse, whose kl is 0
        axes.clabel(lines, fmt="elbo %.0f", fontsize=8, colors=style.FAINT)
    plain_axes(axes, "rate: kl, nats per image", "distortion: reconstruction, nats per image")
    axes.grid(visible=False)
    style.legend(figure)
    return figure


def pareto(table: pd.DataFrame, objectives: Sequence[str], front: Sequence[int]) -> "Figure":
    """The first two objectives, such as `validation/kl`, of all trials; those of the front carry their KL weight."""
    x, y = objectives[:2]
    figure, (axes,) = panels(6.2, 5.0, "Trials that no other trial beats in all objectives, by KL weight")
    best = table[table["trial"].isin(front)].sort_values(x)
    points(axes, table, x, y, style.FAINT, "complete")
    points(axes, best, x, y, ACCENT, "front")
    _named(axes, best, x, y)
    plain_axes(axes, titled(x), titled(y))
    style.legend(figure)
    return figure


def history(table: pd.DataFrame, objective: str, lower_is_better: bool) -> "Figure":
    """An objective, such as `validation/kl`, in the order of the trials, and the best of the feasible ones so far."""
    feasible = table[table["feasible"].astype(bool)].dropna(subset=[objective])
    figure, (axes,) = panels(6.4, 3.6, "All trials in order (best: of those with enough class_accuracy)")
    points(axes, table, "trial", objective, INK, "complete")
    best = feasible[objective].cummin() if lower_is_better else feasible[objective].cummax()
    axes.step(feasible["trial"], best, where="post", color=ACCENT, linewidth=1.4, label="best so far")
    axes.locator_params(axis="x", integer=True)
    plain_axes(axes, "trial", titled(objective))
    style.legend(figure)
    return figure


def importances_of(shares: Mapping[str, float]) -> "Figure":
    """The share of the objective's variation that each parameter explains."""
    figure, (axes,) = panels(5.6, 0.9 + 0.42 * len(shares), "Importance of each parameter")
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], 0.6, color=ACCENT)
    plain_axes(axes, "share of the objective's variation among good trials (PED-ANOVA)", "")
    return figure


def weight_strips(strips: Sequence[tuple[str, np.ndarray]]) -> "Figure":
    """From collapse to chaos: beside each name two strips (H, W) from the same noise, the prior's and the fitted's."""
    figure, grids = panels(9.2, 0.6 + 0.35 * len(strips), "z from the prior", "z from the fitted density")
    for axes, rows in zip(grids, (slice(SIDE), slice(-SIDE, None)), strict=True):
        cells = [np.pad(sheet[rows], ((1, 1), (0, 0)), constant_values=255) for _, sheet in strips]
        style.show_sheet(axes, np.concatenate(cells), [name for name, _ in strips])
    return figure

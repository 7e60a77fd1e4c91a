"""Arrays and frames to figures: matplotlib without a display, one look for all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 32  # of each colour in a file
INK, FAINT, ACCENT = "#1b1f24", "#8a929c", "#c2410c"
SAMPLER_COLOURS = {"prior": "#94a3b8", "fitted": "#c2410c", "real": "#334155"}
PRIOR_COLOURS = {"standard": "#334155", "class": "#4e79a7", "mixture": "#c2410c"}
# Tableau 10
DIGIT_COLOURS = (
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#6b6f76",
)  # fmt: skip
BETTER = {
    "class_accuracy": "higher is better",
    "diversity": "1 is as diverse as real images",
    "frechet": "lower is better",
    "coverage": "higher is better",
}


def save(figure: "Figure", path: Path) -> np.ndarray:
    """Writes a PNG of colours in 32 levels, white as it is, and returns the picture (H, W, 3) uint8.

    It looks the same, and sheets of digits, whose colours then fit a palette, take a third of the space.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    step = 255 / (LEVELS - 1)
    picture = ((drawn / step).round() * step).round().astype(np.uint8)
    image = Image.fromarray(picture)
    if image.getcolors(256):  # a palette for more would give rare ones away, such as those of a legend
        image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)
    return picture


def sample_grid(sheet: np.ndarray, title: str) -> "Figure":
    """A sheet of samples (H, W) uint8, a row a digit."""
    figure = _figure(5.6, 6.0)
    axes = figure.subplots()
    _sheet(axes, sheet, "0123456789")
    axes.set_title(title, fontsize=11, color=INK)
    return figure


def sampler_grids(sheets: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> "Figure":
    """Sheets side by side, a row a digit, each under its name and a note."""
    figure = _figure(3.6 * len(sheets), 4.3)
    for axes, (name, sheet) in zip(figure.subplots(1, len(sheets)), sheets.items(), strict=True):
        _sheet(axes, sheet, "0123456789")
        axes.set_title(f"{name}\n", fontsize=12, color=INK, fontweight="bold")
        axes.text(0.5, 1.015, notes[name], transform=axes.transAxes, ha="center", fontsize=9, color=FAINT)
    return figure


def reconstructions(sheet: np.ndarray) -> "Figure":
    """A sheet of images, each with its reconstruction to the right of it, a row a digit."""
    figure = _figure(6.4, 5.6)
    axes = figure.subplots()
    _sheet(axes, sheet, "0123456789")
    axes.set_title("Test images, each with its reconstruction to the right", fontsize=11, color=INK)
    return figure


def completions(sheets: Mapping[str, np.ndarray], shown: int) -> "Figure":
    """Sheets side by side, a row a digit: what is seen, the network's answer, `shown` completions, the truth."""
    figure = _figure(4.6 * len(sheets), 5.6)
    columns = shown + 3
    for axes, (title, sheet) in zip(figure.subplots(1, len(sheets)), sheets.items(), strict=True):
        _sheet(axes, sheet, "0123456789")
        axes.set_title(title, fontsize=11, color=INK)
        places = [(column + 0.5) * sheet.shape[1] / columns for column in (0, 1, 1.5 + shown / 2, columns - 1)]
        axes.set_xticks(places, ("seen", "network", "completions", "truth"))
        axes.tick_params(length=0, labelcolor=FAINT, labelsize=9)
    return figure


def traversal(sheet: np.ndarray | None, names: Sequence[str], title: str) -> "Figure":
    """A sheet with a row for each latent dimension named; without any, a word on that."""
    figure = _figure(6.0, 0.6 + 0.46 * max(len(names), 1))
    axes = figure.subplots()
    if sheet is None:
        axes.axis("off")
        axes.text(0.5, 0.5, "no active dimension: the latent code has collapsed", ha="center", color=ACCENT)
    else:
        _sheet(axes, sheet, names)
    axes.set_title(title, fontsize=11, color=INK)
    return figure


def latent_space(mu: np.ndarray, labels: np.ndarray) -> "Figure":
    """Posterior means (N, latent) on their first two principal axes, coloured by class (N,)."""
    centred = mu - mu.mean(0)
    _, spread, axes_of_spread = np.linalg.svd(centred, full_matrices=False)
    points = np.pad(centred @ axes_of_spread[:2].T, ((0, 0), (0, max(2 - min(mu.shape), 0))))
    shown = (spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12)
    figure = _figure(6.4, 5.6)
    axes = figure.subplots()
    for digit in range(10):
        rows = labels == digit
        x, y = points[rows].T
        axes.scatter(x, y, s=5, alpha=0.5, linewidths=0, color=DIGIT_COLOURS[digit], label=str(digit))
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    _plain(axes, "first principal axis", "second principal axis")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"Latent means of test images ({shown:.0%} of their variance)", fontsize=11, color=INK)
    return figure


def curves(history: pd.DataFrame) -> "Figure":
    """Training and validation terms by epoch, in nats per image."""
    figure = _figure(9.6, 3.2)
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("reconstruction", "kl"), strict=False):
        axes.plot(history["epoch"], history[f"train/{name}"], ".-", color=FAINT, label="training")
        axes.plot(history["epoch"], history[f"validation/{name}"], ".-", color=ACCENT, label="validation")
        _plain(axes, "epoch", "nats per image")
        axes.set_title(name, fontsize=11, color=INK)
    panels[0].legend(frameon=False)
    panels[2].plot(history["epoch"], history["validation/elbo"], ".-", color=ACCENT)
    _plain(panels[2], "epoch", "nats per image")
    panels[2].set_title("validation elbo", fontsize=11, color=INK)
    return figure


def per_class(table: pd.DataFrame) -> "Figure":
    """Bars of each class's figures, a panel a metric, for both samplers and for real images."""
    figure = _figure(9.6, 5.6)
    for axes, (metric, note) in zip(figure.subplots(2, 2).flat, BETTER.items(), strict=True):
        for index, (sampler, colour) in enumerate(SAMPLER_COLOURS.items()):
            rows = table[table["sampler"] == sampler]
            axes.bar(rows["digit"] + (index - 1) * 0.27, rows[metric], 0.25, color=colour, label=sampler)
        axes.set_xticks(range(10))
        _plain(axes, "", "")
        axes.set_title(f"{metric}: {note}", fontsize=10, color=INK, loc="left")
        if metric == "frechet":
            axes.set_yscale("log")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper right")
    figure.suptitle("Samples of each digit", fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def study_weights(
    table: pd.DataFrame, metrics: Sequence[str], real: Mapping[str, float], best: float | None
) -> "Figure":
    """A study's figures against the KL weight, a panel a metric: of both samplers, complete trials and pruned ones.

    table: as study.trials.Trials.table gives it.
    """
    across = min(len(metrics), 3)
    down = -(-len(metrics) // across)
    figure = _figure(3.9 * across, 3.4 * down)
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
            _logarithmic(axes.yaxis)
        _logarithmic(axes.xaxis)
        _plain(axes, "KL weight β", "")
        axes.set_title(_titled(metric), fontsize=10, color=INK, loc="left")
    handles, labels = _legend(figure)
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center", fontsize=9)
    return figure


def rate_distortion(table: pd.DataFrame) -> "Figure":
    """Reconstruction against kl, a point a trial, with lines of equal elbo (Alemi 2018): the bound is their sum."""
    known = table.dropna(subset=["validation/kl", "validation/reconstruction"])
    figure = _figure(6.6, 5.4)
    axes = figure.subplots()
    kl, reconstruction = known["validation/kl"].to_numpy(), known["validation/reconstruction"].to_numpy()
    weight = np.log10(known["kl_weight"].to_numpy(dtype=float))
    complete = (known["state"] == "COMPLETE").to_numpy()
    if len(known):
        # Trials that did not finish may lie anywhere: the others say what is shown.
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
    sides = np.array([np.ptp(axes.get_xlim()) / 12, np.ptp(axes.get_ylim()) / 40])  # of a name, about
    for x, y, beta in zip(kl[complete], reconstruction[complete], 10 ** weight[complete], strict=True):
        if all((np.abs(np.array([x, y]) - other) > sides).any() for other in named):
            axes.annotate(f"{beta:.2g}", (x, y), xytext=(7, 4), textcoords="offset points", fontsize=8, color=INK)
            named.append(np.array([x, y]))
    bar = figure.colorbar(points, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("log₁₀ of the KL weight β", color=FAINT, fontsize=9)
    bar.ax.tick_params(colors=FAINT, labelsize=8)
    bar.outline.set_visible(False)
    _plain(axes, "rate: kl, nats per image", "distortion: reconstruction, nats per image")
    axes.grid(visible=False)
    axes.set_title("What a KL weight buys: hollow points did not finish", fontsize=11, color=INK, loc="left")
    return figure


def _equal_sums(axes: "Axes", right: float, bottom: float, top: float) -> None:
    """Lines on which kl + reconstruction, minus the elbo, is the same."""
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
    figure = _figure(6.2, 4.8)
    axes = figure.subplots()
    axes.scatter(known[x], known[y], s=30, color=FAINT, label="complete")
    # A front of more than two objectives is no line in the plane of two.
    axes.plot(best[x], best[y], "o-" if len(objectives) == 2 else "o", color=ACCENT, linewidth=1, label="front")
    for at, to, beta in zip(best[x], best[y], best["kl_weight"], strict=True):
        axes.annotate(f"{beta:.2g}", (at, to), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    for name, axis in zip((x, y), (axes.xaxis, axes.yaxis), strict=True):
        if name.endswith("/frechet"):
            _logarithmic(axis)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes, _titled(x), _titled(y))
    axes.set_title("Trials that no other beats in everything, by KL weight", fontsize=11, color=INK, loc="left")
    return figure


def study_history(table: pd.DataFrame, objective: str, lower_is_better: bool) -> "Figure":
    """An objective, such as `validation/kl`, in the order of the trials, and the best of the complete ones so far."""
    known = table.dropna(subset=[objective])
    complete, pruned = known[known["state"] == "COMPLETE"], known[known["state"] == "PRUNED"]
    meets = complete["feasible"].astype(bool)
    eligible = complete[meets] if meets.any() else complete
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
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
        _logarithmic(axes.yaxis)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes, "trial", _titled(objective))
    axes.set_title("The study as it went", fontsize=11, color=INK, loc="left")
    return figure


def importances(shares: Mapping[str, float]) -> "Figure":
    """How much of the objective each open parameter explains."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = _figure(5.6, 0.9 + 0.42 * len(names))
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], 0.6, color=ACCENT)
    _plain(axes, "share of the objective's variation among good trials (PED-ANOVA)", "")
    axes.set_title("Which parameter matters", fontsize=11, color=INK, loc="left")
    return figure


def weight_strips(strips: Sequence[tuple[str, np.ndarray, np.ndarray]], notes: tuple[str, str]) -> "Figure":
    """From collapse to chaos: a row a KL weight, its label and two strips (28, W), all from the same noise."""
    names = [label for label, _, _ in strips]
    figure = _figure(9.2, 0.5 + 0.42 * len(strips))
    for index, (axes, note) in enumerate(zip(figure.subplots(1, 2), notes, strict=True)):
        rows = [np.pad(pictures[index], ((1, 1), (0, 0)), constant_values=255) for _, *pictures in strips]
        _sheet(axes, np.concatenate(rows), names if index == 0 else [""] * len(names))
        axes.set_title(note, fontsize=10, color=INK)
    return figure


def treatments(table: pd.DataFrame) -> "Figure":
    """Frechet of each setting, mean and standard deviation over seeds: a panel a sampler, a row a setting.

    table: columns setting, prior, sampler, choice, mean, std. Hollow: the weight was not tuned.
    """
    names = list(dict.fromkeys(table["setting"]))[::-1]
    figure = _figure(9.2, 1.3 + 0.5 * len(names))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, sampler in zip(panels, ("fitted", "prior"), strict=True):
        for index, (prior, colour) in enumerate(PRIOR_COLOURS.items()):
            for choice, filled in (("tuned", True), ("untuned", False)):
                own = (table["sampler"] == sampler) & (table["prior"] == prior) & (table["choice"] == choice)
                rows = table[own].dropna(subset=["mean"])
                if not len(rows):
                    continue
                axes.errorbar(
                    rows["mean"],
                    [names.index(name) + 0.22 * (1 - index) for name in rows["setting"]],
                    xerr=rows["std"].fillna(0),
                    fmt="o",
                    markersize=5,
                    color=colour,
                    markerfacecolor=colour if filled else "white",
                    elinewidth=1.1,
                    label=f"{prior} prior" if filled else f"{prior} prior, untuned",
                )
        _logarithmic(axes.xaxis)
        _plain(axes, "frechet on test (lower is better)", "")
        axes.grid(visible=True, axis="x", color="#eceff2", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.5, len(names) - 0.5)
        axes.set_title(f"{sampler} sampler", fontsize=11, color=INK, loc="left")
    handles, labels = _legend(figure)
    figure.legend(handles, labels, frameon=False, ncols=3, loc="outside lower center", fontsize=9)
    return figure


def _by_weight(axes: "Axes", known: pd.DataFrame, column: str, name: str) -> None:
    """Complete trials joined, pruned ones hollow: a trial of one epoch is no neighbour of a whole one."""
    colour = SAMPLER_COLOURS.get(name, INK)
    complete = known[known["state"] == "COMPLETE"].sort_values("kl_weight")
    axes.plot(complete["kl_weight"], complete[column], "o-", color=colour, markersize=5, linewidth=1.2, label=name)
    pruned = known[known["state"] == "PRUNED"]
    if len(pruned):
        axes.scatter(
            pruned["kl_weight"], pruned[column], s=24, facecolors="none", edgecolors=colour, label=f"{name}, pruned"
        )


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis whose numbers are written out, a few of them: 0.01, 0.1, 1, 30."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    if not 0 < low <= high < np.inf:  # nothing is drawn, or it can't be drawn so
        return
    axis._set_axes_scale("log")
    axis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: "Figure") -> tuple[list[Any], list[str]]:
    """Each label of any panel once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _titled(metric: str) -> str:
    name = metric.rpartition("/")[2]
    return f"{name}: {BETTER[name]}" if name in BETTER else name


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _sheet(axes: "Axes", sheet: np.ndarray, row_names: Sequence[str]) -> None:
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * len(sheet) / len(row_names) for row in range(len(row_names))], row_names)
    axes.tick_params(length=0, labelcolor=FAINT, labelsize=9)
    _no_frame(axes)


def _plain(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x, color=FAINT, fontsize=9)
    axes.set_ylabel(y, color=FAINT, fontsize=9)
    axes.tick_params(colors=FAINT, labelsize=8, length=2)
    axes.grid(visible=True, axis="y", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    _no_frame(axes)


def _no_frame(axes: Any) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)

"""Figures of one model: samples, reconstructions, completions, latents, and its training."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.show import style
from pipeline.show.style import ACCENT, BETTER, PALE, SAMPLER_COLOURS, legend, panels, show_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTED = ("class_accuracy", "diversity", "frechet")
BEHIND = 2000  # latents of all classes that a panel of one class shows behind them


def evaluation_figures(
    sheets: Any, figures: Mapping[str, float], table: pd.DataFrame, history: pd.DataFrame, kl_weight: float
) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of an evaluation with its name.

    sheets: measure.sheets.Sheets. figures: by name, such as `prior/frechet`. table: the figures of each class.
    """
    yield "samples", digits(sheets.samples, f"Samples of each digit, β = {kl_weight:g}, {sheets.words}")
    notes = {
        name: "   ".join(f"{metric} {figures[f'{name}/{metric}']:.3g}" for metric in NOTED) for name in sheets.samplers
    }
    yield "samplers", sampler_grids(sheets.samplers, notes)
    yield "latent_space", latent_space(sheets.mu, sheets.labels)
    yield "reconstructions", digits(sheets.reconstructions, "Images, each with its reconstruction to the right")
    yield "traversal", traversal(sheets.traversal, sheets.dimensions)
    yield "curves", curves(history)
    yield "per_class", per_class(table)


def digits(sheet: np.ndarray, title: str) -> "Figure":
    """A sheet (H, W) uint8 with a row per digit: samples, or images with their reconstructions."""
    figure, (axes,) = panels(5.6 * sheet.shape[1] / sheet.shape[0], 6.0, title)
    show_sheet(axes, sheet)
    return figure


def sampler_grids(sheets: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> "Figure":
    """Sheets side by side, a row per digit, each under its name and a note."""
    figure, grids = panels(3.6 * len(sheets), 4.0, *(f"{name}\n{notes[name]}" for name in sheets))
    for axes, sheet in zip(grids, sheets.values(), strict=True):
        show_sheet(axes, sheet)
        axes.title.set_fontsize(9)
    return figure


def completions(sheets: Mapping[str, np.ndarray], shown: int) -> "Figure":
    """Sheets side by side, a row per digit: the visible part, the network's answer, `shown` completions, the truth."""
    figure, grids = panels(4.6 * len(sheets), 5.6, *sheets)
    for axes, sheet in zip(grids, sheets.values(), strict=True):
        show_sheet(axes, sheet)
        places = [(column + 0.5) * sheet.shape[1] / (shown + 3) for column in (0, 1, 1.5 + shown / 2, shown + 2)]
        axes.set_xticks(places, ("seen", "network", "completions", "truth"))
    return figure


def traversal(sheet: np.ndarray | None, dimensions: list[int]) -> "Figure":
    """A sheet with a row for each active latent dimension; None without any."""
    if sheet is None:
        return panels(6.0, 1.0, "No dimension of z is active: the latents have collapsed")[0]
    figure, (axes,) = panels(6.0, 0.6 + 0.46 * len(dimensions), "A digit along each active dimension of z, −3 to 3")
    show_sheet(axes, sheet, [f"z{dimension}" for dimension in dimensions])
    return figure


def latent_space(mu: np.ndarray, labels: np.ndarray) -> "Figure":
    """Posterior means (N, latent) on their first two principal axes, a panel per class (N,) before all the others."""
    centred = mu - mu.mean(0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    points = np.pad(centred @ directions[:2].T, ((0, 0), (0, max(2 - min(mu.shape), 0))))
    share = (spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12)
    behind = points[:: -(-len(points) // BEHIND)]
    reach = 1.05 * max(float(np.abs(points).max()), 1e-3)
    figure, grids = panels(9.6, 4.4, *map(str, range(10)), rows=2)
    for digit, axes in enumerate(grids):
        axes.scatter(behind[:, 0], behind[:, 1], s=3, linewidths=0, color=PALE, label="all digits")
        own = points[labels == digit]
        axes.scatter(own[:, 0], own[:, 1], s=3, linewidths=0, alpha=0.6, color=ACCENT, label="this digit")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_color(PALE)
    title = f"Latent means of validation images on two principal axes ({share:.0%} of the variance)"
    figure.suptitle(title, fontsize=11)
    legend(figure, markerscale=3)
    return figure


def curves(history: pd.DataFrame) -> "Figure":
    """Training and validation terms by epoch, in nats per image."""
    names = ("reconstruction", "kl", "elbo")
    figure, grids = panels(9.6, 3.4, *names)
    for axes, name in zip(grids, names, strict=True):
        for split, colour in (("train", style.FAINT), ("validation", ACCENT)):
            if f"{split}/{name}" in history:
                axes.plot(history["epoch"], history[f"{split}/{name}"], ".-", color=colour, label=split)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        style.plain_axes(axes, "epoch", "nats per image")
    legend(figure)
    return figure


def per_class(table: pd.DataFrame) -> "Figure":
    """Bars of each class's figures, a panel per metric, for both samplers and for real images."""
    figure, grids = panels(9.6, 5.8, *map(style.titled, BETTER), rows=2)
    for axes, metric in zip(grids, BETTER, strict=True):
        for index, (sampler, colour) in enumerate(SAMPLER_COLOURS.items()):
            rows = table[table["sampler"] == sampler]
            axes.bar(rows["digit"] + (index - 1) * 0.27, rows[metric], 0.25, color=colour, label=sampler)
        axes.set_xticks(range(10))
        style.plain_axes(axes, "", "")
        if metric == "frechet":
            axes.set_yscale("log")
            style.plain_numbers(axes.yaxis)
    legend(figure)
    return figure

"""Figures of one model: samples, reconstructions, completions, latents, and its training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.show.style import ACCENT, BETTER, FAINT, INK, SAMPLER_COLOURS, blank, plain_axes, show_sheet, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tableau 10
DIGIT_COLOURS = (
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#6b6f76",
)  # fmt: skip
DIGITS = "0123456789"


def digits(sheet: np.ndarray, title: str) -> "Figure":
    """A sheet (H, W) uint8 with a row per digit: samples, or images with their reconstructions."""
    figure, axes = titled(5.6 * sheet.shape[1] / sheet.shape[0], 6.0, title)
    show_sheet(axes, sheet, DIGITS)
    return figure


def sampler_grids(sheets: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> "Figure":
    """Sheets side by side, a row per digit, each under its name and a note."""
    figure = blank(3.6 * len(sheets), 4.3)
    for axes, (name, sheet) in zip(figure.subplots(1, len(sheets)), sheets.items(), strict=True):
        show_sheet(axes, sheet, DIGITS)
        axes.set_title(f"{name}\n", fontsize=12, color=INK, fontweight="bold")
        axes.text(0.5, 1.015, notes[name], transform=axes.transAxes, ha="center", fontsize=9, color=FAINT)
    return figure


def completions(sheets: Mapping[str, np.ndarray], shown: int) -> "Figure":
    """Sheets side by side, a row per digit: the visible part, the network's answer, `shown` completions, the truth."""
    figure = blank(4.6 * len(sheets), 5.6)
    for axes, (title, sheet) in zip(figure.subplots(1, len(sheets)), sheets.items(), strict=True):
        show_sheet(axes, sheet, DIGITS)
        axes.set_title(title, fontsize=11, color=INK)
        places = [(column + 0.5) * sheet.shape[1] / (shown + 3) for column in (0, 1, 1.5 + shown / 2, shown + 2)]
        axes.set_xticks(places, ("seen", "network", "completions", "truth"))
        axes.tick_params(length=0, labelcolor=FAINT, labelsize=9)
    return figure


def traversal(sheet: np.ndarray | None, names: Sequence[str], title: str) -> "Figure":
    """A sheet with a row for each active latent dimension; without one, a text that says so."""
    figure, axes = titled(6.0, 0.6 + 0.46 * max(len(names), 1), title)
    if sheet is None:
        axes.axis("off")
        axes.text(0.5, 0.5, "no active dimension: the latents have collapsed", ha="center", color=ACCENT)
    else:
        show_sheet(axes, sheet, names)
    return figure


def latent_space(mu: np.ndarray, labels: np.ndarray) -> "Figure":
    """Posterior means (N, latent) on their first two principal axes, coloured by class (N,)."""
    centred = mu - mu.mean(0)
    _, spread, axes_of_spread = np.linalg.svd(centred, full_matrices=False)
    points = np.pad(centred @ axes_of_spread[:2].T, ((0, 0), (0, max(2 - min(mu.shape), 0))))
    shown = (spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12)
    title = f"Latent means of test images ({shown:.0%} of their variance)"
    figure, axes = titled(6.4, 5.6, title)
    for digit in range(10):
        rows = labels == digit
        x, y = points[rows].T
        axes.scatter(x, y, s=5, alpha=0.5, linewidths=0, color=DIGIT_COLOURS[digit], label=str(digit))
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    plain_axes(axes, "first principal axis", "second principal axis")
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def curves(history: pd.DataFrame) -> "Figure":
    """Training and validation terms by epoch, in nats per image."""
    figure = blank(9.6, 3.2)
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("reconstruction", "kl"), strict=False):
        axes.plot(history["epoch"], history[f"train/{name}"], ".-", color=FAINT, label="training")
        axes.plot(history["epoch"], history[f"validation/{name}"], ".-", color=ACCENT, label="validation")
        plain_axes(axes, "epoch", "nats per image")
        axes.set_title(name, fontsize=11, color=INK)
    panels[0].legend(frameon=False)
    panels[2].plot(history["epoch"], history["validation/elbo"], ".-", color=ACCENT)
    plain_axes(panels[2], "epoch", "nats per image")
    panels[2].set_title("validation elbo", fontsize=11, color=INK)
    return figure


def per_class(table: pd.DataFrame) -> "Figure":
    """Bars of each class's figures, a panel per metric, for both samplers and for real images."""
    figure = blank(9.6, 5.6)
    for axes, (metric, note) in zip(figure.subplots(2, 2).flat, BETTER.items(), strict=True):
        for index, (sampler, colour) in enumerate(SAMPLER_COLOURS.items()):
            rows = table[table["sampler"] == sampler]
            axes.bar(rows["digit"] + (index - 1) * 0.27, rows[metric], 0.25, color=colour, label=sampler)
        axes.set_xticks(range(10))
        plain_axes(axes, "", "")
        axes.set_title(f"{metric}: {note}", fontsize=10, color=INK, loc="left")
        if metric == "frechet":
            axes.set_yscale("log")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper right")
    figure.suptitle("Samples of each digit", fontsize=11, color=INK, x=0.01, ha="left")
    return figure

"""Pictures of the figures, each with its machine, versions and date."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.show.style import ACCENT, FAINT, INK, legend, logarithmic, panels, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "dataloader": "DataLoader loop",
    "dataloader_2_workers": "DataLoader loop, 2 workers",
    "lightning": "Lightning, in memory",
    "pythae": "pythae (no condition)",
}


def race(results: dict[str, Any]) -> "Figure":
    """Images per second of each contender, one panel per preset. Our setting that counts is highlighted."""
    from matplotlib.ticker import MaxNLocator

    presets = results["contenders"]
    figure, grids = panels(9.6, 5.2, *(f"{preset}: images per second in training" for preset in presets))
    for axes, entries in zip(grids, presets.values(), strict=True):
        names = list(entries)[::-1]
        values = [entries[name]["images_per_second"] for name in names]
        colours = [
            ACCENT if entries[name].get("ours") else "#f0b392" if "ours" in name else "#94a3b8" for name in names
        ]
        axes.barh([_named(name, entries[name]) for name in names], values, 0.7, color=colours)
        for row, name in enumerate(names):
            note = f" {values[row]:,.0f}   {entries[name]['ratio']:.1f} ×"
            axes.text(values[row], row, note, va="center", fontsize=8, color=INK)
        axes.set_xlim(0, 1.45 * max(values))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _plain(axes)
    _signed(figure, results)
    return figure


def growth(results: dict[str, Any]) -> "Figure":
    """How cost grows with members, batch size and images, for each number of threads. Dotted: in proportion."""
    titles = {
        "members": "a population: images per second, all members",
        "batch_size": "batch size: images per second",
        "images": "images: seconds per epoch",
    }
    figure, grids = panels(9.6, 3.6, *titles.values())
    for axes, key in zip(grids, titles, strict=True):
        for threads, series in results[key].items():
            x, y = [int(at) for at in series], list(series.values())
            marker, colour = ("o-", FAINT) if threads == "1" else ("s-", ACCENT)
            label = "1 thread" if threads == "1" else f"{threads} threads"
            axes.plot(x, y, marker, markersize=4, linewidth=1.2, color=colour, label=label)
            axes.plot(x, [y[0] * at / x[0] for at in x], ":", color=FAINT, linewidth=0.8)
            axes.set_ylim(0, max(axes.get_ylim()[1] if threads != "1" else 0, 1.15 * max(y)))
        if key != "images":
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(at) for at in x])
        axes.title.set_fontsize(9)
        _plain(axes)
    figure.axes[0].legend(frameon=False, fontsize=8)
    _signed(figure, results)
    return figure


def _named(name: str, entry: dict[str, Any]) -> str:
    if not name.startswith("ours"):
        return NAMES[name]
    precision = ", bfloat16" if entry["precision"] == "bfloat16" else ""
    return f"ours, batch {entry['batch_size']}{precision}{', compiled' if entry['compiled'] else ''}"


def _plain(axes: "Axes") -> None:
    axes.tick_params(colors=FAINT, labelsize=8, length=2)
    axes.spines[:].set_visible(False)


def _signed(figure: "Figure", results: dict[str, Any]) -> None:
    about, versions = results["machine"], results["versions"]
    where = about["cpu"] if about["device"] == "cpu" else about["device"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "lightning", "pythae") if name in versions)
    note = f"{where}, {about['cores']} cores, {about['threads']} threads · {named} · {results['date']}"
    figure.supxlabel(note, fontsize=7, color=FAINT)


PRIOR_COLOURS = {"standard": "#334155", "class": "#4e79a7", "mixture": "#c2410c"}


def treatments(table: pd.DataFrame) -> "Figure":
    """Frechet of each setting, mean and standard deviation over seeds: a panel a sampler, a row a setting.

    table: columns setting, prior, sampler, choice, mean, std. Hollow: the weight was not tuned.
    """
    names = list(dict.fromkeys(table["setting"]))[::-1]
    samplers = ("fitted", "prior")
    figure, grids = panels(9.2, 1.3 + 0.5 * len(names), *(f"{sampler} sampler" for sampler in samplers))
    for axes, sampler in zip(grids, samplers, strict=True):
        for index, (prior, colour) in enumerate(PRIOR_COLOURS.items()):
            for choice, filled in (("tuned", True), ("untuned", False)):
                own = (table["sampler"] == sampler) & (table["prior"] == prior) & (table["choice"] == choice)
                rows = table[own].dropna(subset=["mean"])
                if not len(rows):
                    continue
                axes.errorbar(
                    rows["mean"], [names.index(name) + 0.22 * (1 - index) for name in rows["setting"]],
                    xerr=rows["std"].fillna(0), fmt="o", markersize=5, color=colour, elinewidth=1.1,
                    markerfacecolor=colour if filled else "white",
                    label=f"{prior} prior" if filled else f"{prior} prior, untuned",
                )  # fmt: skip
        logarithmic(axes.xaxis)
        plain_axes(axes, "frechet on test (lower is better)", "")
        axes.grid(visible=True, axis="x", color="#eceff2", linewidth=0.8)
        axes.set_yticks(range(len(names)), names if sampler == "fitted" else [])
        axes.set_ylim(-0.5, len(names) - 0.5)
    legend(figure, columns=3)
    return figure

"""All figures of an evaluation, by name."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.show import model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTED = {"accuracy": "class_accuracy", "diversity": "diversity", "Fréchet": "frechet"}


def evaluation_figures(
    sheets: Any, figures: Mapping[str, float], per_class: pd.DataFrame, history: pd.DataFrame, kl_weight: float
) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of an evaluation with its name.

    sheets: measure.sheets.Sheets. figures: by name, such as `prior/frechet`.
    """
    yield "samples", model.digits(sheets.samples, f"Samples of each digit, β = {kl_weight:g}, {sheets.words}")
    notes = {
        name: "   ".join(f"{word} {figures[f'{name}/{metric}']:.3g}" for word, metric in NOTED.items())
        for name in sheets.samplers
    }
    yield "samplers", model.sampler_grids(sheets.samplers, notes)
    yield "latent_space", model.latent_space(sheets.mu, sheets.labels)
    yield "reconstructions", model.digits(sheets.reconstructions, "Images, each with its reconstruction to the right")
    names = [f"z{dimension}" for dimension in sheets.dimensions]
    yield (
        "traversal",
        model.traversal(sheets.traversal, names, "A digit along each active dimension of z, from −3 to 3"),
    )
    yield "curves", model.curves(history)
    yield "per_class", model.per_class(per_class)

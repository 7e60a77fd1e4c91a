"""The curve: what one training of a multi-rate CVAE says of every KL weight in a range."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.base.params import Number, params
from pipeline.data.splits import CLASSES, Pixels, Split
from pipeline.measure.evaluator import Evaluator, with_split
from pipeline.model import multirate
from pipeline.model.cvae import CVAE, ModelParams, resolve
from pipeline.model.density import Densities, Density, stacked
from pipeline.model.likelihood import Name
from pipeline.model.multirate import MultiRate
from pipeline.model.samples import SAMPLERS, Sampler, sample, sheet
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ELBO, ObjectiveParams
from pipeline.training.validation import View, labelled

LIMITS = 1e-4, 1000.0  # below, kl is no longer a small part of the loss; above, every latent has long collapsed


@params
class WeightParams:
    """The section `weight` of params.yaml."""

    range: tuple[Number, Number]
    """lowest and highest KL weight, drawn log-uniformly for each image"""
    epochs: Annotated[int, Field(ge=1)]
    """of the one training"""
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0)]
    """the peak; it then falls to 0 along half a cosine"""
    balance: Annotated[Number, Field(ge=0, le=1)]
    """a weight β counts by (1 + β)^−balance; 0: all alike, 1: high weights less"""
    points: Annotated[int, Field(ge=3)]
    """weights that are measured"""

    def __post_init__(self) -> None:
        if not LIMITS[0] <= self.range[0] < self.range[1] <= LIMITS[1]:
            rule = f"lowest and highest, from {LIMITS[0]:g} to {LIMITS[1]:g}"
            raise ValueError(f"range must be {rule}, not {list(self.range)}")


def recipe(weight: WeightParams, train: TrainParams) -> TrainParams:
    """How the one network is trained: as a CVAE, for so many epochs, with this batch and rate."""
    return replace(train, epochs=weight.epochs, batch_size=weight.batch_size, learning_rate=weight.learning_rate)


def measured_weights(weight: WeightParams) -> list[float]:
    """The weights that are measured, at equal ratios, to four digits; the ends of the range are two of them."""
    inner = [float(f"{value:.4g}") for value in np.geomspace(*weight.range, weight.points)]
    return [weight.range[0], *inner[1:-1], weight.range[1]]


def aim_of(name: Name, sigma: float, pixels: Pixels) -> ObjectiveParams:
    """The objective at β = 1, without a schedule: each image's own weight is a factor of it."""
    return replace(ELBO, likelihood=name, sigma=sigma, pixels=pixels)


def build(model: ModelParams, aim: ObjectiveParams, weight: WeightParams, seed: int) -> MultiRate:
    """An untrained multi-rate CVAE on the CPU. A prior that depends on the encoder gives way to the standard one."""
    architecture = resolve(model)
    if architecture.prior == "mixture":
        architecture = replace(architecture, prior="standard", prior_components=1)
    return multirate.build(architecture, weight.range, weight.balance, seed, aim.likelihood, aim.sigma)


def drawn_view(model: MultiRate, pixels: Pixels) -> View:
    """The labelled view, with a KL weight for each image.

    Weights are log-uniform. Of a batch, each has its own equal part of log β, which makes gradients less noisy; which
    image gets which part is random, because the images of a batch are in random order.
    """
    low, high = (math.log(weight) for weight in model.drawn_span())
    plain = labelled(pixels)

    def view(part: Split, source: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = plain(part, source)
        count, device = len(labels), labels.device
        place = torch.arange(count, device=device) + torch.rand(count, generator=source, device=device)
        return images, multirate.condition(labels, low + (high - low) * place / count)

    return view


class Point(NamedTuple):
    """What was measured at one weight: its row of the table, and samples of each digit by sampler, (10, 1, 28, 28).

    density: that of the fitted sampler; its components change little from one weight to the next.
    """

    row: dict[str, float]
    samples: dict[str, Tensor]
    density: Density


def measured(model: MultiRate, weights: Iterable[float], evaluator: Evaluator, components: int) -> Iterator[Point]:
    """Each weight on the evaluator's split, which must be validation. Names of figures: `validation/prior/frechet`."""
    density: Density | None = None
    for weight in weights:
        found = point(model.at(weight), weight, evaluator, components, density)
        density = found.density
        yield found


def point(model: CVAE, weight: float, evaluator: Evaluator, components: int, near: Density | None = None) -> Point:
    """The same of one model of one weight, however it was trained. near: the density of a similar model."""
    digits = torch.arange(CLASSES, device=evaluator.split.labels.device)
    density = evaluator.density(model, components, near)
    figures = evaluator.fit_figures(model) | evaluator.samples(model, density)
    drawn = {str(name): sample(model, density, digits, name, seed=0) for name in SAMPLERS}
    return Point({"kl_weight": weight, **with_split("validation", figures)}, drawn, density)


def densities(points: Sequence[Point]) -> Densities:
    """Those of the fitted sampler at all measured weights."""
    return stacked([found.density for found in points], [found.row["kl_weight"] for found in points])


def sheet_of(points: Sequence[Point], sampler: Sampler) -> np.ndarray:
    """One picture (H, W) uint8: a row per digit, a column per weight, the same noise in each column."""
    return sheet(torch.stack([point.samples[sampler] for point in points], 1).flatten(0, 1), len(points))


def best_weights(table: pd.DataFrame) -> dict[str, float]:
    """The weight with the lowest frechet by sampler, to two digits: that of a parabola through it and its neighbours.

    In log frechet over log β. At an end of the range it is the end.
    """
    return {sampler: float(f"{_lowest(table, f'validation/{sampler}/frechet'):.2g}") for sampler in SAMPLERS}


def _lowest(table: pd.DataFrame, figure: str) -> float:
    x, y = np.log(table["kl_weight"].to_numpy()), np.log(table[figure].to_numpy())
    lowest = int(y.argmin())
    if lowest in (0, len(y) - 1):
        return float(np.exp(x[lowest]))
    near = slice(lowest - 1, lowest + 2)
    square, linear, _ = np.polyfit(x[near] - x[lowest], y[near], 2)
    return float(np.exp(x[lowest] - linear / (2 * square)))

"""A model's figures on one split, by the words of the project: bound, samplers side by side, real-data ceiling."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.params import Range
from pipeline.data.splits import CLASSES, PIXELS, Pixels, Split, epoch_seed, to_unit
from pipeline.measure import bound, metrics
from pipeline.model.cvae import CVAE
from pipeline.model.density import SAMPLERS, Density, Sampler, draw, encoded, fit_density, posteriors
from pipeline.model.likelihood import EXACT_ON_LEVELS
from pipeline.training.fit import validate
from pipeline.training.objective import ObjectiveParams

COLLAPSED_DIVERSITY = 0.2
KNOWN_IMAGES = 10_000  # a sixth of the time of all 55,000; every candidate has the same


Draws = Annotated[int, Range(least=1)]  # k of the importance-weighted bound


@dataclass(frozen=True)
class EvaluateParams:
    nll_draws: Draws
    seed: Annotated[int, Range(least=0, most=2**31)]


class Reading(Protocol):
    """What a judge says of images: features (N, D) and labels (N,)."""

    @property
    def features(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


class Reader(Protocol):
    def __call__(self, images: Tensor) -> Reading: ...


@dataclass(frozen=True)
class Pictures:
    """Images (N, 1, 28, 28) in [0, 1], the digits they are of (N,), and how the judge reads them."""

    images: Tensor
    digits: Tensor
    reading: Reading

    def of_class(self, digit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (n, 784), features (n, D) and read labels (n,) of one class."""
        rows = self.digits == digit
        return self.images[rows].flatten(1), self.reading.features[rows], self.reading.labels[rows]


@dataclass(frozen=True)
class Evaluation:
    """Headline figures as metrics.json holds them, and a row per sampler and digit."""

    summary: dict[str, Any]
    per_class: pd.DataFrame


@dataclass(frozen=True)
class SideBySide:
    """Both samplers and real images: a row per sampler and digit, each one's means, and what the judge reads right."""

    per_class: pd.DataFrame
    means: dict[str, dict[str, float]]
    judge_accuracy: float


def compare(real: Pictures, fake: Pictures) -> Iterator[dict[str, float]]:
    """The sample metrics of each class in turn: a dictionary of digit and figures."""
    for digit in range(CLASSES):
        real_pixels, real_features, _ = real.of_class(digit)
        fake_pixels, fake_features, read_as = fake.of_class(digit)
        fewest = min(len(real_pixels), len(fake_pixels))
        if fewest <= metrics.NEIGHBOURS:
            raise UserError(f"digit {digit} has {fewest} images: too few to measure samples")
        yield {
            "digit": digit,
            "class_accuracy": metrics.accuracy(read_as, digit),
            "diversity": metrics.diversity(real_pixels, fake_pixels),
            "frechet": metrics.frechet(real_features, fake_features),
            **metrics.precision_recall(real_features, fake_features),
            "feature_diversity": metrics.diversity(real_features, fake_features),
        }


def read_split(judge: Reader, split: Split) -> Pictures:
    """A split's images as the judge sees them."""
    images = to_unit(split.images)
    return Pictures(images, split.labels, judge(images))


def read_samples(
    judge: Reader, model: CVAE, density: Density | None, real: Pictures, sampler: Sampler, seed: int
) -> Pictures:
    """As many samples of each class as there are real images, with the judge's reading."""
    images = draw(model, density, real.digits, sampler, seed)
    return Pictures(images, real.digits, judge(images))


def same_classes(split: Split, digits: Tensor, seed: int) -> Split:
    """Random rows of `split` with the class counts of `digits`, or all of a class where there are not enough."""
    source = torch.Generator().manual_seed(seed)
    rows = []
    for digit, count in enumerate(torch.bincount(digits, minlength=CLASSES).tolist()):
        candidates = (split.labels == digit).nonzero().squeeze(1)
        rows.append(candidates[torch.randperm(len(candidates), generator=source)[:count].to(candidates.device)])
    return split[torch.cat(rows)]


def evaluate(
    model: CVAE,
    density: Density,
    judge: Reader,
    split: Split,
    train: Split,
    params: EvaluateParams,
    aim: ObjectiveParams,
    split_name: str,
) -> Evaluation:
    """All figures of a model on `split`; `train` gives the ceiling, real images taken as if they were samples."""
    found = side_by_side(model, density, judge, split, train, aim.pixels, params.seed)
    fit = explain(model, split, aim, params)
    most_diverse = max(found.means[name]["diversity"] for name in SAMPLERS)
    fit["collapsed"] = fit["active_units"] == 0 or most_diverse < COLLAPSED_DIVERSITY
    fit["judge_accuracy"] = found.judge_accuracy
    protocol = {
        "split": split_name,
        "images": len(split),
        "kl_weight": aim.kl_weight,
        "likelihood": aim.likelihood,
        "prior": model.architecture.prior,
        "pixels": aim.pixels,
        "nll_draws": params.nll_draws,
        "neighbours": metrics.NEIGHBOURS,
        "seed": params.seed,
    }
    return Evaluation({**fit, **found.means, "protocol": protocol}, found.per_class)


def side_by_side(
    model: CVAE, density: Density, judge: Reader, split: Split, train: Split, pixels: Pixels, seed: int
) -> SideBySide:
    """What both samplers draw, and real images taken as if they were samples, compared with `split`."""
    real = read_split(judge, split)
    known = same_classes(train, real.digits, seed)
    sets: dict[str, Pictures] = {
        **{name: read_samples(judge, model, density, real, name, seed) for name in SAMPLERS},
        "real": read_split(judge, known),
    }
    rows = {name: list(compare(real, pictures)) for name, pictures in sets.items()}
    found = {name: means(of_digits) for name, of_digits in rows.items()}
    found["fitted"] |= learned(model, density, split, known, pixels, seed)
    per_class = pd.DataFrame([{"sampler": name, **row} for name, of_digits in rows.items() for row in of_digits])
    return SideBySide(per_class, found, float((real.reading.labels == real.digits).float().mean()))


def learned(model: CVAE, density: Density, unseen: Split, known: Split, pixels: Pixels, seed: int) -> dict[str, float]:
    """What a fitted density says of codes, nats a code: of unseen images, and of images that it was fitted to.

    A density that learned where codes lie says about the same of both. One with a Gaussian for every few images has
    learned these images: its samples keep close to them, which no comparison with real images holds against it.
    """
    parts = {"log_density": unseen, "log_density_train": known}
    # Other draws than those that it was fitted to.
    return {
        name: float(density.log_prob(encoded(model, part, pixels, epoch_seed(seed, 2)), part.labels).mean())
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class Yardstick:
    """What candidates are measured with while they train: a judge, and unseen images as it reads them.

    Densities are fitted to `known`, so many training images as make a fit quick; all candidates share the noise.
    """

    judge: Reader
    unseen: Split
    real: Pictures  # of `unseen`
    known: Split
    aim: ObjectiveParams
    components: int  # Gaussians in each class's mixture
    seed: int

    def density(self, model: CVAE) -> Density:
        return fit_density(model, self.known, self.aim.pixels, self.components, self.seed)

    def samples(self, model: CVAE, density: Density | None, sampler: Sampler) -> dict[str, float]:
        """The sample metrics by name, means over the digits; `prior` needs no density."""
        return means(compare(self.real, read_samples(self.judge, model, density, self.real, sampler, self.seed)))

    def ceiling(self) -> dict[str, float]:
        """The same of real images, taken as if they were samples."""
        return means(compare(self.real, read_split(self.judge, same_classes(self.known, self.real.digits, self.seed))))

    def active_units(self, model: CVAE) -> int:
        return len(bound.active_dimensions(posteriors(model, self.unseen, self.aim.pixels, self.seed)[0]))

    def nll(self, model: CVAE, draws: int) -> float:
        """Nats per image of `unseen`, with `draws` importance-weighted draws."""
        return -float(bound.log_likelihood(model, self.unseen, self.aim.pixels, draws, self.seed).double().mean())


def yardstick(
    judge: Reader, unseen: Split, train: Split, aim: ObjectiveParams, components: int, seed: int
) -> Yardstick:
    """A yardstick on `unseen` images, with densities from the first 10,000 training images."""
    return Yardstick(judge, unseen, read_split(judge, unseen), train[:KNOWN_IMAGES], aim, components, seed)


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over rows with a digit each."""
    table = pd.DataFrame([dict(row) for row in rows]).drop(columns="digit").mean()
    return {str(name): float(value) for name, value in table.items()}


def explain(model: CVAE, split: Split, aim: ObjectiveParams, params: EvaluateParams) -> dict[str, Any]:
    """How well the model explains the images themselves, in nats per image, and with how many latents."""
    means = validate(model, split, aim)
    nll = -bound.log_likelihood(model, split, aim.pixels, params.nll_draws, params.seed).double().mean()
    mu, _ = posteriors(model, split, aim.pixels, params.seed)
    fit = {
        "reconstruction": means.reconstruction,
        "kl": means.kl,
        "elbo": -(means.reconstruction + means.kl),
        "nll": float(nll),
        "active_units": len(bound.active_dimensions(mu)),
    }
    if aim.likelihood in EXACT_ON_LEVELS:
        fit["bits_per_dimension"] = fit["nll"] / (PIXELS * math.log(2))
    return fit

"""A model's figures on one split: how well it explains the images, how good its samples are, and the ceiling.

Names of figures have no split in them: `elbo`, `prior/frechet`, `real/coverage`. `with_split` adds it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.params import params
from pipeline.data.splits import CLASSES, PIXELS, Pixels, Split, epoch_seed, to_unit
from pipeline.measure import bound, metrics
from pipeline.measure.judge import Judges
from pipeline.measure.metrics import Judged
from pipeline.model.cvae import CVAE
from pipeline.model.density import Density, fit_density, posterior_samples, posteriors
from pipeline.model.likelihood import Bernoulli, Gaussian
from pipeline.model.samples import SAMPLERS, Sampler, sample
from pipeline.training.validation import labelled, validate

COLLAPSED_DIVERSITY = 0.2
HEADLINE_FIGURES = (
    "fitted/frechet", "prior/frechet", "fitted/class_accuracy", "prior/class_accuracy", "fitted/diversity",
    "prior/diversity", "nll", "kl", "reconstruction",
)  # fmt: skip
QUICK_TRAIN = 10_000  # training images that trials and comparisons use: a sixth of the time of all 55,000
OF_SAMPLES = 0.4  # share of an evaluation's time on two cores; nearly all the rest is the nll's

Told = Callable[[float, str], None]
Draws = Annotated[int, Field(ge=1, description="k of the importance-weighted bound")]


@params
class EvaluateParams:
    """The section `evaluate` of params.yaml."""

    nll_draws: Draws
    seed: Annotated[int, Field(ge=0, le=2**31)]
    """of samples and of the bound"""
    sample_sets: Annotated[int, Field(ge=1)]
    """sets of samples, each with noise of its own; figures are their means"""


class Evaluation(NamedTuple):
    """All figures by name, and the sample metrics of each digit: a row per sampler and digit.

    deviation: standard deviation of the sample figures between sample sets, by the same names; empty for one set.
    """

    figures: dict[str, float]
    per_class: pd.DataFrame
    deviation: dict[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Measures any number of models on one split, all with the same noise.

    judges: without them, only `fit_figures` and `nll` can be measured. train: training images, for the ceiling and for
    fitting densities. All tensors lie on one device. sets: sample sets, over which sample figures are averaged.
    """

    judges: Judges | None
    split: Split
    train: Split
    pixels: Pixels
    seed: int
    sets: int = 1

    def reseeded(self, seed: int) -> "Evaluator":
        """The same with other noise; what real images say is not measured again."""
        other = replace(self, seed=seed)
        other.__dict__["_real"] = self._real
        return other

    def fit_figures(self, model: CVAE) -> dict[str, float]:
        """reconstruction, kl and elbo in nats per image, active_units, and what the likelihood adds.

        sigma: of a Gaussian likelihood. grey_floor: of a Bernoulli likelihood on grey pixels.
        """
        figures = validate(model, self.split, labelled(self.pixels)) | {"active_units": self.active_units(model)}
        if isinstance(model.likelihood, Gaussian):
            figures["sigma"] = float(model.likelihood.log_sigma.detach().exp())
        elif isinstance(model.likelihood, Bernoulli) and self.pixels == "grey":
            figures["grey_floor"] = grey_floor(self.split.images)
        return figures

    def active_units(self, model: CVAE) -> int:
        """Latent dimensions whose posterior mean varies over the split."""
        return len(bound.active_dimensions(posteriors(model, self.split, self.pixels, self.seed).mu))

    def nll(self, model: CVAE, k: int, kl_weight: float, told: bound.Told = lambda _: None) -> dict[str, float]:
        """nll in nats per image, with k latents of each image; bits_per_dimension where the likelihood is exact.

        kl_weight: that the model was trained with. effective_samples: the median over images, out of k. If it is low,
        the nll is too high (bound.FEW).
        """
        measured = bound.log_likelihood(model, self.split, self.pixels, k, self.seed, kl_weight, told)
        nll = -float(measured.log_likelihood.double().mean())
        figures = {"nll": nll, "effective_samples": float(measured.effective_samples.median())}
        if model.likelihood.sums_to_one_on == "levels":
            figures["bits_per_dimension"] = nll / (PIXELS * math.log(2))
        return figures

    def density(self, model: CVAE, components: int, start: Density | None = None) -> Density:
        """A mixture fitted to the latents of `train`: `components` Gaussians for each class."""
        return fit_density(model, self.train, self.pixels, components, self.seed, start)

    def samples(self, model: CVAE, density: Density | None, samplers: Sequence[Sampler] = SAMPLERS) -> dict[str, float]:
        """The sample metrics, such as `prior/frechet`: means over the digits. `prior` needs no density."""
        parts = [with_split(sampler, self._samples(model, density, sampler).figures) for sampler in samplers]
        return {name: value for part in parts for name, value in part.items()}

    def sample_figures(self, model: CVAE, density: Density, told: Told = lambda *_: None) -> Evaluation:
        """The sample metrics of both samplers and of real images, the judges' accuracies, the density's own figures.

        fitted/log_density, fitted/log_density_train: log p(z∣y) under the density in nats per latent, for the split
        and for training images. If the second is much higher, the density has memorised training images.
        """
        parts: dict[str, Evaluation] = {}
        for place, sampler in enumerate(SAMPLERS):
            told(place / 4, f"samples of the {sampler} sampler")
            parts[sampler] = self._samples(model, density, sampler)
        told(2 / 4, "real images")
        parts["real"] = self.ceiling
        told(3 / 4, "density")
        figures, deviation = dict[str, float](), dict[str, float]()
        for name, part in parts.items():
            figures |= with_split(name, part.figures)
            deviation |= with_split(name, part.deviation)
        known = same_classes(self.train, self.split.labels, self.seed)
        figures["fitted/log_density"] = self._log_density(model, density, self.split)
        figures["fitted/log_density_train"] = self._log_density(model, density, known)
        figures["judge_accuracy"] = float(self._real.accuracy())
        figures["judge_accuracy_plain"] = float((self._real.plain.labels == self._real.digits).double().mean())
        per_class = pd.concat({name: part.per_class for name, part in parts.items()}, names=["sampler"])
        return Evaluation(figures, per_class.reset_index("sampler").reset_index(drop=True), deviation)

    def evaluate(
        self, model: CVAE, density: Density, k: int, kl_weight: float, told: Told = lambda *_: None
    ) -> Evaluation:
        """Everything at once, and `collapsed`: no unit is active, or both samplers' samples are nearly all alike.

        k, kl_weight: as in `nll`. told: is called with the share of the work that is done, and with what comes next.
        """
        sampled = self.sample_figures(model, density, lambda share, what: told(OF_SAMPLES * share, what))
        told(OF_SAMPLES, "reconstruction")
        figures = self.fit_figures(model)
        figures |= self.nll(model, k, kl_weight, lambda share: told(OF_SAMPLES + (1 - OF_SAMPLES) * share, "nll"))
        figures |= sampled.figures
        diversity = max(figures[f"{name}/diversity"] for name in SAMPLERS)
        figures["collapsed"] = figures["active_units"] == 0 or diversity < COLLAPSED_DIVERSITY
        return sampled._replace(figures=figures)

    def protocol(self, model: CVAE, k: int, kl_weight: float) -> dict[str, Any]:
        """How figures were measured, for the record: figures of different protocols must not be compared."""
        return {
            "images": len(self.split),
            "prior": model.architecture.prior,
            "pixels": self.pixels,
            "nll_draws": k,
            "nll_width": bound.width(kl_weight),
            "neighbours": metrics.NEIGHBOURS,
            "seed": self.seed,
            "sample_sets": self.sets,
        }

    @cached_property
    def _real(self) -> Judged:
        return self._judged(self.split)

    @cached_property
    def ceiling(self) -> Evaluation:
        """Real training images in place of samples: the best that samples can reach."""
        return self._averaged(lambda seed: same_classes(self.train, self.split.labels, seed))

    def _samples(self, model: CVAE, density: Density | None, sampler: Sampler) -> Evaluation:
        """As many samples of each class as the split has images."""
        digits = self.split.labels
        return self._averaged(lambda seed: Split(sample(model, density, digits, sampler, seed), digits))

    def _averaged(self, draw: Callable[[int], Split]) -> Evaluation:
        """The sample metrics of several sets, each of which `draw` makes from a seed."""
        seeds = [self.seed, *(epoch_seed(self.seed, 3 + index) for index in range(self.sets - 1))]
        tables = [compare(self._real, self._judged(draw(seed))) for seed in seeds]
        means = pd.DataFrame([table.drop(columns="digit").mean() for table in tables])
        deviation = _floats(means.std()) if self.sets > 1 else {}
        by_class = pd.concat(tables).groupby("digit", as_index=False).mean()
        return Evaluation(_floats(means.mean()), by_class, deviation)

    def _judged(self, split: Split) -> Judged:
        if self.judges is None:
            raise ValueError("samples need judges")
        images, (tolerant, plain) = to_unit(split.images), self.judges
        return Judged(images.flatten(1), tolerant.read(images), plain.read(images), split.labels)

    def _log_density(self, model: CVAE, density: Density, split: Split) -> float:
        # Other noise than that of the latents the density was fitted to.
        z = posterior_samples(model, split, self.pixels, epoch_seed(self.seed, 2))
        return float(density.log_prob(z, split.labels).mean())


def compare(real: Judged, fake: Judged) -> pd.DataFrame:
    """The sample metrics of each class: a row per digit. Raises UserError where a class has too few images."""
    rows = []
    for digit in range(CLASSES):
        own, other = real.of_class(digit), fake.of_class(digit)
        fewest = min(len(own.digits), len(other.digits))
        if fewest <= metrics.NEIGHBOURS:
            raise UserError(f"digit {digit} has {fewest} images: metrics need more than {metrics.NEIGHBOURS} of each")
        rows.append(metrics.compare(own, other))
    values = torch.stack([torch.stack(list(row.values())) for row in rows])
    table = pd.DataFrame(values.cpu().numpy(), columns=list(rows[0]))  # a GPU hands all figures over at once
    table.insert(0, "digit", range(CLASSES))
    return table


def same_classes(split: Split, digits: Tensor, seed: int) -> Split:
    """Random rows of `split` with the class counts of `digits`, or all of a class where there are not enough."""
    source = torch.Generator().manual_seed(seed)
    rows = []
    for digit, count in enumerate(torch.bincount(digits, minlength=CLASSES).tolist()):
        candidates = (split.labels == digit).nonzero().squeeze(1)
        rows.append(candidates[torch.randperm(len(candidates), generator=source)[:count].to(candidates.device)])
    return split[torch.cat(rows)]


def grey_floor(images: Tensor) -> float:
    """The lowest reconstruction that a Bernoulli likelihood can reach on images (N, 1, 28, 28) uint8, nats per image.

    −x log p − (1 − x) log(1 − p) is lowest at p = x, where it is the entropy of a Bernoulli variable of mean x.
    """
    x = to_unit(images).double().flatten(1)
    return float(-(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(1).mean())


def with_split(split: str, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures' full names, as MLflow, Optuna and tables have them: `validation/fitted/frechet`."""
    return {f"{split}/{name}": value for name, value in figures.items()}


def nested(figures: Mapping[str, float]) -> dict[str, Any]:
    """`fitted/frechet` becomes `{"fitted": {"frechet": …}}`."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        *groups, last = name.split("/")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return found


def summary(evaluation: Evaluation, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The form of reports/metrics.json: nested figures, their standard deviations between sample sets, the protocol."""
    return {
        **nested(evaluation.figures),
        "standard_deviation": nested(evaluation.deviation),
        "protocol": dict(protocol),
    }


def _floats(row: "pd.Series[float]") -> dict[str, float]:
    return {str(name): float(value) for name, value in row.items()}

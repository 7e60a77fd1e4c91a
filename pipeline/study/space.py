"""What a study tries and minimises: its params, its search space, and the name that follows from them.

What is minimised never contains the KL weight: a weighted loss would only drive the weight to zero.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from pipeline.base.params import Number, digest, flat, hashed, params, plain
from pipeline.measure.metrics import LOWER_IS_BETTER, METRICS, OF_SAMPLES
from pipeline.model.cvae import Architecture, Conditioning
from pipeline.model.samples import Sampler
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.weight.convert import from_article_weight

if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[tuple(METRICS)]  # the names that params allow
SECTIONS = {"kl_weight": "objective", "learning_rate": "train", "latent_size": "model", "conditioning": "model"}
ARTICLE_WEIGHT, ARTICLE_BATCH = 1e-5, 128  # where samples of one class begin to differ in the source article
NEIGHBOUR = 2  # the curve's best weights are tried with those half and twice as high: what a few seeds can tell apart
FORMAT = 3  # of what trials hold; it changes the studies' names, so that no study holds two formats


def _rising(ends: tuple[float, ...]) -> tuple[float, ...]:
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise PydanticCustomError("range", "[lowest, highest] with lowest < highest")
    return ends


def _different(least: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    def check(values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < max(least, len(values)):
            raise PydanticCustomError("different", f"a list of {least} or more different values")
        return values

    return check


Range = Annotated[tuple[Annotated[Number, Field(gt=0)], ...], AfterValidator(_rising)]


@params
class TuneParams:
    """The section `tune` of params.yaml. None: as in the other sections."""

    study: str | None
    """its name; blank: made from what its figures depend on"""
    trials: Annotated[int, Field(ge=1)]
    """`dvc repro` and `cvae tune` run the study until it has these"""
    epochs: Annotated[int, Field(ge=1)]
    """of each training; the other values are those of train"""
    seeds: Annotated[int, Field(ge=1)]
    """most trainings of a weight, each with its own seed, from train.seed on"""
    population: Literal["auto"] | Annotated[int, Field(ge=1)]
    """weights trained at once: auto | a number"""
    kl_weight: Range
    """lowest and highest, sampled log-uniformly"""
    learning_rate: Range | None
    """blank (as in train), or lowest and highest, such as [0.0005, 0.005]"""
    latent_size: Annotated[tuple[Annotated[int, Field(ge=1, le=784)], ...], AfterValidator(_different(2))] | None
    """blank (as in model), or choices, such as [8, 16, 32]"""
    conditioning: Annotated[tuple[Conditioning, ...], AfterValidator(_different(2))] | None
    """blank (as in model), or choices, such as [sum, concat]"""
    objectives: Annotated[tuple[Metric, ...], AfterValidator(_different(1))]
    """one or several of reconstruction, kl, elbo, nll, active_units, frechet, class_accuracy, …"""
    sampler_of_latents: Sampler
    """fitted | prior: whose samples are measured"""
    least_class_accuracy: Annotated[Number | None, Field(ge=0, le=1)]
    """a trial below it can't be the best; blank: no limit"""
    seed: Annotated[int, Field(ge=0, le=2**31)]
    """of the sampler that proposes weights"""


@dataclass(frozen=True)
class Setting:
    """Everything that a trial's figures depend on, apart from the values that the study tries."""

    tune: TuneParams
    architecture: Architecture
    aim: ObjectiveParams
    train: TrainParams
    components: int
    nll_draws: int
    hashes: Mapping[str, str]  # of the data and the judge
    curve: Mapping[str, float] = field(default_factory=dict)  # where the curve is best, by sampler

    def rounds(self) -> range:
        """The seeds of a weight's trainings, in their order."""
        return range(self.train.seed, self.train.seed + self.tune.seeds)

    def space(self) -> dict[str, BaseDistribution]:
        """The open parameters by name."""
        tune = self.tune
        ranges = {"kl_weight": tune.kl_weight, "learning_rate": tune.learning_rate}
        choices = {"latent_size": tune.latent_size, "conditioning": tune.conditioning}
        space: dict[str, BaseDistribution] = {
            name: FloatDistribution(ends[0], ends[1], log=True) for name, ends in ranges.items() if ends is not None
        }
        return space | {name: CategoricalDistribution(values) for name, values in choices.items() if values is not None}

    def shape(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture of a trial that tries `values`."""
        own = {name: value for name, value in values.items() if SECTIONS[name] == "model"}
        return replace(self.architecture, **own)

    def figure(self, metric: str) -> str:
        """The name of a metric among a trial's figures: `validation/fitted/frechet`, `validation/kl`."""
        sampler = f"{self.tune.sampler_of_latents}/" if metric in OF_SAMPLES else ""
        return f"validation/{sampler}{metric}"

    def objectives(self) -> dict[str, bool]:
        """The figures that the study optimises, by name, and whether lower is better."""
        return {self.figure(metric): metric in LOWER_IS_BETTER for metric in self.tune.objectives}

    def name(self) -> str:
        """The study's name: the same for all trials that belong in one table."""
        return self.tune.study or f"kl-weight-{self.fingerprint()[:8]}"

    def fingerprint(self) -> str:
        """A hash of everything that a trial's figures depend on: not of how many trials or seeds there are."""
        tune = plain(self.tune)
        for key in ("study", "trials", "seeds", "population", "seed"):
            del tune[key]
        train = hashed(self.train)
        for key in ("epochs", "device", "precision", "compile"):
            del train[key]
        model, aim = hashed(self.architecture), hashed(self.aim)
        del aim["kl_weight"]
        for name in self.space():  # `cvae promote` may change these, which must not make a new study
            model.pop(name, None)
            train.pop(name, None)
        return digest(FORMAT, tune, model, aim, train, self.components, self.nll_draws, dict(self.hashes))

    def asked(self) -> Iterator[tuple[str, dict[str, Any], float]]:
        """The points that come first: each with its origin, and the factor within which another one is as good.

        The curve's best weight for each sampler, the one in params.yaml, the bound, and the curve's best weights halved
        and doubled, as far as the space contains them.
        """
        now = {
            "learning_rate": self.train.learning_rate,
            "latent_size": self.architecture.latent_size,
            "conditioning": self.architecture.conditioning,
        }
        bound = from_article_weight(ARTICLE_WEIGHT, ARTICLE_BATCH)  # β = 1.00
        points = [(f"the curve, {sampler}", weight, 1.2) for sampler, weight in self.curve.items()]
        points += [("params.yaml", self.aim.kl_weight, 1.01), ("the article, the bound", bound, 1.01)]
        for sampler, weight in self.curve.items():
            for factor in (1 / NEIGHBOUR, NEIGHBOUR):
                points.append((f"beside the curve's, {sampler}", float(f"{weight * factor:.3g}"), 1.2))
        space = self.space()
        for origin, weight, closest in points:
            values: dict[str, Any] = now | {"kl_weight": weight}
            point = {name: values[name] for name in space}
            if all(_contains(space[name], value) for name, value in point.items()):
                yield origin, point, closest

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The params of a trial that tries `values`, by the names that a training of its own would record."""
        sections = {"model": self.shape(values), "objective": self.aim, "train": self.train}
        return flat(sections) | {"train.epochs": self.tune.epochs} | full_names(values)


def full_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"kl_weight": 1.0}` as `{"objective.kl_weight": 1.0}`."""
    return {f"{SECTIONS[name]}.{name}": value for name, value in values.items()}


def widest_gap(ends: Sequence[float], weights: Sequence[float]) -> float:
    """The middle of the widest gap between weights or ends, on a logarithmic scale, rounded to three digits.

    >>> widest_gap((0.01, 100), [0.2, 1.0])
    10.0
    """
    first, last = ends
    places = sorted([first, last, *(weight for weight in weights if first < weight < last)])
    low, high = max(itertools.pairwise(places), key=lambda pair: pair[1] / pair[0])
    return min(max(float(f"{math.sqrt(low * high):.3g}"), first), last)


def same(point: Mapping[str, Any], other: Mapping[str, Any], closest: float = 1.01) -> bool:
    """Whether two points need only one trial: their numbers differ by less than `closest` times, the rest is equal."""
    if point.keys() != other.keys():
        return False
    pairs = [(value, other[name]) for name, value in point.items()]
    return all(max(a, b) < closest * min(a, b) if isinstance(a, float) else a == b for a, b in pairs)


def _contains(rule: BaseDistribution, value: Any) -> bool:
    if isinstance(rule, CategoricalDistribution):
        return value in rule.choices
    return isinstance(rule, FloatDistribution) and rule.low <= value <= rule.high

"""What a study tries and minimises: its params, its search space, and the name that follows from them.

What is minimised never contains the KL weight: a weighted loss would only drive the weight to zero.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.params import Number, digest, hashed, params, plain
from pipeline.measure.metrics import METRICS, OF_SAMPLES
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
FORMAT = 2  # of what trials hold; it changes the studies' names, so that no study holds two formats


@params
class TuneParams:
    """The section `tune` of params.yaml. None: as in the other sections."""

    study: str | None
    """its name; blank: made from what its figures depend on"""
    trials: Annotated[int, Field(ge=1)]
    """`dvc repro` and `cvae tune` run the study until it has these"""
    epochs: Annotated[int, Field(ge=1)]
    """of each trial's training; the other values are those of train"""
    population: Literal["auto"] | Annotated[int, Field(ge=1)]
    """trials trained at once: auto | a number"""
    kl_weight: tuple[Annotated[Number, Field(gt=0)], ...]
    """lowest and highest, sampled log-uniformly"""
    learning_rate: tuple[Annotated[Number, Field(gt=0)], ...] | None
    """blank (as in train), or lowest and highest, such as [0.0005, 0.005]"""
    latent_size: tuple[Annotated[int, Field(ge=1, le=784)], ...] | None
    """blank (as in model), or choices, such as [8, 16, 32]"""
    conditioning: tuple[Conditioning, ...] | None
    """blank (as in model), or choices, such as [sum, concat]"""
    objectives: tuple[Metric, ...]
    """one or several of reconstruction, kl, elbo, nll, active_units, frechet, class_accuracy, …"""
    sampler_of_latents: Sampler
    """fitted | prior: whose samples are measured"""
    least_class_accuracy: Annotated[Number | None, Field(ge=0, le=1)]
    """a trial below it can't be the best; blank: no limit"""
    pruner: Literal["halving", "none"]
    """halving (after 1, 2, 4, … epochs the worse half stops) | none"""
    seed: Annotated[int, Field(ge=0, le=2**31)]


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

    def space(self) -> dict[str, BaseDistribution]:
        """The open parameters by name. Raises UserError for a wrong range or too few choices."""
        tune = self.tune
        space: dict[str, BaseDistribution] = {"kl_weight": _log_range("kl_weight", tune.kl_weight)}
        if tune.learning_rate is not None:
            space["learning_rate"] = _log_range("learning_rate", tune.learning_rate)
        choices: dict[str, tuple[Any, ...] | None] = {
            "latent_size": tune.latent_size,
            "conditioning": tune.conditioning,
        }
        for name, values in choices.items():
            if values is not None:
                if len(set(values)) < 2:
                    raise UserError(f"params.yaml: tune.{name} must name at least two choices or be null")
                space[name] = CategoricalDistribution(values)
        return space

    def check(self) -> None:
        """Raises UserError where the section `tune` makes no study."""
        self.space()
        objectives = self.tune.objectives
        if not objectives:
            raise UserError("params.yaml: tune.objectives must name at least one metric, such as [frechet]")
        if len(set(objectives)) < len(objectives):
            raise UserError(f"params.yaml: tune.objectives names a metric twice: {list(objectives)}")

    def figure(self, metric: str) -> str:
        """The name of a metric among a trial's figures: `validation/fitted/frechet`, `validation/kl`."""
        sampler = f"{self.tune.sampler_of_latents}/" if metric in OF_SAMPLES else ""
        return f"validation/{sampler}{metric}"

    def name(self) -> str:
        """The study's name: the same for all trials that belong in one table."""
        return self.tune.study or f"kl-weight-{self.fingerprint()[:8]}"

    def fingerprint(self) -> str:
        """A hash of everything that a trial's figures depend on: not of how many there are, nor of the pruner."""
        tune = plain(self.tune)
        for key in ("study", "trials", "population", "pruner", "seed"):
            del tune[key]
        train = hashed(self.train)
        for key in ("epochs", "device", "precision", "compile"):
            del train[key]
        model, aim = hashed(self.architecture), hashed(self.aim)
        del aim["kl_weight"]
        for name in self.space():  # `cvae promote` may change these, which must not make a new study
            model.pop(name, None)
            train.pop(name, None)
        draws = self.nll_draws if "nll" in self.tune.objectives else None
        return digest(FORMAT, tune, model, aim, train, self.components, draws, dict(self.hashes))

    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        """The points that people ask about first, each with its origin, as far as the space contains them."""
        fixed: dict[str, Any] = {
            "learning_rate": self.train.learning_rate,
            "latent_size": self.architecture.latent_size,
            "conditioning": self.architecture.conditioning,
        }
        weights = {
            "params.yaml": self.aim.kl_weight,
            "the article, the bound": from_article_weight(ARTICLE_WEIGHT, ARTICLE_BATCH),  # both are β = 1.00
        }
        first: list[tuple[str, dict[str, Any]]] = []
        for origin, weight in weights.items():
            point = {name: weight if name == "kl_weight" else fixed[name] for name in self.space()}
            inside = all(_contains(rule, point[name]) for name, rule in self.space().items())
            if inside and not any(same(point, other) for _, other in first):
                first.append((origin, point))
        return first

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The params of a trial that tries `values`, by the names that a training of its own would record."""
        sections = {"model": plain(self.architecture), "objective": plain(self.aim), "train": plain(self.train)}
        sections["train"]["epochs"] = self.tune.epochs
        for name, value in values.items():
            sections[SECTIONS[name]][name] = value
        return {f"{section}.{name}": value for section, content in sections.items() for name, value in content.items()}


def widest_gap(ends: Sequence[float], weights: Sequence[float]) -> float:
    """The middle of the widest gap between weights or ends, on a logarithmic scale, rounded to three digits.

    >>> widest_gap((0.01, 100), [0.2, 1.0])
    10.0
    """
    first, last = ends
    places = sorted([first, last, *(weight for weight in weights if first < weight < last)])
    low, high = max(itertools.pairwise(places), key=lambda pair: pair[1] / pair[0])
    return min(max(float(f"{math.sqrt(low * high):.3g}"), first), last)


def same(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points need only one trial: their numbers differ by less than a percent, the rest is equal."""
    if point.keys() != other.keys():
        return False
    pairs = [(value, other[name]) for name, value in point.items()]
    return all(math.isclose(a, b, rel_tol=0.01) if isinstance(a, float) else a == b for a, b in pairs)


def _log_range(name: str, bounds: tuple[float, ...]) -> FloatDistribution:
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise UserError(f"params.yaml: tune.{name} must be [lowest, highest] with lowest < highest, not {list(bounds)}")
    return FloatDistribution(*bounds, log=True)


def _contains(rule: BaseDistribution, value: Any) -> bool:
    if isinstance(rule, CategoricalDistribution):
        return value in rule.choices
    return isinstance(rule, FloatDistribution) and rule.low <= value <= rule.high

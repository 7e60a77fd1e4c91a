"""The search: populations of weights train at once, one seed after the other, and race on validation images."""

import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.splits import Split
from pipeline.measure.evaluator import Evaluator, with_split
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density
from pipeline.model.samples import strip
from pipeline.study.queue import Candidate, State, Study
from pipeline.study.space import Setting
from pipeline.study.uses import undecided
from pipeline.training import population
from pipeline.training.fit import Record

OF_FIT = ("validation/reconstruction", "validation/kl", "validation/elbo")  # which every epoch's record has
NLL_IMAGES = 300  # that nll is measured on: weights are compared on the same ones, which takes out most of the noise
WAIT_SECONDS = 2  # between two looks at the trials of other processes


class Began(NamedTuple):
    """A trial starts to train, or goes on after an interruption."""

    candidate: Candidate


class Epoch(NamedTuple):
    """One epoch of one trial with one seed. fitted: its figures, model and density, after the last one."""

    candidate: Candidate
    seed: int
    record: Record
    fitted: "Fitted | None"


class Ended(NamedTuple):
    """A trial has ended; FAIL: it diverged. Means and seeds are in the candidate.

    strip: digits of the first seed from the prior, below from the fitted density.
    """

    candidate: Candidate
    state: State
    strip: np.ndarray | None  # (H, W) uint8


Event = Began | Epoch | Ended


def search(study: Study, train: Split, evaluator: Evaluator) -> Generator[Event, None, None]:
    """Runs the study on the device of `train` until tune.trials have finished, and yields what happens.

    On any exception, also Ctrl-C, the trials in training return to the queue with the figures of their finished
    trainings. Where other processes train the last trials, it waits for them, and takes over their trials if they die.
    """
    setting = study.setting
    with study.at_work():
        while study.done() < setting.tune.trials:
            batch = study.ask(batch_size(setting, train.labels.device))
            if not batch:
                time.sleep(WAIT_SECONDS)
            yield from map(Began, batch)
            for step in race(study, batch):
                if isinstance(step, Round):
                    step.trained = train_together(setting, step.trials, step.seed, train, evaluator)
                else:
                    yield step


def batch_size(setting: Setting, device: torch.device, devices: int = 1) -> int:
    """How many trials a device trains at once: tune.population, or what fits, but together at most half of the study.

    Trials that are asked for at once can't learn from each other. Those that are asked for first come together.
    """
    tune = setting.tune
    if tune.population != "auto":
        return tune.population
    half = max(8, math.ceil(tune.trials / 2))
    latents = setting.train.batch_size * setting.aim.draws  # that a member decodes at once
    return min(math.ceil(half / devices), population.auto_size(device, setting.architecture, latents))


@dataclass(eq=False)
class Round:
    """A population to train with one seed. Whoever trains it puts the result into `trained` before the race goes on."""

    trials: list[dict[str, Any]]
    seed: int
    trained: "Iterable[Trained]" = ()


def race(study: Study, batch: list[Candidate]) -> Iterator[Event | Round]:
    """Trains all with the first seed, then with one seed more those about which it could decide something.

    Every training has all epochs: after the first one, weights that learn at different paces can't be compared.
    """
    seeds, racing = study.setting.rounds(), batch
    while racing:
        missing = {candidate: [seed for seed in seeds if seed not in candidate.seeds] for candidate in racing}
        compares = any(candidate.seeds and missing[candidate] for candidate in racing)
        open_trials = undecided(study.seeds(), study.setting) if compares else set()
        for candidate in racing:
            if not missing[candidate] or (candidate.seeds and candidate.trial.number not in open_trials):
                missing.pop(candidate)
                yield _end(study, candidate, "COMPLETE")
        if not missing:
            return
        racing, seed = list(missing), min(first for first, *_ in missing.values())
        members: dict[Architecture, list[Candidate]] = {}
        for candidate in racing:
            if missing[candidate][0] == seed:
                members.setdefault(study.setting.shape(candidate.trial.params), []).append(candidate)
        for stack in members.values():  # members of a population have one architecture
            failed = yield from _train(study, stack, seed)
            racing = [candidate for candidate in racing if candidate not in failed]


class Fitted(NamedTuple):
    """A training's end: its figures on validation, and what sampled for them."""

    figures: dict[str, float]
    model: CVAE
    density: Density


class Trained(NamedTuple):
    """One epoch of one member. fitted: after the last one, unless it failed: diverged, can't be measured."""

    member: int
    record: Record
    seconds: float
    failed: bool
    fitted: Fitted | None


def train_together(
    setting: Setting, trials: Sequence[Mapping[str, Any]], seed: int, train: Split, evaluator: Evaluator
) -> Iterator[Trained]:
    """Trains a population with one seed, which its first weights, order, noise and samples follow from.

    trials: what each member tries; all have one architecture. A member that failed is not seen again.
    """
    params = replace(setting.train, epochs=setting.tune.epochs, seed=seed)
    evaluator, architecture = evaluator.reseeded(seed), setting.shape(trials[0])
    models = [build(architecture, seed, setting.aim.likelihood, setting.aim.sigma) for _ in trials]
    weights = [trial["kl_weight"] for trial in trials]
    rates = [trial["learning_rate"] for trial in trials] if "learning_rate" in trials[0] else None
    members = population.start(models, weights, params, train.labels.device, rates)
    for records in population.fit(members, train, evaluator.split, params, setting.aim):
        last = members.epoch == params.epochs
        for member, record in records.items():
            began, fitted = time.perf_counter(), None
            if last and not record.diverged:
                model = members.model(member).eval().requires_grad_(requires_grad=False)
                measured = _measure(setting, evaluator, model, weights[member])
                if measured:
                    figures = {name: record.figures[name] for name in OF_FIT} | measured[0]
                    fitted = Fitted(figures, model, measured[1])
            seconds = record.figures["time/seconds"] / len(records) + time.perf_counter() - began
            failed = record.diverged or (last and fitted is None)
            if failed:
                members.drop([member])
            yield Trained(member, record, seconds, failed, fitted)


def _train(study: Study, stack: list[Candidate], seed: int) -> Generator[Event | Round, None, list[Candidate]]:
    """Has candidates of one architecture trained, keeps their figures in their trials, returns those that failed."""
    failed: list[Candidate] = []
    yield (order := Round([candidate.trial.params for candidate in stack], seed))
    for found in order.trained:
        candidate = stack[found.member]
        candidate.seconds += found.seconds
        candidate.epochs = found.record.epoch
        if found.failed:
            failed.append(candidate)
            yield _end(study, candidate, "FAIL")
            continue
        if found.fitted:
            candidate.keep(seed, found.fitted.figures)
            if len(candidate.seeds) == 1:
                candidate.strip = strip(found.fitted.model, found.fitted.density)
                study.keep_strip(candidate, candidate.strip)
        yield Epoch(candidate, seed, found.record, found.fitted)
    return failed


def _end(study: Study, candidate: Candidate, state: State) -> Ended:
    study.tell(candidate, state)
    return Ended(candidate, state, candidate.strip)


def _measure(
    setting: Setting, evaluator: Evaluator, model: CVAE, kl_weight: float
) -> tuple[dict[str, float], Density] | None:
    """A candidate's figures on validation, of both samplers' samples, and its density; None if any is not finite."""
    try:
        density = evaluator.density(model, setting.components)
        figures = evaluator.samples(model, density) | {"active_units": evaluator.active_units(model)}
        few = replace(evaluator, split=evaluator.split[:NLL_IMAGES])
        figures |= few.nll(model, setting.nll_draws, kl_weight)
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]  # from values that are not finite
        return None
    if not all(map(math.isfinite, figures.values())):
        return None
    return with_split("validation", figures), density

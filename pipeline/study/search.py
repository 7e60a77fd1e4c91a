"""The search: a population of trials trains at once, validation images judge it, and the worse half is pruned."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.data.splits import CLASSES, Split
from pipeline.measure.evaluator import Evaluator, with_split
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.samples import SAMPLERS, sample, sheet
from pipeline.study.queue import Candidate, State, Study
from pipeline.study.space import SECTIONS, Setting
from pipeline.training import population
from pipeline.training.fit import Record

OF_FIT = ("validation/reconstruction", "validation/kl", "validation/elbo")  # which every epoch's record has
WAIT_SECONDS = 2  # between two looks at the trials of other processes


@dataclass(frozen=True)
class Began:
    """A trial starts to train."""

    candidate: Candidate


@dataclass(frozen=True)
class Epoch:
    """One epoch of one trial; figures: what was measured after it, if anything."""

    candidate: Candidate
    record: Record
    figures: dict[str, float]
    model: CVAE


@dataclass(frozen=True)
class Ended:
    """A trial has ended; FAIL: it diverged. strip: digits from the prior, below from the fitted density."""

    candidate: Candidate
    state: State
    strip: np.ndarray | None  # (H, W) uint8


Event = Began | Epoch | Ended


def search(study: Study, train: Split, evaluator: Evaluator) -> Generator[Event, None, None]:
    """Runs the study on the device of `train` until tune.trials have finished, and yields what happens.

    On any exception, also Ctrl-C, the trials in training return to the queue. Where other processes train the last
    trials, it waits for them, and takes over their trials if they die.
    """
    setting = study.setting
    with study.at_work():
        while study.done() < setting.tune.trials:
            batch = study.ask(batch_size(setting, train.labels.device))
            if not batch:
                time.sleep(WAIT_SECONDS)
            groups: dict[Architecture, list[Candidate]] = {}  # members of a population have one architecture
            for candidate in batch:
                own = candidate.trial.params.items()
                shape = {name: value for name, value in own if SECTIONS[name] == "model"}
                groups.setdefault(replace(setting.architecture, **shape), []).append(candidate)
            for architecture, stack in groups.items():
                yield from _train(study, architecture, stack, train, evaluator)


def batch_size(setting: Setting, device: torch.device) -> int:
    """How many trials train at once: tune.population, or what fits the device, but at most a third of the study.

    Trials that are asked for at once can't learn from each other.
    """
    tune = setting.tune
    if tune.population != "auto":
        return tune.population
    third = max(4, math.ceil(tune.trials / 3))
    latents = setting.train.batch_size * setting.aim.draws  # that a member decodes at once
    return min(third, population.auto_size(device, setting.architecture, latents))


def losers(study: Study, stack: Sequence[Candidate], members: Sequence[int], epoch: int) -> list[int]:
    """Members outside the better half of all the study's trials with a value at this epoch.

    Successive halving (Jamieson & Talwalkar 2016) with reduction factor 2. The points that people ask about are never
    pruned: they should stand beside the best one.
    """
    ((name, lower_is_better),) = study.setting.objectives().items()
    sign = 1 if lower_is_better else -1
    reported = [trial.intermediate_values[epoch] for trial in study.trials() if epoch in trial.intermediate_values]
    found = []
    for member in members:
        own = stack[member].figures[name]
        better = sum(sign * other < sign * own for other in reported)
        if better >= math.ceil(len(reported) / 2) and "asked" not in stack[member].trial.user_attrs:
            found.append(member)
    return found


def _train(
    study: Study, architecture: Architecture, stack: list[Candidate], train: Split, evaluator: Evaluator
) -> Iterator[Event]:
    setting, tune = study.setting, study.setting.tune
    params = replace(setting.train, epochs=tune.epochs)
    prunes = tune.pruner == "halving" and len(tune.objectives) == 1
    yield from map(Began, stack)
    # The same first weights for all: differences come from what the trials try.
    models = [build(architecture, params.seed, setting.aim.likelihood, setting.aim.sigma) for _ in stack]
    weights = [candidate.trial.params["kl_weight"] for candidate in stack]
    rates = [candidate.trial.params["learning_rate"] for candidate in stack] if tune.learning_rate else None
    members = population.start(models, weights, params, train.labels.device, rates)
    for records in population.fit(members, train, evaluator.split, params, setting.aim):
        last = members.epoch == params.epochs
        measures = last or (prunes and members.epoch.bit_count() == 1)  # after 1, 2, 4, … epochs
        strips: dict[int, np.ndarray] = {}  # by member
        for member, record in records.items():
            candidate = stack[member]
            model = members.model(member).eval().requires_grad_(requires_grad=False)
            began = time.perf_counter()
            measured = _measure(study, evaluator, model) if measures and not record.diverged else None
            measuring = time.perf_counter() - began
            candidate.seconds += record.figures["time/seconds"] / len(records) + measuring
            candidate.epochs = members.epoch
            if record.diverged or (measures and measured is None):
                members.drop([member])
                yield _end(study, candidate, "FAIL", None)
                continue
            candidate.figures |= {name: record.figures[name] for name in OF_FIT}
            figures: dict[str, float] = {}
            if measured is not None:
                figures, strips[member] = measured
                candidate.figures |= figures
                study.report(candidate)
            yield Epoch(candidate, record, figures, model)
        leaving = strips if last or not strips else losers(study, stack, list(strips), members.epoch)
        for member in leaving:
            yield _end(study, stack[member], "COMPLETE" if last else "PRUNED", strips[member])
        if leaving and not last:
            members.drop(list(leaving))


def _end(study: Study, candidate: Candidate, state: State, strip: np.ndarray | None) -> Ended:
    if strip is not None:
        study.keep_strip(candidate, strip)
    study.tell(candidate, state)
    return Ended(candidate, state, strip)


def _measure(study: Study, evaluator: Evaluator, model: CVAE) -> tuple[dict[str, float], np.ndarray] | None:
    """A candidate's figures on validation, of both samplers' samples, and its strip; None if any is not finite."""
    try:
        density = evaluator.density(model, study.setting.components)
        figures = {
            f"{sampler}/{name}": value
            for sampler in SAMPLERS
            for name, value in evaluator.samples(model, density, sampler).items()
        }
        figures["active_units"] = evaluator.active_units(model)
        if "nll" in study.setting.tune.objectives:
            figures |= evaluator.nll(model, study.setting.nll_draws)
        labels = torch.arange(CLASSES, device=model.mu.weight.device)
        images = [sample(model, density, labels, sampler, seed=0) for sampler in SAMPLERS]
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]  # from values that are not finite
        return None
    if not all(map(math.isfinite, figures.values())):
        return None
    return with_split("validation", figures), sheet(torch.cat(images), CLASSES)

"""The search: a population of trials trains at once, validation images judge it, and the worse half is pruned."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.base.errors import UserError
from pipeline.data.splits import CLASSES, Split
from pipeline.measure.evaluator import Evaluator, with_split
from pipeline.measure.metrics import LOWER_IS_BETTER
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density
from pipeline.model.samples import SAMPLERS, sample, sheet
from pipeline.study.queue import Candidate, State, Study
from pipeline.study.space import Setting
from pipeline.training import population
from pipeline.training.fit import Record, TrainParams

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
    """A trial has ended. strip: two rows of ten digits, from the prior and the fitted density, (H, W) uint8."""

    candidate: Candidate
    state: State
    why: str
    strip: np.ndarray | None


Event = Began | Epoch | Ended


@dataclass(frozen=True)
class Bench:
    """What all trials are trained and measured with. Everything is on one device."""

    train: Split
    validation: Split
    evaluator: Evaluator
    device: torch.device


def search(study: Study, bench: Bench) -> Generator[Event, None, None]:
    """Runs the study until tune.trials have finished, and yields what happens.

    On any exception, also Ctrl-C, the trials in training return to the queue. Where other processes train the last
    trials, it waits for them, and takes over their trials if they die.
    """
    setting = study.setting
    with study.at_work():
        while study.done() < setting.tune.trials:
            batch = study.ask(batch_size(setting, bench.device))
            if not batch:
                time.sleep(WAIT_SECONDS)
            waiting = list(batch)
            try:
                for architecture, stack in stacks(setting, batch):
                    for event in _train(study, architecture, stack, bench):
                        if isinstance(event, Ended):
                            waiting.remove(event.candidate)
                        yield event
            except BaseException as error:
                with suppress(UserError):  # the database is away: the next process to ask will retry these trials
                    study.put_back(waiting, error)
                raise


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


def stacks(setting: Setting, batch: Sequence[Candidate]) -> list[tuple[Architecture, list[Candidate]]]:
    """The candidates by architecture: only members of one architecture train in one population."""
    groups: dict[Architecture, list[Candidate]] = {}
    for candidate in batch:
        shapes = {key: value for key, value in candidate.values.items() if key in ("latent_size", "conditioning")}
        groups.setdefault(replace(setting.architecture, **shapes), []).append(candidate)
    return list(groups.items())


def rungs(epochs: int) -> list[int]:
    """The epochs after which the worse half is pruned: 1, 2, 4, … before the last.

    >>> rungs(4), rungs(9)
    ([1, 2], [1, 2, 4, 8])
    """
    return [2**power for power in range(epochs.bit_length()) if 2**power < epochs]


def halve(values: Sequence[float], reported: Sequence[float], lower_is_better: bool) -> list[bool]:
    """Which of `values` are in the better half, rounded up, of all `reported`, which include them.

    Successive halving (Jamieson & Talwalkar 2016) with reduction factor 2, over all trials that came this far.

    >>> halve([3.0, 9.0, 5.0], [3.0, 9.0, 5.0, 1.0], lower_is_better=True)
    [True, False, False]
    """
    sign = 1 if lower_is_better else -1
    places = math.ceil(len(reported) / 2)
    return [sum(sign * other < sign * value for other in reported) < places for value in values]


def losers(study: Study, candidates: Sequence[Candidate], epoch: int) -> list[Candidate]:
    """Candidates outside the better half of all the study's trials with a value at this epoch.

    The points that people ask about are never pruned: they should stand beside the best one.
    """
    reported = [trial.intermediate_values[epoch] for trial in study.trials() if epoch in trial.intermediate_values]
    lower = study.setting.tune.objectives[0] in LOWER_IS_BETTER
    kept = halve([study.value(candidate) for candidate in candidates], reported, lower)
    pairs = zip(candidates, kept, strict=True)
    return [candidate for candidate, stays in pairs if not stays and not candidate.was_asked]


def _train(study: Study, architecture: Architecture, stack: list[Candidate], bench: Bench) -> Iterator[Event]:
    setting, tune = study.setting, study.setting.tune
    params = replace(setting.train, epochs=tune.epochs)
    prunes = tune.pruner == "halving" and len(tune.objectives) == 1
    yield from map(Began, stack)
    members = _start(setting, architecture, stack, params, bench.device)
    for records in population.fit(members, bench.train, bench.validation, params, setting.aim):
        epoch = members.epoch
        last, rung = epoch == params.epochs, prunes and epoch in rungs(params.epochs)
        strips: list[tuple[Candidate, np.ndarray]] = []
        for member, record in records.items():
            candidate = stack[member]
            candidate.epochs = epoch
            candidate.seconds += record.figures["time/seconds"] / len(records)
            model = members.model(member).eval().requires_grad_(requires_grad=False)
            measured, diverged = None, record.diverged
            if (last or rung) and not diverged:
                began = time.perf_counter()
                measured = _measure(study, bench.evaluator, model)
                candidate.seconds += time.perf_counter() - began
                diverged = measured is None
            if diverged:
                members.drop([member])
                study.tell(candidate, "FAIL", "diverged")
                yield Ended(candidate, "FAIL", f"diverged in epoch {epoch}", None)
                continue
            figures, strip = measured or ({}, None)
            candidate.figures |= {name: record.figures[name] for name in OF_FIT} | figures
            if strip is not None:
                study.report(candidate)
                strips.append((candidate, strip))
            yield Epoch(candidate, record, figures, model)
        measured_now = [candidate for candidate, _ in strips]
        leaving = measured_now if last else losers(study, measured_now, epoch)
        yield from _end(study, [(candidate, strip) for candidate, strip in strips if candidate in leaving], last)
        if not last:
            members.drop([stack.index(candidate) for candidate in leaving])


def _start(
    setting: Setting, architecture: Architecture, stack: list[Candidate], params: TrainParams, device: torch.device
) -> population.Population:
    """A population with the same first weights for all: differences come from what the trials try."""
    aim = setting.aim
    models = [build(architecture, params.seed, aim.likelihood, aim.sigma) for _ in stack]
    rates = [candidate.values.get("learning_rate", params.learning_rate) for candidate in stack]
    own_rates = rates if setting.tune.learning_rate is not None else None
    return population.start(models, [candidate.kl_weight for candidate in stack], params, device, own_rates)


def _end(study: Study, leaving: Sequence[tuple[Candidate, np.ndarray]], last: bool) -> Iterator[Ended]:
    state: State = "COMPLETE" if last else "PRUNED"
    for candidate, strip in leaving:
        study.keep_strip(candidate, strip)
        study.tell(candidate, state)
        yield Ended(candidate, state, "", strip)


def _measure(study: Study, evaluator: Evaluator, model: CVAE) -> tuple[dict[str, float], np.ndarray] | None:
    """A candidate's figures on validation, of the samples of both samplers, and its strip.

    None where its latents or samples can't be measured, although its loss is still finite.
    """
    tune = study.setting.tune
    try:
        density = evaluator.density(model, study.setting.components)
        figures = {
            f"{sampler}/{name}": value
            for sampler in SAMPLERS
            for name, value in evaluator.samples(model, density, sampler).items()
        }
        figures["active_units"] = evaluator.active_units(model)
        if "nll" in tune.objectives:
            figures |= evaluator.nll(model, study.setting.nll_draws)
        figures = with_split("validation", figures)
        strip = _strip(model, density)
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]  # from values that are not finite
        return None
    return (figures, strip) if all(map(math.isfinite, figures.values())) else None


def _strip(model: CVAE, density: Density) -> np.ndarray:
    """Each digit once, from the prior and, below, from the fitted density; the same noise for every model."""
    labels = torch.arange(CLASSES, device=model.mu.weight.device)
    images = [sample(model, density, labels, sampler, seed=0) for sampler in SAMPLERS]
    return sheet(torch.cat(images), CLASSES)

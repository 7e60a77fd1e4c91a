"""Every likelihood × prior × sampler at its best KL weight, under one budget, on MNIST: benchmarks/treatments.csv.

    make treatments                                     # both of these
    python -m benchmarks.treatments                     # measures: an hour or more on 2 quiet cores
    python -m benchmarks.treatments_report              # docs/lab/treatments.md's tables and picture

    python -m benchmarks.treatments --quick             # all of it in small: a minute or two, into .quick/
    python -m benchmarks.treatments --schedules         # the KL treatments too
    python -m benchmarks.treatments --epochs 20 --train-images 55000 --hidden 512 --weights 0.1,0.3,1,3

First each setting is trained at every weight of its grid and judged on validation: treatments.choice.csv. Once all
choices are written there, the chosen weights are trained anew from other seeds and measured on test: treatments.csv.
Beside the stages that evaluate, benchmarks/judge.py and benchmarks/evaluation.py this is the only reader of test, and
the split is not opened before. A run that was killed goes on where it was; a grid that has grown adds its weights, and
what is chosen otherwise now is measured anew. Rows of another set-up (treatments.json) are set aside.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from filelock import FileLock, Timeout

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, sha256, write_json
from pipeline.base.params import digest, hashed, load, load_key, plain
from pipeline.base.paths import JUDGE, PREPARED
from pipeline.data.splits import Pixels, Split
from pipeline.measure import bound, judge
from pipeline.measure import evaluator as evaluation
from pipeline.measure.evaluator import COLLAPSED_DIVERSITY, Evaluator
from pipeline.measure.judge import Reader
from pipeline.model import likelihood, prior
from pipeline.model.cvae import CVAE, Architecture, ModelParams, build, resolve
from pipeline.model.density import Components, Density
from pipeline.model.likelihood import LIKELIHOODS, names_on
from pipeline.model.samples import SAMPLERS
from pipeline.stages.saved import load_judge, load_splits
from pipeline.training import population
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

FOLDER, QUICK_FOLDER = Path("benchmarks"), Path(".quick")
TABLE, CHOICE, SETUP = "treatments.csv", "treatments.choice.csv", "treatments.json"
ASIDE = "aside"

PRIORS: tuple[prior.Name, ...] = ("standard", "class", "mixture")
TREATMENTS = ("warmup", "cyclical", "capacity", "free_bits")  # of --schedules, beside `constant`
FREE_BITS = 0.5  # nats per latent dimension
UNTUNED = 1.0  # the weight that nobody chose: the evidence lower bound
MEASURED_SEEDS = 1  # the first; the choice's own seed, 0, is not among the measured ones: its luck was chosen
CHOICE_SEED = 0

OF_SAMPLES = ("class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage")
OF_FIT = ("nll", "bits_per_dimension", "reconstruction", "kl", "elbo", "active_units")
SETTING = ("likelihood", "prior", "pixels", "treatment")
KEY = (*SETTING, "sampler", "choice", "kl_weight", "seed")
COLUMNS = (
    *KEY, *OF_FIT, *OF_SAMPLES, "train_seconds", "epochs", "train_images", "test_images", "nll_images", "nll_draws",
    "setup",
)  # fmt: skip
CHOICE_COLUMNS = (
    *SETTING, "kl_weight", "seed", "reconstruction", "kl", "elbo",
    *(f"{sampler}_{name}" for sampler in SAMPLERS for name in ("frechet", "class_accuracy", "diversity")), "setup",
)  # fmt: skip

# The harder a likelihood pulls on the pixels, the more KL weight it takes: in short runs the least weights gave about
# the same kl, and the greatest likewise. Those of discretized_logistic, whose scales have far to travel, are a guess.
# The report marks a weight at a grid's edge.
GRIDS: dict[str, tuple[float, ...]] = {
    "bernoulli": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "continuous_bernoulli": (1.0, 3.0, 10.0, 30.0, 90.0, 300.0, 900.0),
    "gaussian": (1.0, 3.0, 10.0, 30.0, 90.0),
    "sigma_learned": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "sigma_optimal": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "discretized_logistic": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}
QUICK = {
    "hidden": 64, "epochs": 1, "batch_size": 32, "seeds": 2, "train_images": 2000, "validation_images": 500,
    "test_images": 500, "nll_images": 50, "nll_draws": 16, "weights": ["0.3,3"], "out": QUICK_FOLDER,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a row of the table is about, but for the sampler."""

    likelihood: likelihood.Name
    prior: prior.Name
    pixels: Pixels = "grey"
    treatment: str = "constant"

    def aim(self, aim: ObjectiveParams) -> ObjectiveParams:
        bits = FREE_BITS if self.treatment == "free_bits" else None
        schedule: Any = "constant" if bits else self.treatment
        return replace(aim, likelihood=self.likelihood, pixels=self.pixels, schedule=schedule, free_bits=bits)

    def __str__(self) -> str:
        words: list[str] = [self.likelihood, self.prior]
        words += [self.pixels] if self.pixels != "grey" else []
        words += [self.treatment] if self.treatment != "constant" else []
        return " · ".join(words)


def settings(names: Sequence[likelihood.Name], *, schedules: bool) -> list[Setting]:
    """Every likelihood on grey pixels and, where it is a probability on them, on binary ones; with every prior."""
    both: tuple[Pixels, ...] = ("grey", "binary")
    found = [
        Setting(name, kind, pixels)
        for name in names
        for pixels in both
        if pixels == "grey" or name in names_on("binary")
        for kind in PRIORS
    ]
    return [*found, *(Setting("bernoulli", "standard", treatment=name) for name in TREATMENTS if schedules)]


@dataclass(frozen=True)
class Setup:
    """All that the figures depend on, besides setting, weight and seed: one budget for all."""

    architecture: Architecture  # whose prior is the setting's
    prior_components: int
    aim: ObjectiveParams
    train: TrainParams
    components: int
    grids: Mapping[str, tuple[float, ...]]  # weights by likelihood
    train_images: int
    validation_images: int
    test_images: int
    nll_images: int
    nll_draws: int
    hashes: Mapping[str, str]  # of data and judge

    def content(self) -> dict[str, Any]:
        """As treatments.json holds it: without what is a setting's own, or the machine's, and without the grids: a row
        is as true whatever other weights were tried, so that a grid may grow."""
        values = plain(self) | {
            "architecture": hashed(self.architecture),
            "aim": hashed(self.aim),
            "train": hashed(self.train),
        }
        del values["grids"]
        for section, names in (
            ("aim", ("kl_weight", "likelihood", "pixels", "schedule", "free_bits")),
            ("train", ("seed", "device", "precision", "compile")),
            ("architecture", ("prior", "prior_components")),
        ):
            for name in names:
                del values[section][name]
        return values | {"free_bits": FREE_BITS}

    def digest(self) -> str:
        return digest(self.content())


class Source(Protocol):
    """Where the splits and the judge's readings come from; it travels to the workers."""

    def split(self, name: str) -> Split: ...
    def reader(self) -> Reader: ...


@dataclass(frozen=True)
class Files:
    """The pipeline's own files, on a device."""

    device: torch.device

    def split(self, name: str) -> Split:
        (split,) = load_splits(PREPARED, name)
        return split.to(self.device)

    def reader(self) -> Reader:
        return partial(judge.read, load_judge(JUDGE, self.device))


class Bench:
    """What one process trains and measures with. Nothing is read before it is needed: test by `measure` alone."""

    def __init__(self, setup: Setup, source: Source) -> None:
        self.setup, self.source = setup, source

    @cached_property
    def train(self) -> Split:
        return self.source.split("train")[: self.setup.train_images]

    @cached_property
    def validation(self) -> Split:
        return _some(self.source.split("validation"), self.setup.validation_images)

    @cached_property
    def test(self) -> Split:
        return _some(self.source.split("test"), self.setup.test_images)

    @cached_property
    def reader(self) -> Reader:
        return self.source.reader()

    @cached_property
    def on_validation(self) -> Evaluator:
        return self._evaluator(self.validation)

    @cached_property
    def on_test(self) -> Evaluator:
        return self._evaluator(self.test)

    def _evaluator(self, unseen: Split) -> Evaluator:
        train = self.train[: evaluation.QUICK_TRAIN]
        return Evaluator(self.reader, unseen, train, self.setup.aim.pixels, CHOICE_SEED)

    def fit(self, setting: Setting, weights: Sequence[float], seed: int) -> tuple[list[CVAE], float]:
        """Models of one setting, a weight each, all of one seed, trained in one stack; and each one's seconds.

        On a processor, its time: it has one thread of it, and maybe not to itself.
        """
        setup = self.setup
        params, aim = replace(setup.train, seed=seed), setting.aim(setup.aim)
        components = setup.prior_components if setting.prior == "mixture" else 1
        architecture = replace(setup.architecture, prior=setting.prior, prior_components=components)
        models = [build(architecture, seed, setting.likelihood, aim.sigma) for _ in weights]
        stack = population.start(models, weights, params, self.train.images.device)
        clock = time.process_time if self.train.images.device.type == "cpu" else time.perf_counter
        began = clock()
        for _ in population.fit(stack, self.train, self.validation[:100], params, aim):
            pass
        seconds = (clock() - began) / len(weights)
        trained = [stack.model(member).eval().requires_grad_(requires_grad=False) for member in range(len(weights))]
        return trained, seconds


def _some(split: Split, count: int) -> Split:
    """So many random rows, the same at every call."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    return split[order.to(split.labels.device)]


Row = dict[str, Any]


@dataclass(frozen=True)
class Choose:
    """Trains a setting at every weight of its grid and judges each on validation, with both samplers."""

    setting: Setting
    weights: tuple[float, ...]

    def __call__(self, bench: Bench) -> list[Row]:
        models, _ = bench.fit(self.setting, self.weights, CHOICE_SEED)
        rows = []
        for model, weight in zip(models, self.weights, strict=True):
            aim = replace(self.setting.aim(bench.setup.aim), kl_weight=weight)
            evaluator = replace(bench.on_validation, pixels=aim.pixels)
            terms = evaluator.fit_figures(model)
            figures = {name: terms[name] for name in ("reconstruction", "kl", "elbo")}
            density = _or_none(evaluator.density, model, bench.setup.components)
            for sampler in SAMPLERS:
                of_samples = _samples(evaluator, model, density, sampler)
                figures |= {f"{sampler}_{name}": value for name, value in of_samples.items()}
            rows.append({**asdict(self.setting), "kl_weight": weight, "seed": CHOICE_SEED, **figures})
        return rows


@dataclass(frozen=True)
class Measure:
    """Trains a setting at the chosen weights from one seed, and measures them on test: a row a sampler and choice."""

    setting: Setting
    chosen: tuple[tuple[str, str, float], ...]  # sampler, choice, weight
    seed: int

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(sorted({weight for _, _, weight in self.chosen}))

    def __call__(self, bench: Bench) -> list[Row]:
        setup = bench.setup
        models, seconds = bench.fit(self.setting, self.weights, self.seed)
        rows = []
        for model, weight in zip(models, self.weights, strict=True):
            aim = replace(self.setting.aim(setup.aim), kl_weight=weight)
            evaluator = replace(bench.on_test, pixels=aim.pixels, seed=self.seed)
            fit = _explained(model, evaluator, setup)
            density = _or_none(evaluator.density, model, setup.components)
            samples: dict[str, Row] = {}
            for sampler, choice, own in self.chosen:
                if own != weight:
                    continue
                if sampler not in samples:
                    samples[sampler] = _samples(evaluator, model, density, sampler)
                key = {**asdict(self.setting), "sampler": sampler, "choice": choice, "kl_weight": weight}
                rows.append({**key, "seed": self.seed, **fit, **samples[sampler], "train_seconds": seconds})
        budget = {"epochs": setup.train.epochs, "train_images": len(bench.train), "test_images": len(bench.test)}
        budget |= {"nll_images": min(setup.nll_images, len(bench.test)), "nll_draws": setup.nll_draws}
        return [row | budget for row in rows]


Task = Choose | Measure


def _explained(model: CVAE, evaluator: Evaluator, setup: Setup) -> Row:
    """How well test images are explained, in nats per image; nll of the first of them, one fixed draw if binary."""
    few = replace(evaluator, split=evaluator.split[: setup.nll_images], seed=0)
    terms = evaluator.fit_figures(model)
    fit = {name: terms[name] for name in ("reconstruction", "kl", "elbo", "active_units")}
    return {"bits_per_dimension": None, **few.nll(model, setup.nll_draws), **fit}


def _samples(evaluator: Evaluator, model: CVAE, density: Density | None, sampler: Any) -> Row:
    """The sample metrics; none of a model that diverged, whose codes or samples are beyond measuring."""
    if sampler == "fitted" and density is None:
        return {}
    return _or_none(evaluator.samples, model, density, sampler) or {}


def _or_none(measure: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return measure(*arguments)
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]
        return None


# The files


def read_rows(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table's rows so far; none where there is no file. Raises UserError for a file that is no such table."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} can't be read ({error}): move it away") from None
    if list(table.columns) != list(columns):
        raise UserError(f"{path} has other columns than this version writes: move it away")
    return table


def keep(path: Path, rows: Sequence[Row], columns: Sequence[str], order: Sequence[Setting], setup: str) -> None:
    """Adds rows to the table, which stays whole and sorted whatever stops us."""
    before = read_rows(path, columns)
    new = pd.DataFrame(rows).reindex(columns=list(columns)).assign(setup=setup)
    _write(path, pd.concat([before, new]) if len(before) else new, order)


def forget_outdated(folder: Path, wanted: Sequence[Setting]) -> None:
    """Takes rows from the table whose weight is no longer the one chosen, as more weights were tried since."""
    choices, table = read_rows(folder / CHOICE, CHOICE_COLUMNS), read_rows(folder / TABLE, COLUMNS)
    keys = zip(settings_of(table), table["sampler"], table["choice"], table["kl_weight"], strict=True)
    kept = [
        choice != "tuned" or setting not in wanted or weight == chosen(setting, choices, sampler)
        for setting, sampler, choice, weight in keys
    ]
    if not all(kept):
        _write(folder / TABLE, table[kept], wanted)


def _write(path: Path, table: pd.DataFrame, order: Sequence[Setting]) -> None:
    place = {str(setting): index for index, setting in enumerate(order)}
    # Settings that this run was not asked for (--likelihoods) stay, behind those that it was.
    table = table.assign(_place=[place.get(str(setting), len(place)) for setting in settings_of(table)])
    table = table.sort_values(["_place", *(name for name in KEY if name in table.columns)], kind="stable")
    with replacing(path) as part:
        table.drop(columns="_place").to_csv(part, index=False, float_format="%.6g", lineterminator="\n")


def settings_of(table: pd.DataFrame) -> list[Setting]:
    """The setting of each row."""
    return [Setting(**{name: row[name] for name in SETTING}) for row in table[list(SETTING)].to_dict("records")]


def prepare(folder: Path, setup: Setup) -> str | None:
    """Makes the folder's files those of this set-up; returns a word on what was set aside for that, or None.

    Rows of another set-up go to `aside/`, under its hash, and come back from there when it is asked for again.
    """
    ours, path = setup.digest(), folder / SETUP
    said = None
    before = _setup_of(path)
    if before is None and any((folder / name).exists() for name in (TABLE, CHOICE)):
        raise UserError(f"{folder / TABLE} has no {SETUP} beside it to say of which set-up it is: move it away")
    if before is not None and before["setup"] != ours:
        kept = folder / ASIDE / before["setup"]
        _move(folder, kept)
        _move(folder / ASIDE / ours, folder)
        changed = ", ".join(_changed(before, setup.content()))
        said = f"the rows there were of another set-up ({changed}): they are now in {kept}/"
    write_json(path, {"setup": ours, **setup.content(), "machine": _machine()})
    for name, columns in ((TABLE, COLUMNS), (CHOICE, CHOICE_COLUMNS)):
        if set(read_rows(folder / name, columns)["setup"]) - {ours}:
            raise UserError(f"{folder / name} has rows of another set-up than {SETUP} beside it: move both away")
    return said


def _setup_of(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["setup"], str):
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} says of no set-up: move it away, with the tables beside it") from None
    return content


def _move(origin: Path, target: Path) -> None:
    for name in (TABLE, CHOICE, SETUP):  # the set-up last: without it the rest is refused, not mistaken
        if (origin / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            os.replace(origin / name, target / name)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the keys that differ, `train.epochs`."""
    names = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            names += [f"{key}.{name}" for name in value if old.get(name) != value[name]]
        elif old != value:
            names.append(key)
    return names


def _machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": _cores(), "torch": torch.__version__}


# What is left to do


def to_choose(wanted: Sequence[Setting], choices: pd.DataFrame, setup: Setup) -> list[Choose]:
    """What has not been tried yet of each setting's grid."""
    found = settings_of(choices)
    tasks = []
    for setting in wanted:
        tried = {weight for other, weight in zip(found, choices["kl_weight"], strict=True) if other == setting}
        missing = tuple(weight for weight in setup.grids[setting.likelihood] if weight not in tried)
        if missing:
            tasks.append(Choose(setting, missing))
    return tasks


def chosen(setting: Setting, choices: pd.DataFrame, sampler: str) -> float:
    """The weight of the least frechet on validation, of those that did not collapse, if any.

    Raises UserError where no weight could be measured.
    """
    rows = choices[[other == setting for other in settings_of(choices)]].dropna(subset=[f"{sampler}_frechet"])
    if not len(rows):
        raise UserError(f"{setting} diverged at every weight of its grid: give it others by --weights")
    alive = rows[rows[f"{sampler}_diversity"] >= COLLAPSED_DIVERSITY]
    best = (alive if len(alive) else rows).sort_values([f"{sampler}_frechet", "kl_weight"])
    return float(best["kl_weight"].iloc[0])


def to_measure(
    wanted: Sequence[Setting], choices: pd.DataFrame, table: pd.DataFrame, untuned: Sequence[str], seeds: int
) -> list[Measure]:
    """What is missing in the table: each setting's chosen weights, and weight 1 where it is asked for untuned."""
    columns = (table[name] for name in ("sampler", "choice", "kl_weight", "seed"))
    done = set(zip(settings_of(table), *columns, strict=True))
    tasks = []
    for setting in wanted:
        rows = [(sampler, "tuned", chosen(setting, choices, sampler)) for sampler in SAMPLERS]
        if setting.likelihood in untuned and setting.treatment == "constant":
            rows += [(sampler, "untuned", UNTUNED) for sampler in SAMPLERS]
        for seed in range(MEASURED_SEEDS, MEASURED_SEEDS + seeds):
            missing = tuple(row for row in rows if (setting, *row, seed) not in done)
            if missing:
                tasks.append(Measure(setting, missing, seed))
    return tasks


def _to_measure_in(folder: Path, wanted: Sequence[Setting], untuned: Sequence[str], seeds: int) -> list[Measure]:
    choices, table = read_rows(folder / CHOICE, CHOICE_COLUMNS), read_rows(folder / TABLE, COLUMNS)
    return to_measure(wanted, choices, table, untuned, seeds)


def at_most(wanted: Sequence[Setting], untuned: Sequence[str], seeds: int) -> list[Measure]:
    """What there is to measure where no choice is known yet, and every sampler will want a weight of its own."""
    return [
        Measure(setting, tuple((name, "tuned", float(index)) for index, name in enumerate(names)), seed)
        for setting in wanted
        for names in [(*SAMPLERS, "untuned") if setting.likelihood in untuned else SAMPLERS]
        for seed in range(seeds)
    ]


# The work


def run(
    setup: Setup,
    wanted: Sequence[Setting],
    folder: Path,
    source: Source,
    *,
    seeds: int,
    untuned: Sequence[str],
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Brings both tables of `folder` to what is asked for. Reads test only once every choice is in its file."""
    said = prepare(folder, setup)
    if said:
        say(said)
    ours = setup.digest()
    choosing = to_choose(wanted, read_rows(folder / CHOICE, CHOICE_COLUMNS), setup)
    if not choosing:
        forget_outdated(folder, wanted)
    measuring = [] if choosing else _to_measure_in(folder, wanted, untuned, seeds)
    if not choosing and not measuring:
        say("everything is measured already")
        return
    progress = Progress(Pace.measured(Bench(setup, source), wanted), workers, say)
    progress.reckon(choosing, measuring or at_most(wanted, untuned, seeds))
    for task, rows in work(choosing, setup, source, workers):
        keep(folder / CHOICE, rows, CHOICE_COLUMNS, wanted, ours)
        progress.step(task, rows)
    forget_outdated(folder, wanted)
    measuring = _to_measure_in(folder, wanted, untuned, seeds)
    progress.expect(measuring)
    for task, rows in work(measuring, setup, source, workers):
        keep(folder / TABLE, rows, COLUMNS, wanted, ours)
        progress.step(task, rows)


def work(tasks: Sequence[Task], setup: Setup, source: Source, workers: int) -> Iterator[tuple[Task, list[Row]]]:
    """Each task with its rows, as they get done: here, or by so many processes with a share of the cores each."""
    if workers == 1 or len(tasks) < 2:
        bench = Bench(setup, source)
        for task in tasks:
            yield task, task(bench)
        return
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // workers)
    with ProcessPoolExecutor(
        workers, spawn, initializer=_begin, initargs=(setup, source, threads, os.getpid())
    ) as pool:
        futures = {pool.submit(_do, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # what is under way is not waited for
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_bench: Bench  # of this worker


def _begin(setup: Setup, source: Source, threads: int, parent: int) -> None:
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pick_device("cpu")  # for what it sets in a process
    torch.set_num_threads(threads)
    _bench = Bench(setup, source)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(task: Task) -> list[Row]:
    return task(_bench)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# How long it takes


@dataclass(frozen=True)
class Pace:
    """Seconds of one unit of each part, on as many threads as a worker has."""

    image: Mapping[str, float]  # a training image of one member and epoch, by likelihood, under the standard prior
    prior: Mapping[str, float]  # the factor of each prior
    density: float
    sample: float  # an image of the unseen ones, with one sampler
    nll: float  # one draw of one image
    setup: Setup

    @classmethod
    def measured(cls, bench: Bench, wanted: Sequence[Setting]) -> "Pace":
        """A few steps of each likelihood and prior, and one model's figures on validation."""
        names = list(dict.fromkeys(setting.likelihood for setting in wanted))
        image = {name: _seconds_an_image(bench, Setting(name, "standard")) for name in names}
        priors = {kind: _seconds_an_image(bench, Setting(names[0], kind)) / image[names[0]] for kind in PRIORS[1:]}
        params = bench.setup.train
        few = replace(bench.setup, train_images=4 * params.batch_size, train=replace(params, epochs=1))
        (model,), _ = Bench(few, bench.source).fit(Setting("bernoulli", "standard"), [1.0], CHOICE_SEED)
        evaluator = bench.on_validation
        density, for_density = _timed(lambda: evaluator.density(model, bench.setup.components))
        _, for_samples = _timed(lambda: evaluator.samples(model, density, "fitted"))
        some = bench.validation[:20]
        _, for_nll = _timed(lambda: bound.log_likelihood(model, some, "grey", bench.setup.nll_draws, 0))
        return cls(
            image={str(name): seconds for name, seconds in image.items()},
            prior={"standard": 1.0} | {str(kind): factor for kind, factor in priors.items()},
            density=for_density,
            sample=for_samples / len(bench.validation),
            nll=for_nll / len(some) / bench.setup.nll_draws,
            setup=bench.setup,
        )

    def of(self, task: Task) -> float:
        """Seconds of a task."""
        setup, setting = self.setup, task.setting
        trained = len(task.weights) * setup.train.epochs * setup.train_images
        seconds = trained * self.image[setting.likelihood] * self.prior[setting.prior]
        seconds += len(task.weights) * self.density
        if isinstance(task, Choose):
            return seconds + len(task.weights) * len(SAMPLERS) * setup.validation_images * self.sample
        seconds += len({row[::2] for row in task.chosen}) * setup.test_images * self.sample
        return seconds + len(task.weights) * setup.nll_images * setup.nll_draws * self.nll


def _seconds_an_image(bench: Bench, setting: Setting) -> float:
    """Of one member in a stack of three, from the second of two short epochs."""
    setup = bench.setup
    params, aim = replace(setup.train, epochs=2), setting.aim(setup.aim)
    components = setup.prior_components if setting.prior == "mixture" else 1
    architecture = replace(setup.architecture, prior=setting.prior, prior_components=components)
    models = [build(architecture, 0, setting.likelihood, aim.sigma) for _ in range(3)]
    stack = population.start(models, [1.0] * 3, params, bench.train.images.device)
    seen = bench.train[: 6 * params.batch_size]
    *_, last = population.fit(stack, seen, bench.validation[:10], params, aim)
    return 1 / sum(record.figures["time/images_per_second"] for record in last.values())


def _timed(measure: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = measure()
    return result, time.perf_counter() - began


class Progress:
    """Says what is done and how long the rest will take: by the reckoning at first, then by how it went so far."""

    def __init__(self, pace: Pace, workers: int, say: Callable[[str], None]) -> None:
        self.pace, self.workers, self.say = pace, workers, say
        self.began = time.perf_counter()
        self.done, self.left, self.count, self.total = 0.0, 0.0, 0, 0

    def reckon(self, choosing: Sequence[Choose], measuring: Sequence[Measure]) -> None:
        for name, seconds in self.pace.image.items():
            self.say(f"  {name}: {1 / seconds:,.0f} images/s in training")
        factors = ", ".join(f"{name} × {factor:.1f}" for name, factor in self.pace.prior.items())
        sample = 1000 * self.pace.sample
        self.say(f"  priors: {factors}; a density: {self.pace.density:.1f} s; a sample, measured: {sample:.2f} ms")
        parts = []
        for word, tasks in (("to choose weights on validation", choosing), ("to measure on test", measuring)):
            seconds = sum(map(self.pace.of, tasks))
            members = sum(len(task.weights) for task in tasks)
            parts.append(f"{members} models {word} in {seconds / self.workers / 60:.0f} min")
            self.left, self.total = self.left + seconds, self.total + len(tasks)
        of = "one process" if self.workers == 1 else f"{self.workers} processes"
        self.say(f"reckoned, with {of}: {', at most '.join(parts)}")

    def expect(self, measuring: Sequence[Measure]) -> None:
        """The choice is made: so much is left."""
        self.left, self.total = sum(map(self.pace.of, measuring)), self.count + len(measuring)
        self.say(f"every choice is written; test is read from here on: {len(measuring)} settings and seeds to measure")

    def step(self, task: Task, rows: Sequence[Row]) -> None:
        cost = self.pace.of(task)
        self.done, self.left, self.count = self.done + cost, max(self.left - cost, 0), self.count + 1
        seconds = self.left * (time.perf_counter() - self.began) / self.done
        left = f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
        self.say(f"{self.count}/{self.total}  {task.setting}: {_news(task, rows)}  ({left})")


def _news(task: Task, rows: Sequence[Row]) -> str:
    if isinstance(task, Measure):
        parts = [f"{row['sampler']} {row.get('frechet', math.nan):.3g} at β = {row['kl_weight']:g}" for row in rows]
        return f"seed {task.seed}, frechet {', '.join(dict.fromkeys(parts))}"
    parts = []
    for sampler in SAMPLERS:
        values = {row["kl_weight"]: row.get(f"{sampler}_frechet", math.nan) for row in rows}
        parts.append(f"{sampler} {', '.join(f'{value:.3g}' for value in values.values())}")
    weights = ", ".join(f"{row['kl_weight']:g}" for row in rows)
    return f"frechet {'; '.join(parts)} at β = {weights}"


# The command


def grids(options: Sequence[str], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The weights of each likelihood: GRIDS, changed by `0.3,1,3` (of all) and `bernoulli=0.3,1,3` (of one)."""
    found: dict[str, tuple[float, ...]] = dict(GRIDS)
    for option in options:
        name, _, text = option.rpartition("=")
        if name and name not in LIKELIHOODS:
            raise UserError(f"--weights {option}: {name!r} is no likelihood ({', '.join(LIKELIHOODS)})")
        try:
            weights = tuple(sorted({float(f"{float(part):.6g}") for part in text.split(",")}))  # as the table has them
            if not all(0 < weight < math.inf for weight in weights):
                raise ValueError
        except ValueError:
            raise UserError(f"--weights {option}: give weights above 0 with commas between, such as 0.3,1,3") from None
        found |= dict.fromkeys([name] if name else LIKELIHOODS, weights)
    return {name: found[name] for name in names}


def read_setup(options: argparse.Namespace) -> Setup:
    """params.yaml's model and training, but for the budget that the options give."""
    for path, command in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {command}` first")
    model = load(ModelParams, "model")
    if options.hidden:
        model = replace(model, encoder_hidden=(options.hidden,) * 2, decoder_hidden=(options.hidden,) * 2)
    budget = {"epochs": options.epochs, "batch_size": options.batch_size, "compile": "never"}
    return Setup(
        architecture=resolve(replace(model, prior="standard")),
        prior_components=model.prior_components,
        aim=replace(load(ObjectiveParams, "objective"), likelihood="bernoulli", pixels="grey"),
        train=replace(load(TrainParams, "train"), **budget),
        components=load_key(Components, "sample", "components"),
        grids=grids(options.weights, tuple(LIKELIHOODS)),
        train_images=options.train_images,
        validation_images=options.validation_images,
        test_images=options.test_images,
        nll_images=options.nll_images,
        nll_draws=options.nll_draws,
        hashes={"data": sha256(PREPARED), "judge": sha256(JUDGE)},
    )


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="all of it in small, into .quick/")
    parser.add_argument("--schedules", action="store_true", help=f"also {', '.join(TREATMENTS)}, with bernoulli")
    parser.add_argument("--likelihoods", nargs="+", choices=LIKELIHOODS, default=list(LIKELIHOODS), metavar="NAME")
    parser.add_argument("--untuned", nargs="*", choices=LIKELIHOODS, default=["sigma_optimal"], metavar="NAME",
                        help="likelihoods to measure at weight 1 as well (default: sigma_optimal)")  # fmt: skip
    parser.add_argument("--weights", action="append", default=[], metavar="[NAME=]W,W,…",
                        help="KL weights to choose from, of one likelihood or of all")  # fmt: skip
    for name, value, help_text in (
        ("seeds", 3, "of the measured rows"),
        ("hidden", 256, "units of each hidden layer; 0: as params.yaml has it"),
        ("epochs", 3, "of each training"),
        ("batch-size", 128, "images a step"),
        ("train-images", 50_000, "seen in each epoch"),
        ("validation-images", 2500, "that the choice is made on"),
        ("test-images", 5000, "that the table is measured on"),
        ("nll-images", 500, "of test, whose nll is taken"),
        ("nll-draws", 64, "k of the nll"),
    ):
        kind = int if name == "hidden" else count
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=f"{help_text} (default: {value})")
    parser.add_argument("--workers", type=count, help="processes (default: one for each core, on a GPU one)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the tables (default: benchmarks)")
    return parser


def main() -> None:
    arguments = parser()
    if arguments.parse_known_args()[0].quick:
        arguments.set_defaults(**QUICK)
    options = arguments.parse_args()
    device = pick_device(load_key(str, "train", "device"))
    setup = read_setup(options)
    workers = options.workers or (min(_cores(), 8) if device.type == "cpu" else 1)
    torch.set_num_threads(max(1, _cores() // workers))
    wanted = settings(options.likelihoods, schedules=options.schedules)
    options.out.mkdir(parents=True, exist_ok=True)
    lock = Path(".workers") / "treatments.lock"
    lock.parent.mkdir(exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            run(
                setup, wanted, options.out, Files(device), seeds=options.seeds, untuned=options.untuned,
                workers=workers, say=_say,
            )  # fmt: skip
    except Timeout:
        raise UserError("another process measures treatments in this folder: wait for it, or end it") from None
    except KeyboardInterrupt:
        _say("the same command goes on from here")
        raise
    print(f"{options.out / TABLE} and {options.out / CHOICE} written")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    console.run(main)

"""Every likelihood × prior × sampler at its best KL weight, with one budget for all: benchmarks/treatments.csv.

    make treatments                                      # both of these
    python -m benchmarks.treatments                      # measures: half an hour or more on 2 quiet cores
    python -m benchmarks.treatments_report               # writes the tables and the figure of docs/lab/treatments.md

    python -m benchmarks.treatments --quick              # a small version into .quick/: a minute or two
    python -m benchmarks.treatments --schedules          # the KL schedules too
    python -m benchmarks.treatments --epochs 20 --train-images 55000 --hidden 512 --weights 0.1,0.3,1,3

Each setting is a study of this project, over a grid of KL weights and on validation images: treatments.choice.csv.
When all studies are finished, the chosen weights are trained with other seeds and measured on test: treatments.csv.
The test split is not read before. Studies and measurements are kept in .treatments/, so the same command continues
after an interruption, and with a longer grid it only tries the new weights. treatments.json has what all depends on.
"""

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import write_json, write_table
from pipeline.base.params import digest, load, plain
from pipeline.base.paths import PREPARED
from pipeline.data.splits import Pixels, Split
from pipeline.measure.bound import WIDEST
from pipeline.measure.evaluator import COLLAPSED_DIVERSITY, QUICK_TRAIN, Evaluator
from pipeline.model import likelihood, prior
from pipeline.model.cvae import CVAE, ModelParams, build, resolve
from pipeline.model.likelihood import LIKELIHOODS, names_on
from pipeline.model.samples import SAMPLERS
from pipeline.stages.saved import load_splits
from pipeline.stages.study.files import read_bench, read_setting
from pipeline.study.queue import Study, open_study
from pipeline.study.search import search
from pipeline.study.space import Setting
from pipeline.training import population

FOLDER, QUICK_FOLDER, KEPT = Path("benchmarks"), Path(".quick"), Path(".treatments")
TABLE, CHOICE, SETUP = "treatments.csv", "treatments.choice.csv", "treatments.json"

PRIORS: tuple[prior.Name, ...] = ("standard", "class", "mixture")
SCHEDULES = ("warmup", "cyclical", "capacity", "free_bits")  # of --schedules
FREE_BITS = 0.5  # nats per latent dimension
SIGMA_VAE, UNTUNED = "sigma_optimal", 1.0  # said to need no tuning: it is measured at the evidence lower bound too
LOWEST, HIGHEST = 1e-4, 1e4  # KL weights that a grid may have
CHOICE_SEED, FIRST_SEED = 0, 1  # the seed of the choice is not measured
OF_SAMPLES = ("class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage")
OF_FIT = ("nll", "bits_per_dimension", "reconstruction", "kl", "elbo", "active_units")
SETTING = ("likelihood", "prior", "pixels", "treatment")
COLUMNS = (
    *SETTING, "sampler", "choice", "kl_weight", "seed", *OF_FIT, *OF_SAMPLES, "train_seconds", "epochs",
    "train_images", "test_images", "nll_images", "nll_draws", "setup",
)  # fmt: skip

# The more a likelihood weighs the pixels, the higher its best KL weight. The report marks weights at a grid's end.
GRIDS: dict[str, tuple[float, ...]] = {
    "bernoulli": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "continuous_bernoulli": (1.0, 3.0, 10.0, 30.0, 90.0, 300.0, 900.0),
    "gaussian": (1.0, 3.0, 10.0, 30.0, 90.0),
    "sigma_learned": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "sigma_optimal": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "discretized_logistic": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}
SIZES = {  # name: (default, with --quick, what it is)
    "seeds": (3, 2, "of the measured rows"),
    "hidden": (256, 64, "units of each of two hidden layers"),
    "epochs": (3, 1, "of each training"),
    "batch_size": (128, 32, "images a step"),
    "train_images": (50_000, 2000, "for training"),
    "validation_images": (2500, 500, "for the choice"),
    "test_images": (5000, 500, "for the table"),
    "nll_images": (500, 50, "of the test images, for the nll"),
    "nll_draws": (64, 16, "k of the nll"),
}


@dataclass(frozen=True)
class Treatment:
    """What one row of the table is about, apart from the sampler."""

    likelihood: likelihood.Name
    prior: prior.Name
    pixels: Pixels = "grey"
    treatment: str = "constant"  # of the KL weight

    def __str__(self) -> str:
        return " ".join([self.likelihood, self.prior, self.pixels, self.treatment])


def treatments(names: Sequence[likelihood.Name], *, schedules: bool) -> list[Treatment]:
    """Each likelihood with each prior, on grey pixels, and on binary ones where the likelihood is a probability."""
    found = []
    for name in names:
        for pixels in ("grey", "binary") if name in names_on("binary") else ("grey",):
            found += [Treatment(name, kind, pixels) for kind in PRIORS]
    return [*found, *(Treatment("bernoulli", "standard", treatment=name) for name in SCHEDULES if schedules)]


@dataclass(frozen=True)
class Budget:
    """What all treatments share. setting: a study's, whose likelihood, prior, pixels and schedule each one replaces."""

    setting: Setting
    grids: Mapping[str, tuple[float, ...]]
    prior_components: int
    sizes: Mapping[str, int]

    def of(self, treatment: Treatment) -> Setting:
        """The study of one treatment: every weight of its grid, trained at once."""
        components = self.prior_components if treatment.prior == "mixture" else 1
        count, free = len(self.grids[treatment.likelihood]), treatment.treatment == "free_bits"
        schedule: Any = "constant" if free else treatment.treatment
        own = {"likelihood": treatment.likelihood, "pixels": treatment.pixels, "schedule": schedule}
        return replace(
            self.setting,
            tune=replace(self.setting.tune, trials=count, population=count),
            architecture=replace(self.setting.architecture, prior=treatment.prior, prior_components=components),
            aim=replace(self.setting.aim, **own, free_bits=FREE_BITS if free else None),
        )

    def content(self) -> dict[str, Any]:
        """What treatments.json holds: everything that the figures depend on, and the machine."""
        setting = self.setting
        values: dict[str, Any] = {name: plain(getattr(setting, name)) for name in ("architecture", "aim", "train")}
        sizes = {name: size for name, size in self.sizes.items() if name != "seeds"}
        values |= {"components": setting.components, **sizes, "free_bits": FREE_BITS, "hashes": setting.hashes}
        values["nll_widest"] = WIDEST  # of the bound's proposal: without it, tables are from before it was widened
        machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        return {"setup": digest(values), **values, "machine": machine}


Row = dict[str, Any]


def searched(budget: Budget, treatment: Treatment, train: Split, evaluator: Evaluator, kept: Path) -> Study:
    """The finished study of a treatment."""
    setting = budget.of(treatment)
    url = f"sqlite:///{kept.resolve() / 'optuna.db'}"
    study = open_study(setting, kept, create=True, environment={"OPTUNA_STORAGE": url})
    for weight in budget.grids[treatment.likelihood]:
        study.inner.enqueue_trial({"kl_weight": weight}, skip_if_exists=True)
    for _ in search(study, train, replace(evaluator, pixels=treatment.pixels)):
        pass
    return study


def tried(treatment: Treatment, study: Study) -> list[Row]:
    """A row of treatments.choice.csv for each weight of a study."""
    rows = []
    table = study.table().drop_duplicates("kl_weight", keep="last").sort_values("kl_weight")  # the last of its tries
    for trial in table.to_dict("records"):
        row = {**asdict(treatment), "kl_weight": trial["kl_weight"], "seed": CHOICE_SEED}
        row |= {name: trial.get(f"validation/{name}") for name in ("reconstruction", "kl", "elbo")}
        for sampler in SAMPLERS:
            for name in ("frechet", "class_accuracy", "diversity"):
                row[f"{sampler}_{name}"] = trial.get(f"validation/{sampler}/{name}")
        rows.append(row)
    return rows


def chosen(rows: pd.DataFrame, sampler: str) -> float:
    """The weight with the lowest frechet, of one treatment's rows; a collapsed model only where all are.

    Raises UserError where no weight could be measured.
    """
    measured = rows.dropna(subset=[f"{sampler}_frechet"])
    if not len(measured):
        raise UserError(f"{rows.iloc[0]['likelihood']} diverged at every weight of its grid: give others by --weights")
    alive = measured[measured[f"{sampler}_diversity"] >= COLLAPSED_DIVERSITY]
    best = (alive if len(alive) else measured).sort_values([f"{sampler}_frechet", "kl_weight"])
    return float(best["kl_weight"].iloc[0])


def measured(
    budget: Budget,
    treatment: Treatment,
    weights: Mapping[tuple[str, str], float],
    seed: int,
    train: Split,
    evaluator: Evaluator,
) -> Iterator[Row]:
    """Trains at the chosen weights, by (sampler, choice), from one seed. A row for each, measured by `evaluator`."""
    setting, sizes = budget.of(treatment), budget.sizes
    different = sorted(set(weights.values()))
    params = replace(setting.train, seed=seed)
    models = [build(setting.architecture, seed, setting.aim.likelihood, setting.aim.sigma) for _ in different]
    members, seconds = population.start(models, different, params, train.labels.device), 0.0
    for records in population.fit(members, train, evaluator.split[:100], params, setting.aim):
        seconds += records[0].figures["time/seconds"] / len(different)
    evaluator = replace(evaluator, pixels=treatment.pixels, seed=seed)
    few = replace(evaluator, split=evaluator.split[: sizes["nll_images"]], seed=0)
    budgeted = {"epochs": params.epochs, "train_images": len(train), "test_images": len(evaluator.split)}
    budgeted |= {name: sizes[name] for name in ("nll_images", "nll_draws")}
    for member, weight in enumerate(different):
        model = members.model(member).eval().requires_grad_(requires_grad=False)
        fit = evaluator.fit_figures(model) | few.nll(model, sizes["nll_draws"], weight)
        for (sampler, choice), own in weights.items():
            if own == weight:
                key = {**asdict(treatment), "sampler": sampler, "choice": choice, "kl_weight": weight, "seed": seed}
                figures = fit | sample_figures(evaluator, model, setting.components, sampler)
                finite = {name: value for name, value in figures.items() if name in COLUMNS and math.isfinite(value)}
                yield key | finite | {"train_seconds": seconds} | budgeted


def sample_figures(evaluator: Evaluator, model: CVAE, components: int, sampler: Any) -> dict[str, float]:
    """The sample metrics; none of a model that diverged."""
    try:
        density = evaluator.density(model, components) if sampler == "fitted" else None
        figures = evaluator.samples(model, density, [sampler])
        return {name.removeprefix(f"{sampler}/"): value for name, value in figures.items()}
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]
        return {}


def run(
    budget: Budget,
    wanted: Sequence[Treatment],
    train: Split,
    evaluator: Evaluator,
    read_test: Callable[[], Split],
    out: Path,
    kept: Path,
) -> None:
    """Writes the three files into `out`. Calls `read_test` only when every weight is chosen and written."""
    setup = budget.content()
    write_json(out / SETUP, setup)
    studies, rows = dict[Treatment, Study](), list[Row]()
    for number, treatment in enumerate(wanted, 1):
        print(f"{number}/{len(wanted)} choosing   {treatment}", file=sys.stderr, flush=True)
        studies[treatment] = searched(budget, treatment, train, evaluator, kept)
        rows += tried(treatment, studies[treatment])
    choice = pd.DataFrame(rows).assign(setup=setup["setup"])
    write_table(out / CHOICE, choice, float_format="%.6g")
    evaluator, rows = replace(evaluator, split=read_test()), []
    for number, (treatment, study) in enumerate(studies.items(), 1):
        print(f"{number}/{len(wanted)} measuring  {treatment}", file=sys.stderr, flush=True)
        own = choice[(choice[list(SETTING)] == list(asdict(treatment).values())).all(axis=1)]
        weights = {(str(sampler), "tuned"): chosen(own, sampler) for sampler in SAMPLERS}
        if treatment.likelihood == SIGMA_VAE and treatment.treatment == "constant":
            weights |= {(str(sampler), "untuned"): UNTUNED for sampler in SAMPLERS}
        of_treatment: list[Row] = []
        for seed in range(FIRST_SEED, FIRST_SEED + budget.sizes["seeds"]):
            key = f"measured by {setup['setup']}, seed {seed}: {sorted(weights.items())}"
            if key not in study.inner.user_attrs:
                found = list(measured(budget, treatment, weights, seed, train, evaluator))
                study.inner.set_user_attr(key, found)
            of_treatment += study.inner.user_attrs[key]
        rows += sorted(of_treatment, key=lambda row: [row[name] for name in ("sampler", "choice", "kl_weight", "seed")])
    table = pd.DataFrame(rows).assign(setup=setup["setup"]).reindex(columns=list(COLUMNS))
    write_table(out / TABLE, table, float_format="%.6g")


def grids(options: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The weights of each likelihood: GRIDS, changed by `0.3,1,3` (all) and `bernoulli=0.3,1,3` (one)."""
    found = dict(GRIDS)
    for option in options:
        name, _, text = option.rpartition("=")
        if name and name not in LIKELIHOODS:
            raise UserError(f"--weights {option}: {name!r} is not one of {', '.join(LIKELIHOODS)}")
        try:
            weights = tuple(sorted({float(part) for part in text.split(",")}))
        except ValueError:
            weights = ()
        if not weights or not all(LOWEST <= weight <= HIGHEST for weight in weights):
            raise UserError(f"--weights {option}: give weights from {LOWEST} to {HIGHEST:g}, such as 0.3,1,3")
        found |= dict.fromkeys([name] if name else LIKELIHOODS, weights)
    return found


def read_budget(options: argparse.Namespace) -> Budget:
    """params.yaml's model and training, with the sizes that the options give."""
    sizes = {name: getattr(options, name) for name in SIZES}
    setting, model = read_setting(), load(ModelParams, "model")
    hidden = (options.hidden,) * 2
    architecture = resolve(replace(model, prior="standard", encoder_hidden=hidden, decoder_hidden=hidden))
    tune = replace(
        setting.tune, study=None, trials=1, epochs=options.epochs, population=1, kl_weight=(LOWEST, HIGHEST),
        learning_rate=None, latent_size=None, conditioning=None, objectives=("frechet",), sampler_of_latents="fitted",
        least_class_accuracy=None, seeds=1, seed=CHOICE_SEED,
    )  # fmt: skip
    train = replace(
        setting.train, epochs=options.epochs, batch_size=options.batch_size, seed=CHOICE_SEED, compile="never"
    )
    aim = replace(setting.aim, kl_weight=UNTUNED, likelihood="bernoulli", pixels="grey")  # replaced by each treatment
    seen = {name: str(sizes[name]) for name in ("train_images", "validation_images")}
    hashes = {**setting.hashes, **seen}
    setting = replace(setting, tune=tune, architecture=architecture, aim=aim, train=train, hashes=hashes)
    return Budget(setting, grids(options.weights), model.prior_components, sizes)


def some(split: Split, count: int) -> Split:
    """`count` random rows, the same ones at every call."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    return split[order.to(split.labels.device)]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version, into .quick/")
    parser.add_argument("--schedules", action="store_true", help=f"also {', '.join(SCHEDULES)}, with bernoulli")
    parser.add_argument("--likelihoods", nargs="+", choices=LIKELIHOODS, default=list(LIKELIHOODS), metavar="NAME")
    parser.add_argument("--weights", action="append", default=[], metavar="[NAME=]W,W,…",
                        help="KL weights to choose from, of one likelihood or of all")  # fmt: skip
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"the folder of the tables ({FOLDER})")
    for name, (value, _, words) in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=value, metavar="N", help=f"{words} ({value})")
    return parser


def main() -> None:
    arguments = parser()
    if arguments.parse_known_args()[0].quick:
        small = {name: quick for name, (_, quick, _) in SIZES.items()}
        arguments.set_defaults(**small, weights=["0.3,3"], out=QUICK_FOLDER)
    options = arguments.parse_args()
    budget = read_budget(options)
    train, evaluator = read_bench(budget.setting)
    train, validation = train[: options.train_images], some(evaluator.split, options.validation_images)
    options.out.mkdir(parents=True, exist_ok=True)
    run(
        budget,
        treatments(options.likelihoods, schedules=options.schedules),
        train,
        replace(evaluator, split=validation, train=train[:QUICK_TRAIN]),
        lambda: some(load_splits(PREPARED, "test", device=train.labels.device)[0], options.test_images),
        options.out,
        KEPT,
    )
    print(f"{options.out / TABLE} and {options.out / CHOICE} written")


if __name__ == "__main__":
    console.run(main)

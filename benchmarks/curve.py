"""One network for every KL weight against one for each: ten weights, several seeds, validation.

    python -m benchmarks.curve --seeds 3     # about fifty CPU minutes
    python -m benchmarks.curve --cost        # three minutes: what a training of each kind costs, their epochs in turn

For each seed, trains ten dedicated models as one population with the section `train`, and the multi-rate network with
the section `weight`, and measures both at the ten weights. Keeps all figures in --kept, from which a later call goes
on, and prints the tables of docs/lab/curve.md.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import load, load_key
from pipeline.base.paths import JUDGE, PREPARED
from pipeline.measure.evaluator import QUICK_TRAIN, Evaluator
from pipeline.model import cvae
from pipeline.model.cvae import CVAE, ModelParams, resolve
from pipeline.model.density import Components
from pipeline.stages.saved import load_judges, load_splits
from pipeline.study.race import compare, hull
from pipeline.training import population
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ELBO
from pipeline.weight import curve
from pipeline.weight.curve import WeightParams

WEIGHTS = [float(f"{weight:.2g}") for weight in np.geomspace(0.01, 10, 10)]
ONE, EACH = "one network", "dedicated"
UNREAD = 100  # validation images of an epoch, whose figures nothing reads
Models = Iterator[tuple[float, CVAE]]


class Bench:
    """The splits and the sections of params.yaml that both kinds of training need."""

    def __init__(self) -> None:
        self.weight, self.model = load(WeightParams, "weight"), load(ModelParams, "model")
        self.params, self.components = load(TrainParams, "train"), load_key(Components, "sample", "components")
        device = pick_device(self.params.device)
        self.train, self.validation = load_splits(PREPARED, "train", "validation", device=device)
        judges = load_judges(JUDGE, device)
        self.evaluator = Evaluator(judges, self.validation, self.train[:QUICK_TRAIN], "grey", 0)

    def dedicated(self, seed: int) -> Models:
        """Ten models that share first weights, batches and noise."""
        params = replace(self.params, seed=seed)
        models = [cvae.build(resolve(self.model), seed) for _ in WEIGHTS]
        members = population.start(models, WEIGHTS, params, self.train.labels.device)
        for _ in population.fit(members, self.train, self.validation[:UNREAD], params, ELBO):
            print(f"{EACH}, seed {seed}: epoch {members.epoch}", flush=True)
        yield from ((weight, members.model(row).eval()) for row, weight in enumerate(WEIGHTS))

    def one(self, seed: int) -> Models:
        """The multi-rate network at each weight."""
        params = replace(curve.recipe(self.weight, self.params), seed=seed)
        model = curve.build(self.model, ELBO, self.weight, seed)
        training = start(model, params, self.train.labels.device)
        for record in fit(
            training, self.train, self.validation[:UNREAD], params, ELBO, curve.drawn_view(model, "grey")
        ):
            print(f"{ONE}, seed {seed}: epoch {record.epoch}", flush=True)
        yield from ((weight, training.model.at(weight)) for weight in WEIGHTS)

    def rows(self, models: Models, seed: int) -> list[dict[str, float]]:
        evaluator = self.evaluator.reseeded(seed)
        return [curve.point(model, weight, evaluator, self.components).row for weight, model in models]


def trained(seeds: int, kept: Path) -> pd.DataFrame:
    """A row for each kind, seed and weight; what a former call kept is not trained again."""
    bench, table = Bench(), pd.read_csv(kept) if kept.exists() else pd.DataFrame({"kind": [], "seed": []})
    for seed in range(seeds):
        for kind, models in ((EACH, bench.dedicated), (ONE, bench.one)):
            if not ((table["kind"] == kind) & (table["seed"] == seed)).any():
                found = pd.DataFrame(bench.rows(models(seed), seed)).assign(kind=kind, seed=seed)
                table = pd.concat([table, found], ignore_index=True)
                kept.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(kept, index=False)
    return table


def objective(table: pd.DataFrame) -> "pd.Series[float]":
    """D + βR, nats per image: what a network of this weight is trained to lower."""
    return table["validation/reconstruction"] + table["kl_weight"] * table["validation/kl"]


def differences(table: pd.DataFrame) -> list[list[str]]:
    """For each weight D + βR of both kinds, and how much higher the one network's is with the same seed."""
    values = table.assign(value=objective(table)).pivot_table(
        index="kl_weight", columns=["kind", "seed"], values="value"
    )
    values = values.dropna()
    one, each = values[ONE], values[EACH]
    return [
        [f"{weight:g}", *map(plus_minus, (each.loc[weight], one.loc[weight], one.loc[weight] - each.loc[weight]))]
        for weight in values.index
    ]


def best_weights(table: pd.DataFrame) -> list[list[str]]:
    """For each sampler and kind, the weight with the lowest frechet, and those that can't be told apart from it."""
    rows = []
    for kind, part in table.groupby("kind"):
        means = part.groupby("kl_weight", as_index=False).mean(numeric_only=True)
        for sampler, lowest in curve.best_weights(means).items():
            figure = f"validation/{sampler}/frechet"
            seeds = part.pivot_table(index="kl_weight", columns="seed", values=figure)
            compared = compare(np.log(seeds.to_numpy()), len(seeds) - 1, 1)
            (low, high), _ = hull(seeds.index.tolist(), compared.worse.tolist())
            at = part[part["kl_weight"] == seeds.index[compared.best]][figure]
            rows.append([sampler, str(kind), f"{lowest:g}", f"{low:g} to {high:g}", plus_minus(at)])
    return sorted(rows, key=lambda row: row[0])


def plus_minus(seeds: "pd.Series[float]") -> str:
    """The mean over seeds ± its standard error."""
    return f"{seeds.mean():.2f} ±{seeds.std() / math.sqrt(len(seeds)):.2f}"


def cost(bench: Bench, rounds: int) -> str:
    """CPU seconds of an epoch of each kind, in turn, so that other work on the machine slows both."""
    device, weight = bench.train.labels.device, bench.weight
    plain, many = start(cvae.build(resolve(bench.model), 0), bench.params, device), curve.recipe(weight, bench.params)
    told = start(curve.build(bench.model, ELBO, weight, 0), many, device)
    splits = bench.train, bench.validation
    running = {
        EACH: fit(plain, *splits, bench.params, ELBO),
        ONE: fit(told, *splits, many, ELBO, curve.drawn_view(told.model, "grey")),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in running}
    for _ in range(rounds):
        for kind, epochs in running.items():
            began = time.process_time()
            next(epochs)
            seconds[kind].append(time.process_time() - began)
    middle = {kind: statistics.median(every) for kind, every in seconds.items()}
    ratios = [one / each for one, each in zip(seconds[ONE], seconds[EACH], strict=True)]
    share = statistics.median(ratios) * weight.epochs / bench.params.epochs
    return (
        f"CPU seconds of an epoch: {EACH} {middle[EACH]:.2f}, {ONE} {middle[ONE]:.2f}; ratio {min(ratios):.2f} to "
        f"{max(ratios):.2f}. {weight.epochs} epochs of the one cost {share:.2f} trainings of {bench.params.epochs}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", type=Path, default=Path("reports/curve.csv"))
    parser.add_argument("--cost", type=int, metavar="EPOCHS", nargs="?", const=5, help="measure this alone")
    options = parser.parse_args()
    if options.cost:
        print(cost(Bench(), options.cost))
        return
    table = trained(options.seeds, options.kept)
    console.table("D + βR, nats per image", ("β", EACH, ONE, "difference"), differences(table))
    console.table("Lowest frechet", ("sampler", "of", "best β", "not told apart", "frechet there"), best_weights(table))


if __name__ == "__main__":
    console.run(main)

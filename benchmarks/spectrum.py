"""What the spectrum expects against trainings to the end: kl and active latents at several KL weights.

    python -m benchmarks.spectrum --epochs 20 --seed 0 0.3 1 3 10     # six CPU minutes

Trains the strong model at the weights given, and measures it on validation. The weight warms up over the first half:
from a cold start, a model near the collapse learns for many epochs that its latents could be of use. Adds a row for
each weight to docs/lab/spectrum.csv, with the seconds that the whole population took.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import PREPARED
from pipeline.data.splits import CLASSES, Split, to_unit
from pipeline.model.cvae import CVAE, PRESETS, build
from pipeline.stages.saved import load_splits
from pipeline.training import population
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ELBO, Schedule
from pipeline.weight.spectrum import Spectrum, of_split

TABLE = Path("docs/lab/spectrum.csv")
ACTIVE = 0.01  # variance of a latent's mean, from which on it counts as active (Burda 2016)


@torch.no_grad()
def measured(model: CVAE, split: Split) -> dict[str, float]:
    """kl of all images and of each class, and the active latents of all and in the mean of classes."""
    q = model.encode(to_unit(split.images), split.labels)
    kl = model.prior().kl(q, q.mu, split.labels).sum(1)
    of_class = [split.labels == digit for digit in range(CLASSES)]
    figures = {
        "kl": float(kl.mean()),
        "active_units": int((q.mu.var(0) > ACTIVE).sum()),
        "active_units_of_a_class": sum(int((q.mu[rows].var(0) > ACTIVE).sum()) for rows in of_class) / CLASSES,
    }
    return figures | {f"kl_{digit}": float(kl[rows].mean()) for digit, rows in enumerate(of_class)}


def expected(spectrum: Spectrum, weight: float) -> dict[str, float]:
    return {
        "kl_of_rule": replace(spectrum, excess=None).rate(weight),
        "expected_kl": spectrum.rate(weight),
        "expected_active_units": spectrum.active(weight),
        "expected_active_units_of_a_class": float(spectrum.actives(weight).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=float, nargs="+")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--cold", action="store_true", help="no warm-up of the weight")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    train, validation = load_splits(PREPARED, "train", "validation")
    params = replace(load(TrainParams, "train"), epochs=chosen.epochs, seed=chosen.seed)
    schedule: Schedule = "constant" if chosen.cold else "warmup"
    aim = replace(ELBO, schedule=schedule, schedule_share=0.5)
    architecture = PRESETS["strong"]
    spectrum = of_split(train, aim.likelihood, aim.pixels, aim.sigma, architecture.latent_size)
    models = [build(architecture, params.seed, aim.likelihood) for _ in chosen.weights]
    members = population.start(models, chosen.weights, params, train.images.device)
    began = time.perf_counter()
    for records in population.fit(members, train, validation, params, aim):
        kls = {f"{chosen.weights[row]:g}": record.figures["validation/kl"] for row, record in records.items()}
        print(f"epoch {members.epoch}: kl by weight {console.figures(kls)}", flush=True)
    seconds = round(time.perf_counter() - began)
    about = {"epochs": chosen.epochs, "schedule": schedule, "seed": chosen.seed, "seconds": seconds}
    rows = [
        {"kl_weight": weight, **about, **expected(spectrum, weight)} | measured(members.model(row), validation)
        for row, weight in enumerate(chosen.weights)
    ]
    pd.DataFrame(rows).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False, float_format="%.4g")


if __name__ == "__main__":
    console.run(main)

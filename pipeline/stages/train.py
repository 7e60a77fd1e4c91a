"""Trains the CVAE into models/cvae.safetensors. The default run: about a minute and a half on two cores.

A killed run goes on after its last epoch, and ends with the same weights as an undisturbed one.
"""

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device, pick_precision
from pipeline.base.files import sha256, write_json, write_table
from pipeline.base.params import digest, flat, load, load_key, plain
from pipeline.base.paths import HISTORY, MODEL, PREPARED, RUN
from pipeline.model import samples
from pipeline.model.cvae import ModelParams, build, resolve
from pipeline.model.density import Components, fit_density
from pipeline.stages.recording import recording, watched
from pipeline.stages.saved import load_splits, save_cvae
from pipeline.tracking import runs as tracking
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ObjectiveParams


def main() -> None:
    # Everything is resolved, checked and printed before the work starts.
    model_params, aim = load(ModelParams, "model"), load(ObjectiveParams, "objective")
    params, components = load(TrainParams, "train"), load_key(Components, "sample", "components")
    architecture, device = resolve(model_params), pick_device(params.device)
    saved = {"model": plain(model_params), "objective": plain(aim), "train": plain(params)}
    saved |= {"sample": {"components": components}}
    split, validation = load_splits(PREPARED, "train", "validation", device=device)
    hashes, precision = {"data": sha256(PREPARED), "params": digest(saved)}, pick_precision(params.precision, device)
    notes = {"device": str(device), "precision": str(precision).removeprefix("torch."), "group": "trainings"}
    training = start(build(architecture, params.seed, aim.likelihood, aim.sigma), params, device)
    size = sum(weight.numel() for weight in training.model.parameters())
    usual, kinds = ("mlp", "bernoulli", "standard"), (architecture.architecture, aim.likelihood, architecture.prior)
    words = " ".join([model_params.preset, *(kind for kind in kinds if kind not in usual)])
    about = f"{words} CVAE of {size:,} weights, β = {aim.kl_weight:g}, on {device} in {notes['precision']}"
    print(about)

    with recording(
        "train", training, params.epochs, hashes, notes,
        name=f"{words} β={aim.kl_weight:g}", experiment=load(tracking.TrackingParams, "tracking").experiment,
        about=about, params=flat(saved), resolved=flat({"model": architecture}),
    ) as (run, rows, follow):  # fmt: skip
        records = watched(fit(training, split, validation, params, aim), params.epochs, aim, run)
        follow(records, lambda: samples.preview(training.model))
        density = fit_density(training.model, split, aim.pixels, components, params.seed)
        save_cvae(MODEL, training.model, density, saved)
        write_table(HISTORY, pd.DataFrame(rows))
        run.artifact(HISTORY)
        run.samples(samples.strip(training.model, density))
        run.model(MODEL)
        write_json(RUN, run.pointer() | {"hashes": hashes})


if __name__ == "__main__":
    console.run(main)

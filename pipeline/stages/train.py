"""Trains the CVAE into models/cvae.safetensors. The default run: about a minute and a half on two cores.

A killed run goes on after its last epoch, and ends with the same weights as an undisturbed one.
"""

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device, pick_precision
from pipeline.base.files import replacing, sha256, write_json
from pipeline.base.params import digest, flat, load, load_key, plain
from pipeline.base.paths import HISTORY, MODEL, PREPARED, RUN
from pipeline.model import samples
from pipeline.model.cvae import ModelParams, build, resolve
from pipeline.model.density import Components, fit_density
from pipeline.stages.recording import recording
from pipeline.stages.saved import load_splits, save_cvae
from pipeline.stages.watching import watched
from pipeline.tracking import runs as tracking
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ObjectiveParams


def main() -> None:
    # Everything is resolved, checked and printed before the work starts.
    model_params, aim = load(ModelParams, "model"), load(ObjectiveParams, "objective")
    params, components = load(TrainParams, "train"), load_key(Components, "sample", "components")
    experiment = load(tracking.TrackingParams, "tracking").experiment
    architecture, device = resolve(model_params), pick_device(params.device)
    sections = {"model": architecture, "objective": aim, "train": params}
    saved = {"model": plain(model_params), "objective": plain(aim), "train": plain(params)}
    saved["sample"] = {"components": components}
    split, validation = load_splits(PREPARED, "train", "validation", device=device)
    hashes = {"data": sha256(PREPARED), "params": digest(saved)}
    notes = {"device": str(device), "precision": str(pick_precision(params.precision, device)).removeprefix("torch.")}
    training = start(build(architecture, params.seed, aim.likelihood, aim.sigma), params, device)
    size = sum(weight.numel() for weight in training.model.parameters())
    usual = {"mlp", "bernoulli", "standard"}
    unusual = [word for word in (architecture.architecture, aim.likelihood, architecture.prior) if word not in usual]
    words = " ".join([model_params.preset, *unusual])
    print(f"{words} CVAE of {size:,} weights, β = {aim.kl_weight:g}, on {device} in {notes['precision']}")

    with recording(
        "train", training, params.epochs, hashes, notes,
        name=f"{words} β={aim.kl_weight:g}", experiment=experiment, params=flat(sections),
    ) as (run, rows, follow):  # fmt: skip
        records = watched(fit(training, split, validation, params, aim), params.epochs, aim, run)
        follow(records, lambda: samples.preview(training.model))
        density = fit_density(training.model, split, aim.pixels, components, params.seed)
        save_cvae(MODEL, training.model, density, saved)
        with replacing(HISTORY) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
        run.artifact(HISTORY)
        run.model(MODEL)
        write_json(RUN, run.pointer() | {"hashes": hashes})


if __name__ == "__main__":
    console.run(main)

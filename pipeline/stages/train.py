"""Trains the CVAE into models/cvae.safetensors. The default run: about a minute and a half on two cores.

A run that was killed goes on from its last epoch to the very weights it would have had: its state lies in
.checkpoints/, outside DVC's outputs (which DVC deletes before a stage starts), under a hash of data and params.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pipeline import checkpoint, console, data, sample, tracking
from pipeline.device import pick_device, pick_precision
from pipeline.files import home, replacing, sha256, write_json
from pipeline.model import ModelParams, build, resolve
from pipeline.objective import ObjectiveParams
from pipeline.params import digest, flat, load, load_key, plain
from pipeline.train import TrainParams, fit, start

PREPARED = Path("data/prepared/mnist.safetensors")
MODEL = Path("models/cvae.safetensors")
RUN = Path("models/run.json")
HISTORY = Path("reports/history.csv")


def main() -> None:
    # Everything is resolved, checked and printed before any work starts.
    model_params, aim = load(ModelParams, "model"), load(ObjectiveParams, "objective")
    params, components = load(TrainParams, "train"), load_key(sample.Components, "sample", "components")
    experiment = load(tracking.TrackingParams, "tracking").experiment
    architecture, device = resolve(model_params), pick_device(params.device)
    sections = {"model": architecture, "objective": aim, "train": params}
    saved = {"model": plain(model_params), "objective": plain(aim), "train": plain(params)}
    saved["sample"] = {"components": components}
    split, validation = (split.to(device) for split in data.load(PREPARED, "train", "validation"))
    hashes = {"data": sha256(PREPARED), "params": digest(saved)}
    notes = {"device": str(device), "precision": str(pick_precision(params.precision, device)).removeprefix("torch.")}

    training = start(build(architecture, params.seed, aim.likelihood, aim.sigma), params, device)
    size = sum(weight.numel() for weight in training.model.parameters())
    usual = {"mlp", "bernoulli", "standard"}
    unusual = [word for word in (architecture.architecture, aim.likelihood, architecture.prior) if word not in usual]
    words = " ".join([model_params.preset, *unusual])
    print(f"{words} CVAE of {size:,} weights, β = {aim.kl_weight:g}, on {device} in {notes['precision']}")
    unfinished = home(Path.cwd()) / ".checkpoints" / f"{digest(hashes)}.safetensors"
    before = checkpoint.resume_training(unfinished, training)
    if before:
        print(f"going on after epoch {training.epoch}, where this very run was interrupted")
    rows = before["history"] if before else []

    name = f"{words} β={aim.kl_weight:g}"
    tags = {"data_hash": hashes["data"], "params_hash": hashes["params"], **notes}
    with (
        console.bar("train", params.epochs, training.epoch) as bar,
        tracking.resume(before["run"], before["uri"], name, experiment, tags=tags, warn=console.warn)
        if before
        else tracking.start(name, experiment, params=flat(sections), tags=tags, warn=console.warn) as run,
    ):
        run.dataset("mnist", hashes["data"], str(PREPARED), "train")
        for record in fit(training, split, validation, params, aim):
            figures = asdict(record)
            rows.append(figures)
            bar.show(record.epoch, console.figures(headline(figures)))
            run.metrics({name: value for name, value in figures.items() if name != "step"}, record.step)
            run.image("samples_prior", sample.preview(training.model), record.step)
            unfinished_run = {"history": rows, "run": run.run_id, "uri": run.uri}
            checkpoint.save_training(unfinished, training, unfinished_run)

        density = sample.fit_density(training.model, split, aim.pixels, components, params.seed)
        checkpoint.save_model(MODEL, training.model, density.tensors(), saved)
        with replacing(HISTORY) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
        run.artifact(HISTORY)
        run.model(MODEL)
        write_json(RUN, {"run_id": run.run_id, "tracking_uri": run.uri, "hashes": hashes})
    unfinished.unlink(missing_ok=True)


def headline(record: Mapping[str, float]) -> dict[str, float]:
    """What a person watches while it trains."""
    watched = {name: record[name] for name in ("loss", "reconstruction", "kl")}
    return watched | {"images/s": record["images_per_second"]}


if __name__ == "__main__":
    console.run(main)

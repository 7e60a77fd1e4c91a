"""Trains the completion model and the deterministic network beside it. About three minutes on two cores."""

from typing import Any

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device, pick_precision
from pipeline.base.files import sha256, write_json, write_table
from pipeline.base.params import digest, flat, load, load_key, plain
from pipeline.base.paths import COMPLETER, COMPLETION_HISTORY, COMPLETION_RUN, NETWORK, PREPARED
from pipeline.completion.model import AIM, CompletionParams, build
from pipeline.completion.views import training_view
from pipeline.stages.recording import recording
from pipeline.stages.saved import load_splits, save_completer
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Precision, TrainParams, fit, start
from pipeline.training.graph import Compile


def main() -> None:
    params = load(CompletionParams, "completion")
    name, precision = load_key(str, "train", "device"), load_key(Precision, "train", "precision")
    compiling = load_key(Compile, "train", "compile")
    experiment = f"{load(tracking.TrackingParams, 'tracking').experiment}-completion"
    device = pick_device(name)
    split, validation = load_splits(PREPARED, "train", "validation", device=device)
    hashes = {"data": sha256(PREPARED), "params": digest(plain(params), precision, compiling)}
    notes = {"device": str(device), "precision": str(pick_precision(precision, device)).removeprefix("torch.")}
    view = training_view(params.drawn, params.label_shown)
    shared: dict[str, Any] = {
        "batch_size": params.batch_size, "learning_rate": params.learning_rate, "warmup": params.warmup,
        "ema": params.ema, "seed": params.seed, "device": name, "precision": precision, "compile": compiling,
        "clip": None, "augment": 0, "augment_until": 1,
    }  # fmt: skip

    histories = []
    # The CVAE comes last, because the evaluation continues the last run.
    todo = (("network", 0, params.network_epochs, NETWORK), ("cvae", params.latent_size, params.epochs, COMPLETER))
    for model, latent_size, epochs, path in todo:
        recipe = TrainParams(epochs=epochs, **shared)
        training = start(build(latent_size, params.hidden, params.seed), recipe, device)
        size = sum(weight.numel() for weight in training.model.parameters())
        print(f"completion {model} of {size:,} weights, on {device} in {notes['precision']}")
        about = {"name": f"completion {model}", "experiment": experiment, "params": flat({"completion": params})}
        about["about"] = f"The completion {model}: {size:,} weights, trained for {epochs} epochs."
        with recording(model, training, epochs, hashes, notes, **about) as (run, rows, follow):
            follow(fit(training, split, validation, recipe, AIM, view), None)
            save_completer(path, training.model)
            run.model(path, "completions")
        histories.append(pd.DataFrame(rows).assign(model=model))
    write_table(COMPLETION_HISTORY, pd.concat(histories))
    write_json(COMPLETION_RUN, run.pointer() | {"hashes": hashes})


if __name__ == "__main__":
    console.run(main)

"""Trains the small model that a fresh clone draws from, in half precision: docs/results/small/, two minutes.

dvc repro judge && python recipes/small.py

Its figures on test, beside it, are those of the file, so after the weights were rounded.
"""

from dataclasses import replace

import torch

from pipeline.base import console
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import JUDGE, PREPARED, SMALL
from pipeline.measure.evaluator import EvaluateParams, Evaluator, summary
from pipeline.model.cvae import ModelParams, build, resolve
from pipeline.model.density import Components, Density, fit_density
from pipeline.stages.saved import load_cvae, load_judges, load_splits, save_cvae
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ObjectiveParams


def main() -> None:
    model_params = replace(load(ModelParams, "model"), encoder_hidden=(256,), decoder_hidden=(192, 192))
    aim, params = load(ObjectiveParams, "objective"), load(TrainParams, "train")
    components, measured = load_key(Components, "sample", "components"), load(EvaluateParams, "evaluate")
    device = torch.device("cpu")  # so that the file is the same on a machine with a GPU
    train, validation, test = load_splits(PREPARED, "train", "validation", "test")

    training = start(build(resolve(model_params), params.seed, aim.likelihood, aim.sigma), params, device)
    with console.bar("train", params.epochs) as bar:
        for record in fit(training, train, validation, params, aim):
            bar(record.epoch, f"elbo {record.figures['validation/elbo']:.2f}")
    density = fit_density(training.model, train, aim.pixels, components, params.seed)
    half = Density(*(tensor.half() for tensor in density))
    sections = {"model": model_params, "objective": aim, "train": params}
    saved = {name: plain(section) for name, section in sections.items()} | {"sample": {"components": components}}
    save_cvae(SMALL, training.model.half(), half, saved)

    model, density, _ = load_cvae(SMALL)
    evaluator = Evaluator(load_judges(JUDGE), test, train, aim.pixels, measured.seed, measured.sample_sets)
    found = evaluator.evaluate(model, density, measured.nll_draws, aim.kl_weight)
    about = {"split": "test", "kl_weight": aim.kl_weight, "likelihood": aim.likelihood}
    protocol = about | evaluator.protocol(model, measured.nll_draws, aim.kl_weight)
    write_json(SMALL.with_name("metrics.json"), summary(found, protocol))
    print(f"{SMALL}: frechet {found.figures['fitted/frechet']:.2f}, nll {found.figures['nll']:.1f}")


if __name__ == "__main__":
    console.run(main)

"""Trains one CVAE for all KL weights into models/curve.safetensors, and measures it at each. About three minutes."""

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device, pick_precision
from pipeline.base.files import sha256, write_table
from pipeline.base.params import digest, flat, load, load_key, plain
from pipeline.base.paths import CURVE, CURVE_FIGURE, CURVE_TABLE, JUDGE, PREPARED, SPECTRUM
from pipeline.data.splits import Pixels
from pipeline.measure.evaluator import QUICK_TRAIN, Evaluator
from pipeline.model import likelihood
from pipeline.model.cvae import ModelParams
from pipeline.model.density import Components
from pipeline.model.samples import SAMPLERS
from pipeline.show.curve import curve_figure
from pipeline.show.style import save
from pipeline.stages.recording import recording
from pipeline.stages.saved import load_json, load_judges, load_splits, save_curve
from pipeline.tracking.runs import TrackingParams
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import Sigma
from pipeline.weight import curve


def main() -> None:
    weight, model_params = load(curve.WeightParams, "weight"), load(ModelParams, "model")
    params, experiment = curve.recipe(weight, load(TrainParams, "train")), load(TrackingParams, "tracking").experiment
    name, pixels = load_key(likelihood.Name, "objective", "likelihood"), load_key(Pixels, "objective", "pixels")
    aim = curve.aim_of(name, load_key(Sigma, "objective", "sigma"), pixels)
    components, device = load_key(Components, "sample", "components"), pick_device(params.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    evaluator = Evaluator(load_judges(JUDGE, device), validation, train[:QUICK_TRAIN], pixels, params.seed)
    expected = pd.DataFrame(load_json(SPECTRUM, "run `dvc repro spectrum` first").get("expected"))
    real = evaluator.ceiling.figures  # raises UserError where the split is too small, before anything is trained
    saved = {"model": plain(model_params), "objective": plain(aim), "weight": plain(weight)}
    hashes = {"data": sha256(PREPARED), "params": digest(saved, plain(params))}
    notes = {"device": str(device), "precision": str(pick_precision(params.precision, device)).removeprefix("torch.")}
    training = start(curve.build(model_params, aim, weight, params.seed), params, device)
    print("one CVAE for β from {:g} to {:g}, on {device} in {precision}".format(*weight.range, **notes))
    said = "One CVAE for every KL weight; a step of `curve/…` is a weight, from the lowest on."
    about = {"experiment": experiment, "params": flat({"weight": weight, "train": params}), "about": said}
    tags = notes | {"group": "curve"}
    with recording("curve", training, params.epochs, hashes, tags, name="curve", **about) as (run, _, follow):
        follow(fit(training, train, validation, params, aim, curve.drawn_view(training.model, pixels)), None)
        points = list(curve.measured(training.model, curve.measured_weights(weight), evaluator, components))
        save_curve(CURVE, training.model, saved | {"data": hashes["data"]}, curve.densities(points))
        for step, point in enumerate(points):
            run.metrics({f"curve/{name}": value for name, value in point.row.items()}, step)
        write_table(CURVE_TABLE, table := pd.DataFrame([point.row for point in points]))
        run.image("curve", save(curve_figure(table, real, expected), CURVE_FIGURE), 0)
        for sampler in SAMPLERS:
            run.image(f"samples_{sampler}_by_weight", curve.sheet_of(points, sampler), 0)
        run.artifact(CURVE_TABLE)
    print(f"{CURVE_TABLE} and {CURVE_FIGURE} written: `cvae curve` shows them")


if __name__ == "__main__":
    console.run(main)

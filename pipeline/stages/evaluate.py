"""Measures models/cvae.safetensors on the test split: figures, tables, pictures. About a minute on two cores.

Whatever was chosen, was chosen on validation: of the stages that train and measure the CVAE this one alone reads the
test split (of benchmarks/, the judge's bars and the table of treatments do, after its weights are chosen).
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, write_json
from pipeline.base.params import load, load_key, parse, plain
from pipeline.base.paths import DOCTOR, FIGURES, HEADLINE, HISTORY, JUDGE, METRICS, MODEL, PER_CLASS, PREPARED, RUN
from pipeline.data.splits import CLASSES, Split, to_unit
from pipeline.measure import bound, doctor, judge, metrics
from pipeline.measure.doctor import Case, Diagnosis
from pipeline.measure.evaluator import EvaluateParams, Evaluation, Evaluator, nested, with_split
from pipeline.model import samples
from pipeline.model.cvae import CVAE
from pipeline.model.density import Density, posteriors
from pipeline.show import model as figures
from pipeline.show.style import save
from pipeline.stages.saved import load_cvae, load_judge, load_splits
from pipeline.tracking import runs as tracking
from pipeline.training.objective import ObjectiveParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 10
DIGIT = 5  # whose traversal is shown
# What `dvc metrics diff` and `dvc exp show` compare, after the KL weight.
HEADLINE_FIGURES = (
    "fitted/frechet", "prior/frechet", "fitted/class_accuracy", "prior/class_accuracy", "fitted/diversity",
    "prior/diversity", "nll", "kl", "reconstruction",
)  # fmt: skip


def main() -> None:
    params = load(EvaluateParams, "evaluate")
    sampler, shown = load_key(samples.Sampler, "sample", "sampler"), load_key(samples.Shown, "sample", "shown")
    device = pick_device(load_key(str, "train", "device"))
    experiment = load(tracking.TrackingParams, "tracking").experiment
    for path in (RUN, HISTORY):
        if not path.exists():
            raise UserError(f"{path} not found: train a model first, with `dvc repro train`")
    saved = load_cvae(MODEL, device)
    aim = parse(ObjectiveParams, saved.params["objective"], f"{MODEL}: objective")
    model, density = saved.model, saved.density
    reader = partial(judge.read, load_judge(JUDGE, device))
    train, test = load_splits(PREPARED, "train", "test", device=device)

    trained = json.loads(RUN.read_text(encoding="utf-8"))
    name = f"evaluation β={aim.kl_weight:g}"  # only where the training's run is gone
    with tracking.resume(trained["run_id"], trained["tracking_uri"], name, experiment, warn=console.warn) as run:
        evaluator = Evaluator(reader, test, train, aim.pixels, params.seed)
        result = evaluator.evaluate(model, density, params.nll_draws)
        protocol = {
            "split": "test",
            "images": len(test),
            "kl_weight": aim.kl_weight,
            "likelihood": aim.likelihood,
            "prior": model.architecture.prior,
            "pixels": aim.pixels,
            "nll_draws": params.nll_draws,
            "neighbours": metrics.NEIGHBOURS,
            "seed": params.seed,
        }
        write_json(METRICS, nested(result.figures) | {"protocol": protocol})
        headline = {name: result.figures[name] for name in HEADLINE_FIGURES}
        write_json(HEADLINE, {"kl_weight": aim.kl_weight} | headline)
        with replacing(PER_CLASS) as part:
            result.per_class.to_csv(part, index=False)
        diagnosis = diagnose(result, model, aim)
        write_json(DOCTOR, {"verdict": diagnosis.verdict, **plain(diagnosis)})
        FIGURES.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(model, density, test, aim, result, sampler, shown):
            with replacing(FIGURES / f"{name}.png") as part:
                save(figure, part)

        run.metrics(with_split("test", result.figures), step=0, of_model=True)
        run.table(result.per_class, "per_class")
        run.tags({"collapsed": str(result.figures["collapsed"]).lower(), "doctor": diagnosis.verdict})
        for path in (METRICS, PER_CLASS, DOCTOR, *sorted(FIGURES.iterdir())):
            run.artifact(path, "figures" if path.parent == FIGURES else None)
    print(f"{METRICS}, {PER_CLASS}, {DOCTOR} and {FIGURES}/ written; the doctor's verdict: {diagnosis.verdict}")


def diagnose(result: Evaluation, model: CVAE, aim: ObjectiveParams) -> Diagnosis:
    """What is wrong with the model, by the figures of its evaluation and its epochs."""
    rows = pd.read_csv(HISTORY).to_dict("records")
    history = [{str(name): float(value) for name, value in row.items()} for row in rows]
    shape = model.architecture
    return doctor.diagnose(Case(aim, result.figures, history, shape.prior, shape.conditioning))


def pictures(
    model: CVAE,
    density: Density,
    test: Split,
    aim: ObjectiveParams,
    result: Evaluation,
    sampler: samples.Sampler,
    shown: samples.Shown,
) -> Iterator[tuple[str, "Figure"]]:
    """Every figure with its name. Codes come from fixed seeds, so that two runs' pictures compare."""
    labels = samples.rows_of_digits(COLUMNS).to(test.labels.device)
    drawn = {name: samples.sample(model, density, labels, name, seed=0) for name in samples.SAMPLERS}
    first = torch.cat([test.of_class(digit).images[:COLUMNS] for digit in range(CLASSES)])
    sheets = {"real": samples.sheet(to_unit(first), COLUMNS)}
    sheets |= {name: samples.sheet(images, COLUMNS) for name, images in drawn.items()}
    notes = {name: _note(result.figures, name) for name in sheets}
    title = f"Samples of each digit, β = {aim.kl_weight:g}, {sampler} sampler{', draws' if shown == 'draw' else ''}"
    asked = samples.sample(model, density, labels, sampler, 0, shown)
    yield "samples", figures.sample_grid(samples.sheet(asked, COLUMNS), title)
    yield "samplers", figures.sampler_grids(sheets, notes)

    mu, _ = posteriors(model, test, aim.pixels)
    yield "latent_space", figures.latent_space(mu.cpu().numpy(), test.labels.cpu().numpy())

    few = torch.cat([(test.labels == digit).nonzero()[: COLUMNS // 2, 0] for digit in range(CLASSES)])
    inputs, outputs = to_unit(test.images[few]), samples.decode(model, mu[few], test.labels[few])
    yield "reconstructions", figures.reconstructions(samples.sheet(torch.stack([inputs, outputs], 1), COLUMNS))

    values = torch.linspace(-3, 3, 11, device=mu.device)
    dimensions = bound.active_dimensions(mu).tolist()
    rows = [samples.traverse(model, DIGIT, dimension, values) for dimension in dimensions]
    moved = samples.sheet(torch.cat(rows), len(values)) if rows else None
    title = f"Digit {DIGIT} along each active dimension of z, from −3 to 3"
    yield "traversal", figures.traversal(moved, [f"z{dimension}" for dimension in dimensions], title)

    yield "curves", figures.curves(pd.read_csv(HISTORY))
    yield "per_class", figures.per_class(result.per_class)


def _note(figures: dict[str, float], sampler: str) -> str:
    names = {"accuracy": "class_accuracy", "diversity": "diversity", "Fréchet": "frechet"}
    return "   ".join(f"{word} {figures[f'{sampler}/{name}']:.3g}" for word, name in names.items())


if __name__ == "__main__":
    console.run(main)

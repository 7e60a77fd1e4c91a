"""Measures models/cvae.safetensors: figures, tables and pictures. Two minutes on two cores.

What models are compared and advised by is measured on validation. Test is measured last, for metrics.json alone. Only
this stage and evaluate_completion read it.
"""

from pipeline.base import console, paths
from pipeline.base.device import pick_device
from pipeline.base.files import write_json, write_table
from pipeline.base.params import load, load_key, parse, plain
from pipeline.measure.doctor import Case, diagnose
from pipeline.measure.evaluator import HEADLINE_FIGURES, EvaluateParams, Evaluation, Evaluator, summary, with_split
from pipeline.measure.sheets import sheets
from pipeline.model.samples import Sampler, Shown
from pipeline.show.model import evaluation_figures
from pipeline.show.style import save_all
from pipeline.stages.saved import REMEDY, load_cvae, load_judges, load_pointer, load_splits, load_table
from pipeline.tracking import runs as tracking
from pipeline.training.objective import ObjectiveParams


def main() -> None:
    params, device = load(EvaluateParams, "evaluate"), pick_device(load_key(str, "train", "device"))
    sampler, shown = load_key(Sampler, "sample", "sampler"), load_key(Shown, "sample", "shown")
    experiment = load(tracking.TrackingParams, "tracking").experiment
    history, trained = load_table(paths.HISTORY, REMEDY["cvae"]), load_pointer(paths.RUN)
    model, density, all_params = load_cvae(paths.MODEL, device)
    aim = parse(ObjectiveParams, all_params["objective"], f"{paths.MODEL}: objective")
    train, *splits = load_splits(paths.PREPARED, "train", "validation", "test", device=device)
    judges, k, beta = load_judges(paths.JUDGE, device), params.nll_draws, aim.kl_weight
    how = ", ".join(f"{key} {value}" for key, value in plain(params).items())
    with tracking.add_to(trained, f"evaluation β={beta:g}", experiment, how=how) as run:
        found: dict[str, Evaluation] = {}
        for name, images, path in zip(("validation", "test"), splits, (paths.VALIDATION, paths.METRICS), strict=True):
            evaluator = Evaluator(judges, images, train, aim.pixels, params.seed, params.sample_sets)
            with console.bar(name, 100) as bar:
                found[name] = evaluator.evaluate(model, density, k, beta, lambda part, what: bar(int(100 * part), what))
            about = {"split": name, "kl_weight": beta, "likelihood": aim.likelihood}
            write_json(path, summary(found[name], about | evaluator.protocol(model, k, beta)))
        figures, per_class, _ = found["validation"]
        named, of_test = (with_split(name, each.figures) for name, each in found.items())
        write_json(paths.HEADLINE, {"kl_weight": beta} | {name: figures[name] for name in HEADLINE_FIGURES})
        write_table(paths.PER_CLASS, per_class)
        epochs = [dict(zip(history.columns, row, strict=True)) for row in history.to_numpy().tolist()]
        diagnosis = diagnose(Case(aim, figures, epochs, model.architecture.prior, model.architecture.conditioning))
        write_json(paths.DOCTOR, {"verdict": diagnosis.verdict, **plain(diagnosis)})
        pictures = sheets(model, density, splits[0], aim.pixels, sampler, shown)
        save_all(evaluation_figures(pictures, figures, per_class, history, beta), paths.FIGURES)
        new = {name: value for name, value in (named | of_test).items() if name not in history}  # train recorded those
        run.metrics(new, int(history["step"].iloc[-1]), of_model=True)
        run.table(per_class, "per_class")
        run.evaluated({name: each.figures for name, each in found.items()}, diagnosis.verdict, "figures/samplers.png")
        for path in (paths.VALIDATION, paths.METRICS, paths.PER_CLASS, paths.DOCTOR, *paths.FIGURES.glob("*.png")):
            run.artifact(path, "figures" if path.parent == paths.FIGURES else None)
    print(f"{paths.VALIDATION}, {paths.METRICS} and others written; the doctor's verdict: {diagnosis.verdict}")


if __name__ == "__main__":
    console.run(main)

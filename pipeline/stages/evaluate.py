"""Measures models/cvae.safetensors on the test split: figures, tables, pictures. About a minute on two cores.

Only this stage and evaluate_completion read the test split. Every choice was made on validation.
"""

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import replacing, write_json
from pipeline.base.params import load, load_key, parse, plain
from pipeline.base.paths import DOCTOR, FIGURES, HEADLINE, HISTORY, JUDGE, METRICS, MODEL, PER_CLASS, PREPARED, RUN
from pipeline.measure.doctor import Case, diagnose
from pipeline.measure.evaluator import HEADLINE_FIGURES, EvaluateParams, Evaluator, nested, with_split
from pipeline.measure.sheets import sheets
from pipeline.model.samples import Sampler, Shown
from pipeline.show.model import evaluation_figures
from pipeline.show.style import save_all
from pipeline.stages.saved import load_cvae, load_history, load_judges, load_pointer, load_splits
from pipeline.tracking import runs as tracking
from pipeline.training.objective import ObjectiveParams


def main() -> None:
    params, device = load(EvaluateParams, "evaluate"), pick_device(load_key(str, "train", "device"))
    sampler, shown = load_key(Sampler, "sample", "sampler"), load_key(Shown, "sample", "shown")
    experiment = load(tracking.TrackingParams, "tracking").experiment
    history, trained = load_history(HISTORY), load_pointer(RUN)
    model, density, all_params = load_cvae(MODEL, device)
    aim = parse(ObjectiveParams, all_params["objective"], f"{MODEL}: objective")
    train, test = load_splits(PREPARED, "train", "test", device=device)
    evaluator = Evaluator(load_judges(JUDGE, device), test, train, aim.pixels, params.seed)
    name = f"evaluation β={aim.kl_weight:g}"  # of a new run, if the training's own is gone
    how = ", ".join(f"{key} {value}" for key, value in plain(params).items())
    with tracking.add_to(trained, name, experiment, how=how) as run, console.bar("evaluate", 100) as bar:
        figures, per_class = evaluator.evaluate(
            model, density, params.nll_draws, aim.kl_weight, lambda share, what: bar(round(95 * share), what)
        )
        about = {"split": "test", "kl_weight": aim.kl_weight, "likelihood": aim.likelihood}
        about |= evaluator.protocol(model, params.nll_draws, aim.kl_weight)
        write_json(METRICS, {**nested(figures), "protocol": about})
        write_json(HEADLINE, {"kl_weight": aim.kl_weight} | {name: figures[name] for name in HEADLINE_FIGURES})
        with replacing(PER_CLASS) as part:
            per_class.to_csv(part, index=False)
        epochs = [dict(zip(history.columns, row, strict=True)) for row in history.to_numpy().tolist()]
        diagnosis = diagnose(Case(aim, figures, epochs, model.architecture.prior, model.architecture.conditioning))
        write_json(DOCTOR, {"verdict": diagnosis.verdict, **plain(diagnosis)})
        bar(95, "pictures")
        pictures = sheets(model, density, test, aim.pixels, sampler, shown)
        save_all(evaluation_figures(pictures, figures, per_class, history, aim.kl_weight), FIGURES)
        run.metrics(with_split("test", figures), step=0, of_model=True)
        run.table(per_class, "per_class")
        run.tags({"collapsed": str(figures["collapsed"]).lower(), "doctor": diagnosis.verdict})
        for path in (METRICS, PER_CLASS, DOCTOR, *sorted(FIGURES.glob("*.png"))):
            run.artifact(path, "figures" if path.parent == FIGURES else None)
        bar(100, "done")
    print(f"{METRICS}, {PER_CLASS}, {DOCTOR} and {FIGURES}/ written; the doctor's verdict: {diagnosis.verdict}")


if __name__ == "__main__":
    console.run(main)

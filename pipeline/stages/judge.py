"""Trains the two judges, the classifiers that measure samples. A minute and a half on two cores."""

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import JUDGE, JUDGE_REPORT, PREPARED
from pipeline.measure.judge import JudgeParams, Judges, build, epochs_of_both, fit_both
from pipeline.stages.saved import load_splits, save_judges


def main() -> None:
    params, device = load(JudgeParams, "judge"), pick_device(load_key(str, "train", "device"))
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    judges = Judges(*(build(params.seed).to(device) for _ in Judges._fields))
    # Their accuracy on test stands in reports/metrics.json: the test split is for evaluate alone to read.
    best = dict.fromkeys(Judges._fields, 0.0)
    with console.bar("judges", epochs_of_both(params)) as progress:
        for done, (name, record) in enumerate(fit_both(judges, train, validation, params), 1):
            best[name] = max(best[name], record.accuracy)
            figures = console.figures({"loss": record.loss, "validation accuracy": record.accuracy})
            progress(done, f"{name}: {figures}")
    save_judges(JUDGE, judges, plain(params))
    write_json(JUDGE_REPORT, {name: {"validation_accuracy": accuracy} for name, accuracy in best.items()})
    read = " and ".join(f"{accuracy:.2%} (the {name} one)" for name, accuracy in best.items())
    print(f"{JUDGE}: the judges read {read} of the validation images right")


if __name__ == "__main__":
    console.run(main)

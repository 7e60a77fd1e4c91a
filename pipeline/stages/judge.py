"""Trains the two judges, the classifiers that measure samples. About two minutes on two cores."""

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import JUDGE, JUDGE_REPORT, PREPARED
from pipeline.measure.judge import JudgeParams, Judges, build, fit
from pipeline.stages.saved import load_splits, save_judges


def main() -> None:
    params, device = load(JudgeParams, "judge"), pick_device(load_key(str, "train", "device"))
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    judges = Judges(*(build(params.seed).to(device) for _ in Judges._fields))
    # Their accuracy on test stands in reports/metrics.json: the test split is for evaluate alone to read.
    found: dict[str, dict[str, float]] = {}
    for name, judge in judges._asdict().items():
        accuracies = []
        with console.bar(f"{name} judge", params.epochs) as progress:
            for record in fit(judge, train, validation, params, tolerant=name == "tolerant"):
                accuracies.append(record.accuracy)
                progress(record.epoch, console.figures({"loss": record.loss, "validation accuracy": record.accuracy}))
        found[name] = {"validation_accuracy": max(accuracies)}
    save_judges(JUDGE, judges, plain(params))
    write_json(JUDGE_REPORT, found)
    read = " and ".join(f"{own['validation_accuracy']:.2%} (the {name} one)" for name, own in found.items())
    print(f"{JUDGE}: the judges read {read} of the validation images right")


if __name__ == "__main__":
    console.run(main)

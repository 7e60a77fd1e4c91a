"""Trains the judge, the classifier that measures samples. About a minute on two cores."""

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import JUDGE, JUDGE_REPORT, PREPARED
from pipeline.measure import judge
from pipeline.stages.saved import load_splits, save_judge


def main() -> None:
    params, device = load(judge.JudgeParams, "judge"), pick_device(load_key(str, "train", "device"))
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    network = judge.build(params.seed).to(device)
    accuracies = []
    with console.bar("judge", params.epochs) as progress:
        for record in judge.fit(network, train, validation, params):
            accuracies.append(record.accuracy)
            progress(record.epoch, console.figures({"loss": record.loss, "validation accuracy": record.accuracy}))
    save_judge(JUDGE, network, plain(params))
    # Its accuracy on test stands in reports/metrics.json: the test split is for evaluate alone to read.
    write_json(JUDGE_REPORT, {"validation_accuracy": max(accuracies)})
    print(f"{JUDGE}: {max(accuracies):.2%} of the validation images read right")


if __name__ == "__main__":
    console.run(main)

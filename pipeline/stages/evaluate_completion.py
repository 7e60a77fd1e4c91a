"""Measures the completions on the test split: likelihood, error, diversity, a picture. About a minute on two cores."""

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key
from pipeline.base.paths import COMPLETER, COMPLETION, COMPLETION_RUN, COMPLETIONS_FIGURE, JUDGE, NETWORK, PREPARED
from pipeline.completion.measure import NUMBERS, SEVERAL, Estimate, EvaluateCompletionParams, evaluate, examples
from pipeline.completion.views import shares
from pipeline.measure.evaluator import nested, with_split
from pipeline.model.samples import sheet
from pipeline.show.model import completions
from pipeline.show.style import save
from pipeline.stages.saved import load_completer, load_judges, load_pointer, load_splits
from pipeline.tracking import runs as tracking

SHOWN = 5  # completions of each picture


def main() -> None:
    params = load(EvaluateCompletionParams, "evaluate_completion")
    device = pick_device(load_key(str, "train", "device"))
    experiment = f"{load(tracking.TrackingParams, 'tracking').experiment}-completion"
    trained = load_pointer(COMPLETION_RUN, "completion")
    completer, network = load_completer(COMPLETER, device), load_completer(NETWORK, device)
    reader = load_judges(JUDGE, device).tolerant.read
    (test,) = load_splits(PREPARED, "test", device=device)
    images = {"images": len(shares(test, params.images)), "of": len(test)}
    protocol = {"split": "test", **images, "draws": params.draws, "completions": SEVERAL, "seed": params.seed}

    name = "completion evaluation"  # of a new run, where the training's run is gone
    with tracking.add_to(trained, name, experiment) as run:
        figures = evaluate(completer, network, reader, test, params, told)
        write_json(COMPLETION, nested(figures) | {"protocol": protocol})
        rows = {number: examples(completer, network, test, number, SHOWN, params.seed) for number in NUMBERS}
        sheets = {f"{number} of 4 quadrants seen": sheet(images, SHOWN + 3) for number, images in rows.items()}
        run.image("completions", save(completions(sheets, SHOWN), COMPLETIONS_FIGURE), step=0)
        named = {f"completion/{name}": value for name, value in figures.items() if "standard_error" not in name}
        run.metrics(with_split("test", named), step=0, of_model=True)
        for path in (COMPLETION, COMPLETIONS_FIGURE):
            run.artifact(path)
    print(f"{COMPLETION} and {COMPLETIONS_FIGURE} written")


def told(name: str, estimate: Estimate) -> None:
    print(f"{name} {estimate.mean:.2f} ± {estimate.error:.2f} nats per image", flush=True)


if __name__ == "__main__":
    console.run(main)

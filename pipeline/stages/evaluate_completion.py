"""Measures the completions on test: likelihoods, errors, how far they differ, and a picture. About a minute.

It reads so many test images as evaluate_completion.images says; the figures are the same means of all of them, with a
standard error beside each likelihood.
"""

import json
from functools import partial

import numpy as np
import torch

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, write_json
from pipeline.base.params import load, load_key
from pipeline.base.paths import COMPLETER, COMPLETION, COMPLETION_RUN, COMPLETIONS_FIGURE, JUDGE, NETWORK, PREPARED
from pipeline.completion import model as completion
from pipeline.completion.model import EvaluateCompletionParams
from pipeline.data.splits import CLASSES, PIXELS, SIDE, Split
from pipeline.measure import judge
from pipeline.model import samples
from pipeline.show import plots as figures
from pipeline.stages.saved import load_completer, load_judge, load_splits
from pipeline.tracking import runs as tracking

SHOWN = 5  # completions of each picture


def main() -> None:
    params = load(EvaluateCompletionParams, "evaluate_completion")
    device = pick_device(load_key(str, "train", "device"))
    experiment = load(tracking.TrackingParams, "tracking").experiment
    if not COMPLETION_RUN.exists():
        raise UserError(f"{COMPLETION_RUN} not found: run `dvc repro completion/dvc.yaml` first")
    completer, network = load_completer(COMPLETER, device), load_completer(NETWORK, device)
    reader = partial(judge.read, load_judge(JUDGE, device))
    (test,) = load_splits(PREPARED, "test", device=device)

    trained = json.loads(COMPLETION_RUN.read_text(encoding="utf-8"))
    name = "completion evaluation"  # only where the training's run is gone
    with tracking.resume(trained["run_id"], trained["tracking_uri"], name, experiment, warn=console.warn) as run:
        result = completion.evaluate(completer, network, reader, test, params, partial(print, flush=True))
        write_json(COMPLETION, result)
        sheets = {
            f"{number} of 4 quadrants seen": picture(completer, network, test, number, params.seed)
            for number in (1, 2, 3)
        }
        with replacing(COMPLETIONS_FIGURE) as part:
            drawn = figures.save(figures.completions(sheets, SHOWN), part)
        run.image("completions", drawn, step=0)
        named = {f"test_completion_{key}": value for key, value in flatten(result).items()}
        run.metrics(named, step=0, of_model=True)
        for path in (COMPLETION, COMPLETIONS_FIGURE):
            run.artifact(path)
    print(f"{COMPLETION} and {COMPLETIONS_FIGURE} written")


def flatten(result: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """`{"drawn": {"1": {"cvae": 80.0}}}` as `{"drawn_1_cvae": 80.0}`, without the protocol and the standard errors."""
    return {
        f"{group}_{number}_{name}": value
        for group, by_number in result.items()
        if group not in ("protocol", "standard_error")
        for number, values in by_number.items()
        for name, value in values.items()
    }


def picture(
    completer: completion.Completer, network: completion.Completer, test: Split, number: int, seed: int
) -> np.ndarray:
    """A sheet with a row for each digit: what is seen, what the network says, completions, the truth."""
    few = test[torch.stack([(test.labels == digit).nonzero()[0, 0] for digit in range(CLASSES)])]
    images, given = completion.published_view(few, "thresholded", number, label=False, seed=seed)
    source = torch.Generator(images.device).manual_seed(seed)
    seen = completion.seen_part(images, given[:, :PIXELS].view(-1, 1, SIDE, SIDE) != 0)
    columns = [seen.flatten(1), *completion.guesses(network, given, 1, source)]
    columns += [*completion.guesses(completer, given, SHOWN, source), images.flatten(1)]
    return samples.sheet(torch.stack(columns, 1).view(-1, 1, SIDE, SIDE), len(columns))


if __name__ == "__main__":
    console.run(main)

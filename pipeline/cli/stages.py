"""The stages of dvc.yaml as commands, for one stage without DVC."""

import importlib
from collections.abc import Callable

STAGES = {
    "download": "Fetch and check the four files of MNIST.",
    "prepare": "Split MNIST into train, validation and test.",
    "judge": "Train the classifier that measures samples.",
    "train": "Train the CVAE of params.yaml.",
    "evaluate": "Measure the CVAE on test, into reports/.",
    "train_completion": "Train the completion model.",
    "evaluate_completion": "Measure completions on test, into reports/.",
    "tune": "Run the study until tune.trials have finished.",
}


def command(name: str) -> Callable[[], None]:
    """What runs a stage in this process."""

    def run() -> None:
        importlib.import_module(f"pipeline.stages.{name}").main()

    return run

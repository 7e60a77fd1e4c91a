"""Whether a commit's figures come out the same again, and what threads and the compiler change.

    python -m benchmarks.determinism      # some ten minutes on two cores; status 1 if the two clones differ

Two fresh clones of HEAD run `dvc repro evaluate` on MNIST, with fewer epochs and draws. Then one of them trains and
measures again in other ways. Figures are of the validation images. A GPU is not measured.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import write
from pipeline.base.paths import HISTORY, METRICS, MODEL, VALIDATION

ROOT = Path(__file__).parents[1]
SMALL: Mapping[tuple[str, str], Any] = {
    ("train", "epochs"): 1, ("train", "precision"): "float32", ("train", "compile"): "never", ("judge", "epochs"): 1,
    ("evaluate", "nll_draws"): 10, ("evaluate", "sample_sets"): 1,
}  # fmt: skip
WAYS: Mapping[str, tuple[int, str]] = {  # threads, train.compile
    "1 thread, again": (1, "never"),
    "2 threads": (2, "never"),
    "compiled, 1 thread": (1, "always"),
}
FIGURES = ("reconstruction", "kl", "nll", "fitted/frechet", "fitted/class_accuracy")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cvae-") as base:
        first, second = (_clone(Path(base, name)) for name in ("first", "second"))
        left = [_left(folder) for folder in (first, second)]
        identical = left[0] == left[1]
        print(f"two fresh clones: {'identical' if identical else 'DIFFERENT'} weights, histories and figures")
        before = _figures(second)
        rows = [["1 thread", "", *(f"{before[name]:.6g}" for name in FIGURES)]]
        for way, (threads, compiled) in WAYS.items():
            write({("train", "compile"): compiled}, second / "params.yaml")
            for stage in ("train", "evaluate"):
                _run(second, threads, sys.executable, "-m", f"pipeline.stages.{stage}")
            now, same = _figures(second), (second / MODEL).read_bytes() == left[1]["weights"]
            rows.append(
                [way, "the same" if same else "other", *(f"{now[name] - before[name]:+.2g}" for name in FIGURES)]
            )
        console.table("Figures on validation, then their differences", ("way", "weights", *FIGURES), rows)
        print(describe(pick_device("cpu")))
        sys.exit(not identical)


def _clone(folder: Path) -> Path:
    """A clone of HEAD in which the pipeline has run up to `evaluate`, with one thread."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    write(SMALL, folder / "params.yaml")
    _run(folder, 1, "dvc", "repro", "-q", "evaluate")
    return folder


def _run(folder: Path, threads: int, *command: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")}
    environment = kept | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)


def _left(folder: Path) -> dict[str, Any]:
    """What must be equal: all but times, and the ids of runs."""
    import pandas as pd

    history = pd.read_csv(folder / HISTORY)
    return {
        "weights": (folder / MODEL).read_bytes(),
        "history": history.drop(columns=[name for name in history if str(name).startswith("time/")]).to_csv(),
        "figures": [(folder / path).read_text(encoding="utf-8") for path in (VALIDATION, METRICS)],
    }


def _figures(folder: Path) -> dict[str, float]:
    found = json.loads((folder / VALIDATION).read_text(encoding="utf-8"))
    return {name: found[name] if name in found else found["fitted"][name.removeprefix("fitted/")] for name in FIGURES}


if __name__ == "__main__":
    console.run(main)

"""How long whole commands take, and how much memory: what a user waits for. Part of `make bench`.

    python -m benchmarks.commands            # about 5 minutes on 2 cores, after `make repro`
    python -m benchmarks.commands --quick    # only what answers at once
    python -m benchmarks.commands --repro    # the memory of a `dvc repro` in a copy: about 3 minutes

Adds `commands`, or `memory`, to benchmarks/results.json (--quick: results-quick.json), with their bars.
Each figure is of a command as a user types it, imports included, but for the evaluation, whose process prints the time
of the metrics alone. What can't be measured here (no trained model, a project that is not up to date) is left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import machine, results, startup
from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import write

BARS: results.Bars = {
    "accuracy_097_seconds": (30.0, "most"),
    "evaluation_seconds": (30.0, "most"),
    "repro_noop_seconds": (2.0, "most"),
    "help_seconds": (0.5, "most"),
}
BARS_OF_MEMORY: results.Bars = {"repro_peak_gib": (3.0, "most")}
BARS_ON_CUDA: results.Bars = {"study_32_trials_seconds": (60.0, "most")}


def measure(device: torch.device, *, whole: bool) -> dict[str, float | None]:
    """The figures by name; `whole` also those that take a minute."""
    found: dict[str, float | None] = {"help_seconds": _fastest(startup.COMMANDS["cvae --help"])}
    if subprocess.run(["dvc", "status", "--quiet", "dvc.yaml"], check=False, capture_output=True).returncode == 0:
        found["repro_noop_seconds"] = _fastest(startup.COMMANDS["dvc repro, again"])
    else:
        print(
            "`dvc repro` has something to do here: how long it takes with nothing to do is not measured",
            file=sys.stderr,
        )
    if whole:
        found["accuracy_097_seconds"] = _accuracy()
        found["evaluation_seconds"] = _evaluation()
        if device.type == "cuda":
            found["study_32_trials_seconds"] = _study()
    return found


def _fastest(command: list[str]) -> float:
    return min(startup.measured(command)[0] for _ in range(startup.ROUNDS))


def _accuracy() -> float | None:
    """The median of three; None where one does not reach it."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.accuracy"], capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - began)
        print(done.stdout.splitlines()[-1] if done.stdout else done.stderr.strip(), f"after {times[-1]:.1f} s")
        if done.returncode:
            return None
    return sorted(times)[1]


def _evaluation() -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "evaluation.json"
        done = subprocess.run([sys.executable, "-m", "benchmarks.evaluation", "--out", str(out)], check=False)
        return None if done.returncode else json.loads(out.read_text(encoding="utf-8"))["all metrics"]


def _copy(folder: Path) -> None:
    """The project's committed and changed files, its raw data and its judge, without its records."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        if Path(name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / name)
    for name in ("data/raw", "data/prepared", "models"):
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, dirs_exist_ok=True)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def _study() -> float | None:
    """A new study of 32 trials in a copy of the project."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        write({("tune", "trials"): 32}, folder / "params.yaml")
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.stages.tune"],
            cwd=folder,
            env=_ours(folder),
            check=False,
            capture_output=True,
        )
        return None if done.returncode else time.perf_counter() - began


def memory() -> dict[str, float | None]:
    """Peak GiB of a forced `dvc repro` in a copy of the project, for one epoch of each training: more hold no more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        write({(section, "epochs"): 1 for section in ("judge", "train", "tune")}, folder / "params.yaml")
        _, peak, status = machine.peak_memory(["dvc", "repro", "--force"], folder, _ours(folder))
        if status:
            print("`dvc repro` failed in a copy of the project", file=sys.stderr)
        return {"repro_peak_gib": None if status else peak}


def _ours(folder: Path) -> dict[str, str]:
    """The environment in which the copy's own modules are imported, and its records are kept in itself."""
    elsewhere = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return kept | {"PYTHONPATH": str(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what answers at once")
    parser.add_argument(
        "--repro", action="store_true", help="the peak memory of a `dvc repro` in a copy, and nothing else"
    )
    arguments = parser.parse_args()
    device = pick_device("auto")
    if arguments.repro:
        name, found, bars = "memory", memory(), BARS_OF_MEMORY
    else:
        name, found = "commands", measure(device, whole=not arguments.quick)
        bars = BARS_ON_CUDA if device.type == "cuda" else BARS
    rows = results.verdicts(found, bars)
    results.show(rows)
    path = results.path(quick=arguments.quick)
    results.add(path, {name: {**results.signed(device), **found}, "bars": rows})
    print(f"\n{path} written")


if __name__ == "__main__":
    console.run(main)

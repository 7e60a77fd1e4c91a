"""How long whole commands take, and how much memory: what a user waits for. Part of `make bench`.

    python -m benchmarks.commands            # about 5 minutes on 2 cores, after `make repro`
    python -m benchmarks.commands --quick    # only commands that should answer at once
    python -m benchmarks.commands --repro    # only the peak memory of a `dvc repro`, in a copy: about 3 minutes

Adds `commands` or `memory` to benchmarks/results.json (--quick: results-quick.json), with their bars. Each figure is
that of a command as a user types it, imports included. Only the evaluation's is the time of the metrics alone. What
cannot be measured here, without a trained model or with a project that is not up to date, is left out.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, results
from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import write

ROUNDS = 5  # of a command that should answer at once
BARS: results.Bars = {
    "accuracy_097_seconds": (30.0, "most"),
    "evaluation_seconds": (30.0, "most"),
    "repro_noop_seconds": (2.0, "most"),
    "help_seconds": (0.5, "most"),
}
BARS_OF_MEMORY: results.Bars = {"repro_peak_gib": (3.0, "most")}
BARS_ON_CUDA: results.Bars = {"study_32_trials_seconds": (60.0, "most")}


def measure(device: torch.device, *, whole: bool) -> dict[str, float | None]:
    """The figures by name. `whole`: also those that take a minute."""
    found: dict[str, float | None] = {"help_seconds": _fastest(sys.executable, "-m", "pipeline.cli", "--help")}
    if subprocess.run(["dvc", "status", "--quiet", "dvc.yaml"], check=False, capture_output=True).returncode == 0:
        found["repro_noop_seconds"] = _fastest("dvc", "repro")
    else:
        print("not measured: `dvc repro` with nothing to do, since it has something to do here", file=sys.stderr)
    if whole:
        found["accuracy_097_seconds"] = _accuracy()
        found["evaluation_seconds"] = _evaluation()
        if device.type == "cuda":
            found["study_32_trials_seconds"] = _study()
    return found


def _fastest(*command: str) -> float:
    """Seconds of the fastest of several calls. Prints CPU seconds too."""
    walls, cpus = zip(*(_timed(command) for _ in range(ROUNDS)), strict=True)
    print(f"{' '.join(command[-2:]):24} {min(walls):6.2f} s, {min(cpus):6.2f} s of the CPU", flush=True)
    return min(walls)


def _timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _accuracy() -> float | None:
    """The median of three runs. None if one of them does not reach the accuracy."""
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
    """Copies the project's files, data and models, without its databases and runs."""
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
    """Seconds of a new study of 32 trials in a copy of the project."""
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
    """Peak GiB of a forced `dvc repro` in a copy, with one epoch per training: more epochs need no more memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        write({(section, "epochs"): 1 for section in ("judge", "train", "tune")}, folder / "params.yaml")
        _, peak, status = machine.peak_memory(["dvc", "repro", "--force"], folder, _ours(folder))
        if status:
            print("`dvc repro` failed in a copy of the project", file=sys.stderr)
        return {"repro_peak_gib": None if status else peak}


def _ours(folder: Path) -> dict[str, str]:
    """An environment in which the copy imports its own modules and keeps its own databases."""
    elsewhere = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return kept | {"PYTHONPATH": str(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only commands that should answer at once")
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

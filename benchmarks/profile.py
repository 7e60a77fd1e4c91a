"""Where the time of training goes: matrix products, elementwise operations, noise, optimizer, indexing, Python.

    python -m benchmarks.profile                    # a minute on 2 cores
    python -m benchmarks.profile --device cuda      # also kernels per step and the idle share of the GPU

Each operator counts its own time only, so nothing counts twice. The profiler costs time itself: shares are of the
profiled run, and the time of a step without the profiler stands beside them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine, population
from pipeline.base import console
from pipeline.base.device import pick_device, pick_precision
from pipeline.base.params import parse, read
from pipeline.base.paths import PREPARED
from pipeline.model.cvae import PRESETS, build
from pipeline.stages.saved import load_splits
from pipeline.training import fit as train
from pipeline.training.fit import TrainParams

STEPS = 100
# An operator belongs to the first group with a word in its name. The rest is Python and the autograd engine.
GROUPS = {
    "optimizer": ("adam", "Adam", "Optimizer", "zero_grad"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul", "conv"),
    "noise": ("aten::normal_", "aten::randn", "aten::bernoulli", "aten::randperm", "aten::random_"),
    "index and convert": ("aten::index", "aten::_to_copy", "aten::to", "aten::copy_", "aten::one_hot", "aten::scatter"),
    "elementwise and sums": ("aten::",),
}


def group(name: str) -> str:
    return next((key for key, words in GROUPS.items() if any(word in name for word in words)), "Python and engine")


def measure(preset: str, batch_size: int, device: str) -> dict[str, Any]:
    """The shares of a training step by group, and the times of a step."""
    where = pick_device(device)
    changes = {"epochs": 3, "batch_size": batch_size, "precision": "auto", "device": str(where), "ema": None}
    params = parse(TrainParams, read()["train"] | changes, "train")
    (rows,) = load_splits(PREPARED, "train")
    rows = rows[: STEPS * batch_size].to(where)
    run = train.start(build(PRESETS[preset], 0), params, where)
    records = train.fit(run, rows, rows[:10], params, population.AIM)
    next(records)
    plain = next(records).figures["time/seconds"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if where.type == "cuda" else [])]
    with profile(activities=activities) as watched:
        began = time.perf_counter()
        seconds = next(records).figures["time/seconds"]
        wall = time.perf_counter() - began
    events = watched.key_averages()
    shares = dict.fromkeys([*GROUPS, "Python and engine"], 0.0)
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    for event in operators:
        if event.key.startswith(("aten::", "Optimizer")):
            shares[group(event.key)] += event.self_cpu_time_total / 1e6 / seconds
    shares["Python and engine"] = max(1 - sum(shares.values()), 0.0)
    found: dict[str, Any] = {
        "step_ms": 1e3 * plain / STEPS,
        "watched_step_ms": 1e3 * seconds / STEPS,
        "shares": shares,
    }
    shapes = machine.products(run.model, batch_size)
    found["products_alone_ms"] = 1e3 * machine.matmul_seconds(shapes, pick_precision("auto", where), where)
    if where.type == "cuda":
        kernels = [event for event in events if event.device_type == DeviceType.CUDA]
        found["kernels_per_step"] = sum(event.count for event in kernels) / STEPS
        found["idle_share"] = 1 - sum(event.self_device_time_total for event in kernels) / 1e6 / wall
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    results = {}
    for preset, batch_size in (("article", 128), ("article", 512), ("strong", 128), ("strong", 256)):
        found = results[f"{preset} {batch_size}"] = measure(preset, batch_size, arguments.device)
        print(f"\n{preset}, batch {batch_size}: {found['step_ms']:.2f} ms a step")
        print(
            f"  {found['products_alone_ms']:.2f} ms its products alone; {found['watched_step_ms']:.2f} ms when watched"
        )
        for name, share in found["shares"].items():
            print(f"  {name:22} {share:6.1%}")
        if "idle_share" in found:
            print(
                f"  {found['kernels_per_step']:.0f} kernels a step; the GPU is idle for {found['idle_share']:.0%} of it"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    console.run(main)

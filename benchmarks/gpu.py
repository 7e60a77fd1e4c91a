"""How fast the project is on a GPU, against its bars: benchmarks/results-gpu.json, and a table on the terminal.

    python -m benchmarks.gpu    # needs a GPU and `dvc repro prepare` once; some four minutes on an H200

Times of steps are medians over epochs, waits for the device included. Lightning takes part where it is installed
(benchmarks/requirements.txt).
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import contenders, machine, results
from benchmarks.contenders import Setting
from pipeline.base.paths import PREPARED
from pipeline.data.splits import Split
from pipeline.measure import bound
from pipeline.model.cvae import PRESETS, build
from pipeline.model.density import fit_density
from pipeline.stages.saved import load_splits
from pipeline.training import population
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ELBO
from pipeline.training.validation import labelled, validate

WHERE = Path("benchmarks/results-gpu.json")
AIM = replace(ELBO, kl_weight=0.2)
PARAMS = TrainParams(
    epochs=10, batch_size=128, learning_rate=0.003, warmup=0.02, ema=0.999, clip=None, augment=0, augment_until=0.8,
    seed=0, device="cuda", precision="bfloat16", compile="auto",
)  # fmt: skip
MEMBERS = 125  # an eighth of 1,000 trainings: 25 weights, five seeds
BARS: results.Bars = {
    "ms a step, strong, batch 128": (0.45, "most"),
    "the same, compiled": (0.28, "most"),
    "times the DataLoader loop": (30, "least"),
    "the same, compiled ": (45, "least"),
    "times Lightning": (10, "least"),
    "million images a second, batch 2048": (3, "least"),
    "s, default training": (2.5, "most"),
    "ms a step, population of 32": (1.2, "most"),
    "the same, compiled  ": (0.85, "most"),
    "s, 1,000 trainings of four epochs": (75, "most"),
    "s, nll, k = 500, 10,000 images": (0.4, "most"),
    "s, fitted density, 10 classes": (0.1, "most"),
}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: this machine has no GPU that torch can use")
    train, validation, test = load_splits(PREPARED, "train", "validation", "test", device="cuda")
    figures: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for measure in (steps, races, populations, evaluations):
        print(f"{measure.__name__} …", flush=True)
        found, beside = measure(train, validation, test)
        figures |= found
        details |= beside
        rows = results.verdicts(figures, BARS)
        results.add(WHERE, {**results.signed(torch.device("cuda")), "bars": rows, "details": details})
    results.show(rows)


Found = tuple[dict[str, float | None], dict[str, Any]]


def changed(**changes: Any) -> TrainParams:
    """PARAMS with changes; a precision of `tf32` is float32 whose products may be TF32."""
    torch.backends.cuda.matmul.allow_tf32 = changes.get("precision") == "tf32"
    return replace(PARAMS, **changes | ({"precision": "float32"} if changes.get("precision") == "tf32" else {}))


def solo(train: Split, validation: Split, **changes: Any) -> tuple[float, float, float]:
    """Milliseconds a step (the first epoch left out), seconds of the whole run, and elbo on validation."""
    preset = changes.pop("preset", "strong")
    params = changed(**changes)
    model = build(PRESETS[preset], params.seed)
    began = time.perf_counter()
    training = start(model, params, torch.device("cuda"))
    records = list(fit(training, train, validation, params, AIM))
    machine.wait(torch.device("cuda"))
    whole = time.perf_counter() - began
    means = validate(training.model, validation, labelled("grey"))
    per_step = [record.figures["time/seconds"] * record.epoch / record.step * 1000 for record in records[1:]]
    return median(per_step or [0]), whole, means["elbo"]


def steps(train: Split, validation: Split, *_: Split) -> Found:
    """One model: each precision over three seeds, plain and compiled steps, and what the captured step is made of."""
    solo(train[:1280], validation, epochs=1)  # CUDA's start
    ms, whole, _elbo = solo(train, validation)
    details: dict[str, Any] = {}
    for precision in ("float32", "tf32", "bfloat16"):
        runs = [solo(train, validation, seed=seed, precision=precision) for seed in range(3)]
        details[precision] = {"ms": median(run[0] for run in runs), "elbo": [round(run[2], 2) for run in runs]}
        details[f"{precision}, batch 2048"] = {"ms": solo(train, validation, batch_size=2048, precision=precision)[0]}
    details["article"] = {"ms": solo(train, validation, preset="article")[0]}
    details["plain steps, bfloat16"] = {"ms": solo(train, validation, epochs=2, compile="never")[0]}
    compiled_ms, compiled_whole, _elbo = solo(train, validation, compile="always")
    details["compiled"] = {"ms": compiled_ms, "s of ten epochs with the compiler": compiled_whole}
    details["kernels"] = kernels(train, validation)
    return {
        "ms a step, strong, batch 128": ms,
        "the same, compiled": compiled_ms,
        "million images a second, batch 2048": 2.048 / details["bfloat16, batch 2048"]["ms"],
        "s, default training": whole,
    }, details


def kernels(train: Split, validation: Split) -> dict[str, float]:
    """Of captured steps: kernels each, and the share of the time in which the GPU is idle."""
    params = replace(PARAMS, epochs=2)
    records = fit(start(build(PRESETS["strong"], 0), params, torch.device("cuda")), train, validation, params, AIM)
    next(records)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        record = next(records)
    events = [event for event in profiler.key_averages() if event.self_device_time_total]
    busy = sum(event.self_device_time_total for event in events) / 1e6
    return {
        "a step": sum(event.count for event in events) / (record.step / 2),
        "busy seconds of the second epoch, validation included": busy,
        "seconds of its training": record.figures["time/seconds"],
    }


def races(train: Split, validation: Split, *_: Split) -> Found:
    """Against what a user would write or pick: images a second at the same batch, and elbo after as many steps."""
    params = replace(PARAMS, epochs=2, ema=None)
    setting = Setting("strong", train, validation, params, AIM, rounds=2)
    entries: dict[str, Callable[..., Any]] = {"ours": contenders.ours, "dataloader": contenders.dataloader}
    if importlib.util.find_spec("lightning"):
        entries["lightning"] = contenders.lightning
    found: dict[str, Any] = {}
    for name, contender in entries.items():
        network = setting.network()
        seconds = list(contender(setting, network))
        found[name] = {"s an epoch": seconds[-1], "elbo": round(setting.elbo(network), 2)}
    fast = replace(setting, params=replace(params, compile="always"))
    network = fast.network()
    found["ours, compiled"] = {"s an epoch": list(contenders.ours(fast, network))[-1], "elbo": fast.elbo(network)}
    epoch = {name: entry["s an epoch"] for name, entry in found.items()}
    lightning = epoch.get("lightning")
    return {
        "times the DataLoader loop": epoch["dataloader"] / epoch["ours"],
        "the same, compiled ": epoch["dataloader"] / epoch["ours, compiled"],
        "times Lightning": None if lightning is None else lightning / epoch["ours"],
    }, {"races": found}


def together(train: Split, validation: Split, members: int, **changes: Any) -> tuple[float, float]:
    """Milliseconds a step of a population (the first epoch left out), and seconds of its whole run."""
    params = changed(**{"epochs": 3} | changes)
    models = [build(PRESETS["strong"], seed % 5) for seed in range(members)]
    weights = torch.logspace(-2, 1, members).tolist()
    began = time.perf_counter()
    run = population.start(models, weights, params, torch.device("cuda"))
    epochs = [next(iter(records.values())) for records in population.fit(run, train, validation, params, AIM)]
    machine.wait(torch.device("cuda"))
    whole = time.perf_counter() - began
    return median(one.figures["time/seconds"] * one.epoch / one.step * 1000 for one in epochs[1:]), whole


def populations(train: Split, validation: Split, *_: Split) -> Found:
    """Many members at once; 1,000 trainings are reckoned from an eighth of them."""
    ms, _seconds = together(train, validation, 32)
    compiled_ms, _seconds = together(train, validation, 32, compile="always")
    many_ms, many = together(train, validation, MEMBERS, epochs=4)
    sizes = {str(members): together(train, validation, members, epochs=2)[0] for members in (1, 8, 64)}
    sizes["32, tf32"] = together(train, validation, 32, precision="tf32")[0]
    return {
        "ms a step, population of 32": ms,
        "the same, compiled  ": compiled_ms,
        "s, 1,000 trainings of four epochs": many * 1000 / MEMBERS,
    }, {"population, ms a step": sizes | {"32": ms, str(MEMBERS): many_ms}}


def evaluations(train: Split, validation: Split, test: Split) -> Found:
    """The bound and the fitted density of a trained model."""
    params = replace(PARAMS, epochs=2)
    training = start(build(PRESETS["strong"], 0), params, torch.device("cuda"))
    list(fit(training, train, validation, params, AIM))
    model = training.model
    return {
        name: machine.seconds(work, torch.device("cuda"), rounds=3)
        for name, work in (
            ("s, nll, k = 500, 10,000 images", lambda: bound.log_likelihood(model, test, "grey", 500, 0, 1.0)),
            ("s, fitted density, 10 classes", lambda: fit_density(model, train, "grey", 10, 0)),
        )
    }, {}


if __name__ == "__main__":
    main()

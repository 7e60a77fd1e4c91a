"""Training speed against what a user would write or pick instead, side by side: `make bench`, or `make bench-quick`.

    python -m benchmarks.run            # about 25 minutes on 2 cores
    python -m benchmarks.run --quick    # about two minutes: fewer rounds of fewer images
    python -m benchmarks.run --device cuda

Contenders train in turn, one round each, from the same initial weights. A ratio is the median over rounds of that
round's two figures, so that a busy machine slows both sides. At the end, each has reached the end of its learning-rate
schedule, and its elbo on validation stands beside its speed. `ours` is the fastest of our settings whose elbo is not
worse. The exit status is 1 if a contender of the same model and batch size ends at another elbo. benchmarks/README.md
describes the comparison.

Adds to benchmarks/results.json and draws results.png. --quick writes results-quick.json and .png, which git ignores.
"""

import argparse
import importlib.util
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import charts, machine, population, results
from benchmarks.contenders import CONTENDERS, UNCONDITIONAL, Setting, in_own_process
from pipeline.base import console
from pipeline.base.device import compiler, has_bfloat16, pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import replacing
from pipeline.base.params import parse, read
from pipeline.base.paths import PREPARED
from pipeline.data import splits as data
from pipeline.model.cvae import PRESETS, Init, build
from pipeline.stages.saved import load_splits
from pipeline.training.fit import TrainParams

BATCH = 128  # of all contenders but ours
WARMUP = 0.3  # share of the steps in which the rate and the KL weight of our larger batches rise
# How much the elbo of equal trainings may differ, as a share, because of the order of images and the noise. Measured in
# five races of five epochs: the article's model ended between -123.9 and -139.9, strong between -105.0 and -107.6.
# After the 138 steps of --quick, this only detects a contender that does not learn.
NOISE = {"article": 0.08, "strong": 0.04}
NOISE_OF_QUICK = 0.08
BARS: results.Bars = {  # on 2 CPU cores
    "strong_ratio": (5.0, "least"),
    "article_ratio": (5.0, "least"),
    "strong_lightning_ratio": (1.3, "least"),
    "article_lightning_ratio": (1.3, "least"),
    "strong_share_float32": (0.70, "least"),
    "strong_share_bfloat16": (0.55, "least"),
    "article_population_16_ratio": (1.15, "least"),
}
BARS_ON_CUDA: results.Bars = {
    "strong_images_per_second": (3e6, "least"),
    "strong_ratio": (30.0, "least"),
    "strong_population_32_time": (2.0, "most"),
}


@dataclass(frozen=True)
class Entry:
    """A contender with its batch size and precision, compiled or not."""

    contender: str
    batch_size: int = BATCH
    precision: str = "float32"
    compile: str = "never"

    @property
    def init(self) -> Init:
        """Larger batches have fewer steps, and gain from `dark`."""
        return "dark" if self.batch_size > BATCH else "torch"

    @property
    def name(self) -> str:
        if self.contender != "ours":
            return self.contender
        compiled = ["compiled"] if self.compile == "always" else []
        return "_".join(["ours", self.precision, str(self.batch_size), *compiled])

    def setting(self, preset: str, train: data.Split, validation: data.Split, rounds: int) -> Setting:
        # Larger batches have fewer steps. They need a larger rate, by the square root (Malladi 2022, for Adam), a
        # longer warm-up of the rate (Goyal 2017), and a warm-up of the KL weight (Sønderby 2016).
        rate = read()["train"]["learning_rate"] * math.sqrt(self.batch_size / BATCH)
        changes = {"epochs": rounds, "batch_size": self.batch_size, "learning_rate": rate, "precision": self.precision}
        changes |= {"compile": self.compile, "device": str(train.images.device), "ema": None}
        aim = population.AIM  # kl_weight 1: the loss is −elbo
        if self.batch_size > BATCH:
            changes["warmup"] = WARMUP
            aim = replace(aim, schedule="warmup", schedule_share=WARMUP)
        params = parse(TrainParams, read()["train"] | changes, "train")
        return Setting(preset, train, validation, params, aim, rounds, self.init)


def entries(device: torch.device) -> Iterator[Entry]:
    """All contenders in all settings that this machine can run."""
    compiles = device.type == "cuda" or compiler()
    for name in CONTENDERS:
        if name == "ours":
            for precision in ("float32", "bfloat16") if has_bfloat16(device) else ("float32",):
                for batch_size in (128, 256, 512, 1024) if device.type == "cpu" else (128, 512, 2048):
                    for choice in ("never", "always") if compiles else ("never",):
                        yield Entry(name, batch_size, precision, choice)
        elif name not in ("lightning", "pythae") or importlib.util.find_spec(name):
            yield Entry(name)
        else:
            print(f"{name} is not installed (`make bench` installs it): not measured", file=sys.stderr)


def race(preset: str, train: data.Split, validation: data.Split, rounds: int) -> dict[str, Any]:
    """Trains all contenders in turn. Returns their seconds, images/s, elbo and share of the matmul rate."""
    device = train.images.device
    torch.compiler.reset()  # forget the last race: the number of times that a function may be compiled is limited
    taking_part = {entry.name: entry for entry in entries(device)}
    settings = {name: entry.setting(preset, train, validation, rounds) for name, entry in taking_part.items()}
    networks = {name: setting.network() for name, setting in settings.items()}
    running = {
        name: in_own_process(entry.contender, settings[name], networks[name])
        if device.type == "cpu" and entry.contender != "ours"
        else CONTENDERS[entry.contender](settings[name], networks[name])
        for name, entry in taking_part.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(rounds):
        for name, clock in running.items():
            print(f"\r{preset}, round {turn + 1} of {rounds}: {name:32}", end="", file=sys.stderr, flush=True)
            seconds[name].append(next(clock))
    print("\r" + 70 * " " + "\r", end="", file=sys.stderr)
    result: dict[str, Any] = {}
    for name, setting in settings.items():
        images = setting.steps * setting.params.batch_size
        step = statistics.median(seconds[name]) / setting.steps
        shapes = machine.products(setting.network(), setting.params.batch_size)
        dtype = torch.bfloat16 if setting.params.precision == "bfloat16" else torch.float32
        result[name] = {
            "batch_size": setting.params.batch_size,
            "precision": setting.params.precision,
            "compiled": setting.params.compile == "always",
            "init": setting.init,
            "images_per_second": images / statistics.median(seconds[name]),
            "ratio": statistics.median(
                (images / own) / (settings["dataloader"].steps * BATCH / theirs)
                for own, theirs in zip(seconds[name], seconds["dataloader"], strict=True)
            ),
            "share_of_matmul_rate": machine.matmul_seconds(shapes, dtype, device) / step,
            "elbo": None if name in UNCONDITIONAL else setting.elbo(networks[name]),
            "seconds": seconds[name],
        }
    return result


def memory(preset: str, race: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Peak GiB of a process that only trains one contender for a short round. Compiled settings are left out."""
    found = {}
    for name in (name for name, entry in race.items() if not entry["compiled"]):
        program = (
            "from benchmarks import run; from pipeline.stages.saved import load_splits; import sys\n"
            "train, validation = load_splits(run.PREPARED, 'train', 'validation', device=sys.argv[3])\n"
            "run.alone(sys.argv[1], sys.argv[2], train, validation)"
        )
        _, peak, status = machine.peak_memory([sys.executable, "-c", program, preset, name, str(device)])
        if status == 0:
            found[name] = peak
    return found


def alone(preset: str, wanted: str, train: data.Split, validation: data.Split) -> None:
    """Trains one contender for a round of 50 batches."""
    entry = next(entry for entry in entries(train.images.device) if entry.name == wanted)
    setting = entry.setting(preset, train[: 50 * entry.batch_size], validation, 1)
    list(CONTENDERS[entry.contender](setting, setting.network()))


def agreed(race: dict[str, Any], share: float) -> tuple[list[str], str]:
    """The contenders whose elbo differs, and the name of our fastest setting whose elbo is not worse.

    Elbos count as equal if they differ by less than `share` from the median of the contenders with the loop's batch
    size. (A single one of them may end far off by chance.)
    """
    same = {name: entry for name, entry in race.items() if entry["elbo"] is not None and entry["batch_size"] == BATCH}
    median = statistics.median(entry["elbo"] for entry in same.values())
    apart = [name for name, entry in same.items() if abs(entry["elbo"] - median) > share * abs(median)]
    good = [name for name in race if name.startswith("ours") and race[name]["elbo"] >= median - share * abs(median)]
    return apart, max(good, key=lambda name: race[name]["images_per_second"], default=f"ours_float32_{BATCH}")


def show(preset: str, race: dict[str, Any]) -> None:
    print(f"\n{preset}: images/s, × the DataLoader loop, share of the matmul rate, elbo at the end, peak memory")
    for name, entry in race.items():
        elbo = "" if entry["elbo"] is None else f"{entry['elbo']:9.2f}"
        peak = "" if entry["peak_gib"] is None else f"{entry['peak_gib']:6.2f} GiB"
        print(
            f"{name:27} {entry['images_per_second']:10,.0f} {entry['ratio']:6.2f} "
            f"{entry['share_of_matmul_rate']:6.0%} {elbo:>9} {peak}{'  <- ours' if 'ours' in entry else ''}"
        )


def fastest(race: dict[str, Any], precision: str, batch_size: int) -> dict[str, Any]:
    """Our faster entry of a precision and batch size, compiled or not. Empty if there is none."""
    names = (f"ours_{precision}_{batch_size}", f"ours_{precision}_{batch_size}_compiled")
    return max((race[name] for name in names if name in race), key=lambda entry: entry["images_per_second"], default={})


def figures_of(races: dict[str, Any], chosen: dict[str, str], populations: dict[str, Any]) -> dict[str, float | None]:
    """The figures that have bars, by name."""
    found: dict[str, float | None] = {}
    for preset, race in races.items():
        found[f"{preset}_ratio"] = race[chosen[preset]]["ratio"]
        found[f"{preset}_images_per_second"] = race[chosen[preset]]["images_per_second"]
        if "lightning" in race:
            own, theirs = fastest(race, "float32", BATCH)["seconds"], race["lightning"]["seconds"]
            found[f"{preset}_lightning_ratio"] = statistics.median(b / a for a, b in zip(own, theirs, strict=True))
        for precision in ("float32", "bfloat16"):
            entry = fastest(race, precision, 256)
            found[f"{preset}_share_{precision}"] = entry.get("share_of_matmul_rate")
    for preset, result in populations.items():
        for name, ratio in result["ratio"].items():
            if name[0].isdigit():
                members = int(name.split()[0])  # compiled or not: the faster one counts
                key = f"{preset}_population_{members}"
                ratio = max(ratio, found.get(f"{key}_ratio") or 0)
                found |= {f"{key}_ratio": ratio, f"{key}_time": members / ratio}
    return found


def matmul_rates(device: torch.device) -> dict[str, Any]:
    """GFLOP/s of the matrix products of a step of 256 images, by preset and precision. On a GPU, copies too."""
    precisions = [torch.float32, *([torch.bfloat16] if has_bfloat16(device) else [])]
    found: dict[str, Any] = {}
    for preset, architecture in PRESETS.items():
        shapes = machine.products(build(architecture, 0), 256)
        found[preset] = {
            str(dtype).removeprefix("torch."): machine.flops(shapes)
            / machine.matmul_seconds(shapes, dtype, device)
            / 1e9
            for dtype in precisions
        }
        rates = ", ".join(f"{value:,.0f} GFLOP/s {name}" for name, value in found[preset].items())
        print(f"matrix products of {preset} at batch 256: {rates}")
    if device.type == "cuda":
        found["copy_gb_per_second"] = machine.copy_bandwidth(device)
        print(f"copies on the device: {found['copy_gb_per_second']:,.0f} GB/s")
    return found


def measure_populations(train: data.Split, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Populations of 16 members (on a GPU 32 too) against solo runs, by preset."""
    sizes, steps = ([16], 32) if quick else ([16], 128)
    if train.images.device.type == "cuda":
        sizes, steps = [16, 32], 512
    found = {
        preset: population.compare(preset, BATCH, sizes, steps, rounds, train)
        for preset in (["article"] if quick else PRESETS)
    }
    for preset, result in found.items():
        for name, ratio in result["ratio"].items():
            print(f"{preset}, {name}: {ratio:.2f} × {result['best_solo']}")
    return found


def images_per_second(race: dict[str, Any], chosen: str) -> dict[str, float]:
    """Of the other contenders, and of our chosen setting as `ours`."""
    others = {name: entry["images_per_second"] for name, entry in race.items() if not name.startswith("ours")}
    return {**others, "ours": race[chosen]["images_per_second"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 6,000 images")
    parser.add_argument("--rounds", type=int, help="number of rounds; figures are medians (default: 5, quick: 3)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {rounds}")
    device = pick_device(arguments.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    # Compile each batch size by itself, as in a run of its own. Otherwise the second is compiled for all sizes.
    torch._dynamo.config.automatic_dynamic_shapes = False
    if arguments.quick:
        train, validation = train[:6000], validation[:2000]
    print(", ".join(f"{name} {value}" for name, value in machine.describe(device).items()))

    matmul = matmul_rates(device)
    races = {preset: race(preset, train, validation, rounds) for preset in PRESETS}
    noise = dict.fromkeys(NOISE, NOISE_OF_QUICK) if arguments.quick else NOISE
    apart, chosen = {}, {}
    for preset, result in races.items():
        apart[preset], chosen[preset] = agreed(result, noise[preset])
        result[chosen[preset]]["ours"] = True
        peaks = {} if arguments.quick else memory(preset, result, device)
        for name, entry in result.items():
            entry["peak_gib"] = peaks.get(name)
        show(preset, result)
    populations = measure_populations(train, rounds, quick=arguments.quick)
    rows = results.verdicts(figures_of(races, chosen, populations), BARS_ON_CUDA if device.type == "cuda" else BARS)
    results.show(rows)

    found = {
        **results.signed(device),
        "rounds": rounds,
        "images_per_round": len(train),
        "train": {preset: images_per_second(result, chosen[preset]) for preset, result in races.items()},
        "contenders": races,
        "population": {preset: result["ratio"] for preset, result in populations.items()},
        "matmul": matmul,
        "elbos_agree": not any(apart.values()),
        "bars": rows,
    }
    path = results.path(quick=arguments.quick)
    results.add(path, found)
    with replacing(path.with_suffix(".png")) as part:
        charts.race(found).savefig(part, format="png", dpi=80)
    if arguments.quick:
        print("\nThe bars are meant for `make bench`: in so few steps, the loop is faster than later.")
    print(f"\n{path} and its chart written")
    for preset, names in apart.items():
        if names:
            print(f"{preset}: elbo differs by more than {noise[preset]:.0%}: {', '.join(names)}")
    sys.exit(any(apart.values()))


if __name__ == "__main__":
    console.run(main)

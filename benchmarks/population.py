"""A population against solo runs: images per second of all members together, by preset, batch size and members.

    python -m benchmarks.population            # about 15 minutes on 2 cores
    python -m benchmarks.population --quick    # less than a minute if the compiler's cache is warm

Every round trains each contestant for a short while through the product's own fit(). A ratio is the median over rounds
of that round's two figures, so that other work on the machine slows both sides. The bar on 2 cores: 16 members of
`article` at 1.15 times the best solo run.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.base.device import has_bfloat16, pick_device
from pipeline.base.errors import UserError
from pipeline.base.params import parse, read
from pipeline.base.paths import PREPARED
from pipeline.data import splits as data
from pipeline.data.splits import Split
from pipeline.model.cvae import PRESETS, build
from pipeline.stages.saved import load_splits
from pipeline.training import fit as train
from pipeline.training import population
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

AIM = parse(ObjectiveParams, read()["objective"] | {"kl_weight": 1.0}, "objective")


def rows(count: int) -> Split:
    """Prepared training rows, or random ones of their shape."""
    try:
        (split,) = load_splits(PREPARED, "train")
    except UserError:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator).to(torch.uint8)
        split = Split(images, torch.arange(count) % data.CLASSES)
    return split[:count]


def contestant(
    preset: str,
    batch_size: int,
    members: int | None,
    precision: str,
    compiled: str,
    steps: int,
    rounds: int,
    split: Split,
) -> Iterator[float]:
    """Images a second in each round, after one that warms up. `members` None is a solo run."""
    device = split.images.device
    settings = {"epochs": rounds + 1, "batch_size": batch_size, "warmup": 0, "device": str(device)}
    settings |= {"precision": precision, "compile": compiled, "ema": None}
    params = parse(TrainParams, read()["train"] | settings, "train")
    seen = split[: steps * batch_size]
    unseen = split[:10]  # validation is not in a record's time
    if members is None:
        training = train.start(build(PRESETS[preset], 0), params, device)
        for record in train.fit(training, seen, unseen, params, AIM):
            yield record.figures["time/images_per_second"]
    else:
        models = [build(PRESETS[preset], seed) for seed in range(members)]
        stack = population.start(models, [0.1 * 2**member for member in range(members)], params, device)
        for records in population.fit(stack, seen, unseen, params, AIM):
            yield sum(record.figures["time/images_per_second"] for record in records.values())


def compare(preset: str, batch_size: int, sizes: list[int], steps: int, rounds: int, split: Split) -> dict[str, Any]:
    """Every contestant's images per second, by round. A solo epoch has `steps` steps; that of M members, steps ÷ M."""
    precisions = ["float32", "bfloat16"] if has_bfloat16(split.images.device) else ["float32"]
    runs: list[tuple[int | None, str]] = [(None, precision) for precision in precisions]
    runs += [(size, precisions[-1]) for size in sizes]
    entries = {
        f"{'solo' if size is None else f'{size} members'} {precision}{suffix}": (size, precision, choice)
        for size, precision in runs
        for choice, suffix in (("never", ""), ("always", ", compiled"))
    }
    torch.compiler.reset()  # what was compiled before counts against the number of times a function may be
    running = {
        name: contestant(preset, batch_size, size, precision, compiled, max(3, steps // (size or 1)), rounds, split)
        for name, (size, precision, compiled) in entries.items()
    }
    for warming in running.values():
        next(warming)
    paces: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, pace in running.items():
            paces[name].append(next(pace))
    best = max(
        (name for name, (size, *_) in entries.items() if size is None), key=lambda n: statistics.median(paces[n])
    )
    ratios = {name: statistics.median(map(float.__truediv__, pace, paces[best])) for name, pace in paces.items()}
    return {"preset": preset, "batch_size": batch_size, "best_solo": best, "images_per_second": paces, "ratio": ratios}


def main() -> None:
    """Measures and prints; writes only where --out says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 128 alone, three sizes, short rounds")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: 5)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every round's figures as JSON")
    arguments = parser.parse_args()
    sizes, batch_sizes, steps = ([4, 8, 16], [128], 32) if arguments.quick else ([1, 2, 4, 8, 16, 32], [128, 256], 128)
    device = pick_device("auto")
    split = rows(steps * max(batch_sizes)).to(device)

    results = []
    for preset in PRESETS:
        for batch_size in batch_sizes:
            result = compare(preset, batch_size, sizes, steps, arguments.rounds, split)
            results.append(result)
            print(f"\n{preset}, batch {batch_size}, {device}, {torch.get_num_threads()} threads")
            print(f"{'':24} {'images/s':>10}   × {result['best_solo']}")
            for name, ratio in result["ratio"].items():
                print(f"{name:24} {statistics.median(result['images_per_second'][name]):10,.0f}   {ratio:.2f}")
    if arguments.out:
        machine = {"cpu": platform.processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()

"""How cost grows with members of a population, batch size, images, and threads.

    python -m benchmarks.growth             # about 10 minutes on 2 cores; --quick: 2

Adds `growth` to benchmarks/results.json and draws benchmarks/growth.png. docs/lab/speed.md explains the curves.
"""

import argparse
import statistics
import sys
from typing import Any

import torch

from benchmarks import charts, population, results
from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import replacing
from pipeline.base.paths import PREPARED
from pipeline.data.splits import Split
from pipeline.stages.saved import load_splits

PRESET = "article"  # its steps are short, so that costs besides matrix products show


def pace(batch_size: int, members: int | None, images: int, rounds: int, split: Split) -> float:
    """Median images/s of a solo run, or of all members of a compiled population, in epochs of `images`."""
    steps, compiled = max(images // batch_size, 1), "always" if members else "never"
    paces = population.contestant(PRESET, batch_size, members, "float32", compiled, steps, rounds, split)
    next(paces)
    return statistics.median(next(paces) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    arguments = parser.parse_args()
    rounds, images = (2, 4096) if arguments.quick else (5, 16384)
    device = pick_device(arguments.device)
    parts = load_splits(PREPARED, "train", "validation")
    whole = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])).to(device)
    threads = sorted({1, torch.get_num_threads()}) if device.type == "cpu" else [torch.get_num_threads()]
    growth: dict[str, Any] = {"members": {}, "batch_size": {}, "images": {}}
    for count in threads:
        torch.set_num_threads(count)
        series: dict[str, dict[str, float]] = {
            "members": {
                str(members): pace(128, members, max(images // members, 3 * 128), rounds, whole)
                for members in (1, 2, 4, 8, 16, 32)
            },
            "batch_size": {
                str(size): pace(size, None, images, rounds, whole) for size in (32, 64, 128, 256, 512, 1024, 2048)
            },
            "images": {
                str(rows): rows // 128 * 128 / pace(128, None, rows, 1 if arguments.quick else 3, whole)
                for rows in (10_000, 20_000, 30_000, 40_000, 50_000, 60_000)
            },
        }
        for key, found in series.items():
            growth[key][str(count)] = found
            shown = ", ".join(f"{at}: {value:,.1f}" for at, value in found.items())
            print(f"{count} thread{'s' * (count > 1)}, {key:10} {shown}", flush=True)
    torch.set_num_threads(max(threads))

    path, found = results.path(quick=arguments.quick), growth | results.signed(device)
    results.add(path, {"growth": found})
    with replacing(results.FOLDER / ("growth-quick.png" if arguments.quick else "growth.png")) as part:
        charts.growth(found).savefig(part, format="png", dpi=80)
    print(f"{path} and its chart written", file=sys.stderr)


if __name__ == "__main__":
    console.run(main)

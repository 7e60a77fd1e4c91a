"""What recording costs a training: seconds before the first epoch's record and after the last one.

    python -m benchmarks.recording            # five trainings of small data in a new folder each: about a minute

Each training is a process of its own, as a user starts it. Some have a new MLflow database, which takes MLflow seconds
to create beside the training, some have one that is there. Prints medians and the machine's load. Before: from the
start of the process to the first line of an epoch, without the epoch. After: from the last epoch's line to the end.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline.base import console
from pipeline.base.params import write
from pipeline.base.paths import PREPARED
from pipeline.data.splits import Split
from pipeline.stages.saved import save_splits
from pipeline.tracking.local import DATABASE, connect

EPOCHS, IMAGES, BATCH = 3, 2000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    count = parser.parse_args().rounds
    for is_new in (True, False):
        rounds = [measure(is_new) for _ in range(count)]
        before, after = (statistics.median(values) for values in zip(*rounds, strict=True))
        kind = "a new database" if is_new else "a database that is there"
        load = f"medians of {count}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{kind}: before the first record {before:.1f} s, after the last {after:.1f} s ({load})", flush=True)


def measure(is_new: bool) -> tuple[float, float]:
    """Seconds before and after of one training in a new folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_text(Path("params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        write({("train", "epochs"): EPOCHS, ("train", "batch_size"): BATCH}, folder / "params.yaml")
        digits = torch.arange(IMAGES) % 10
        images = torch.randint(256, (IMAGES, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        few = Split(images[:500].clone(), digits[:500].clone())
        save_splits(folder / PREPARED, {"train": Split(images, digits), "validation": few})
        if not is_new:
            connect(f"sqlite:///{folder.resolve()}/{DATABASE}")
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment["PYTHONPATH"] = str(Path.cwd())
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pipeline.stages.train"], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = [(time.perf_counter() - began, line) for line in process.stdout]
        if process.wait():
            raise RuntimeError("".join(line for _, line in said))
        ended = time.perf_counter() - began
        times = [at for at, line in said if line.startswith("train ") and f"/{EPOCHS}" in line]
        epoch = times[1] - times[0]
        return times[0] - epoch, ended - times[-1]


if __name__ == "__main__":
    console.run(main)

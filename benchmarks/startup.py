"""How long the things that should answer at once take: seconds of the wall and of the processor, the best of several.

    python -m benchmarks.startup            # in a project whose `dvc repro` has run; under a minute

The bars, on a quiet machine: `cvae --help` in 0.5 s, a second `dvc repro` in 2 s. The tests hold the same by ratios,
which a busy machine can't break.
"""

import resource
import subprocess
import sys
import time

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "cvae --help": [sys.executable, "-m", "pipeline.cli.main", "--help"],
    "dvc stage list": ["dvc", "stage", "list"],
    "dvc repro, again": ["dvc", "repro"],
}
ROUNDS = 5


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of the wall, and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if command[-1] == "repro" and "up to date" not in done.stdout:
        sys.exit("error: stages have run: start again, now that nothing is left to do")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    print(f"{'':18} {'wall':>6} {'processor':>10}")
    for name, command in COMMANDS.items():
        walls, processors = zip(*(measured(command) for _ in range(ROUNDS)), strict=True)
        print(f"{name:18} {min(walls):6.2f} {min(processors):10.2f}")


if __name__ == "__main__":
    main()

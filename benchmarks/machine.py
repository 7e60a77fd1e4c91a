"""The machine behind the figures: its name, how fast it multiplies and copies, how much memory a command takes.

The share of the matmul rate is the time of a step's matrix products alone ÷ the time of the step. The products are
measured in the same run, in the shapes of the model, forward and backward.
"""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.base.device import has_bfloat16
from pipeline.data.splits import CLASSES
from pipeline.model.cvae import CVAE

PACKAGES = ("torch", "torchvision", "lightning", "pythae", "numpy", "scikit-learn", "mlflow", "dvc", "optuna")
INTERVAL = 0.2  # seconds between two looks at a process tree


def describe(device: torch.device) -> dict[str, Any]:
    """The description that each figure carries."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "bfloat16": has_bfloat16(device),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    """The name and vector instructions of the CPU, from /proc/cpuinfo where it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(known)})" if known else name


def versions() -> dict[str, str]:
    """Versions of the packages involved, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 5, least: float = 0.05) -> float:
    """Median seconds of one call, over rounds that each make enough calls to take `least` seconds."""
    work()
    wait(device)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < least or not calls:
        work()
        calls += 1
    wait(device)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        times.append((time.perf_counter() - began) / calls)
    return statistics.median(times)


def products(model: CVAE, batch_size: int) -> list[tuple[int, int, int]]:
    """The matrix products of a training step as (m, k, n): an (m, k) matrix times a (k, n) one.

    Each dense layer has one forward, one for the gradient of its weight and, if something before it is trained, one
    for the gradient of its input.
    """
    shapes = []
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear)):
        m, k, n = batch_size, layer.in_features, layer.out_features
        shapes += [(m, k, n), (n, m, k)]
        first = layer is next(part for part in model.encoder.modules() if isinstance(part, nn.Linear))
        if not first and k != CLASSES:  # labels and pixels have no gradient
            shapes.append((m, n, k))
    return shapes


def flops(shapes: Sequence[tuple[int, int, int]]) -> int:
    return sum(2 * m * k * n for m, k, n in shapes)


def matmul_seconds(
    shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device, rounds: int = 5
) -> float:
    """Seconds of the products, one after another with nothing in between.

    Each has its own operands, as in a step. The same two matrices, multiplied again and again, would stay in a core's
    cache and be 1.1 times as fast.
    """

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device).to(dtype)

    pairs = [(matrix(m, k), matrix(k, n)) for m, k, n in shapes]

    def all_of_them() -> None:
        for a, b in pairs:
            a @ b

    return seconds(all_of_them, device, rounds)


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy of 256 MiB on the device, reads and writes together."""
    source = torch.empty(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9


def peak_memory(
    command: Sequence[str], folder: Path | str = ".", environment: Mapping[str, str] | None = None
) -> tuple[float, float, int]:
    """Seconds, peak GiB and exit status of a command with all the processes it starts (Linux).

    Uses proportional set sizes, which count a shared page once, and looks five times a second.
    """
    peak, done = 0, threading.Event()
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:

        def watch() -> None:
            nonlocal peak
            while not done.wait(INTERVAL):
                peak = max(peak, sum(map(_resident, _tree(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        done.set()
        watcher.join()
    return time.perf_counter() - began, peak / 2**30, status


def _tree(root: int) -> Iterator[int]:
    yield root
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text(encoding="utf-8").split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _tree(int(child))


def _resident(process: int) -> int:
    """Bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)

"""The device of a run, and the precision of its products."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator

import torch

from pipeline.base.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device with this name; `auto` is CUDA where there is a GPU. Raises UserError if it can't be used.

    On a CPU, numbers below 1e-38 count as 0 from now on: Adam's means shrink to such numbers where gradients stay 0,
    and some CPUs multiply them a hundred times more slowly. Torch's threads inherit this from the process that starts
    them. And memory that a step frees is kept for the next.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on a device that holds no numbers, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device {name!r} can't be used ({reason}): set it to auto or cpu") from None
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        _keep_freed_memory()
    return device


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within, each product runs in one thread: small ones are not worth sharing, and threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """In glibc, which gives large blocks back to the system by default: a sixteenth of the strong model's time."""
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # noqa: N806 (names of malloc.h)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that its manual allows
        mallopt(M_TRIM_THRESHOLD, 2**30)


def memory(device: torch.device) -> int:
    """Bytes: what is free on a GPU, or all of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compiler() -> str | None:
    """The path of the C++ compiler (g++, or what CXX names), or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself. Other devices are slower with it than with float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return False


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of a training step's products; `auto` is bfloat16 where the device has it."""
    wanted = name == "bfloat16" or (name == "auto" and has_bfloat16(device))
    return torch.bfloat16 if wanted else torch.float32

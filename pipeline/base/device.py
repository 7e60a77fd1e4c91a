"""The device of a run, and the precision of its products."""

import ctypes

import torch

from pipeline.base.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device with this name; `auto` is CUDA where there is a GPU. Raises UserError if it can't be used.

    On a CPU two settings are made for this process. Numbers below 1e-38 count as 0: Adam's means of gradients that
    stay 0 shrink to such numbers, and some CPUs multiply these a hundred times more slowly. The threads of torch
    inherit this setting, so it must be made before they start. And freed memory is kept for reuse.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device {name!r} can't be used ({reason}): set it to auto or cpu") from None
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees for the next step. Other C libraries are left as they are.

    By default large blocks go back to the system, which returns them page by page, filled with zeros. That took a
    sixteenth of the strong model's time on two cores.
    """
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # noqa: N806 (names of malloc.h)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that its manual allows
    mallopt(M_TRIM_THRESHOLD, 2**30)


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

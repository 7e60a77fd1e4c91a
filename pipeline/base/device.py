"""Which device a run uses, and in which precision it multiplies there."""

import ctypes

import torch

from pipeline.base.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError where the named device is not to be had.

    On a processor two things are set for this process. Numbers below 1e-38 count as 0: Adam's means of gradients that
    have ended decay to such numbers, which some processors take a hundred times as long to multiply. It has to be said
    before torch starts its threads, which inherit it. And freed memory is kept.
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
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one; another library of C is left as it is.

    Large blocks would go back to the system, which hands them out again page by page, each zeroed first: several
    hundred page faults a step, a sixteenth of the strong model's time on two cores.
    """
    largest_block, most_kept = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(largest_block, 32 * 2**20)  # the most that its manual allows
    mallopt(most_kept, 2**30)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; where it does not, bfloat16 is only slower."""
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

"""Devices and precisions: the given one, or the best one here."""

import ctypes
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from pipeline.base.device import pick_device
from pipeline.base.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_said_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.device .* can't be used .*: set it to auto or cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


# Prints the bytes that glibc keeps when a large block is freed, and the share of tiny numbers that stay above 0 in a
# product that threads share.
PROGRAM = """
import ctypes, sys, torch
torch.set_num_threads(2)
if sys.argv[1] == "picked":
    from pipeline.base.device import pick_device
    pick_device("cpu")
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
block = torch.ones(5_000_000)
del block
print(mallinfo().fordblks)
small = torch.full((4_000_000,), 1e-40) * 0.9
print((small != 0).float().mean().item())
"""
BLOCK = 20_000_000  # bytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="is about glibc, from 2.33 on")
def test_on_a_cpu_freed_memory_is_kept_and_tiny_numbers_count_as_zero_in_all_threads() -> None:
    def run(how: str) -> list[float]:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return [float(number) for number in done.stdout.split()]

    (kept, shares), (picked_kept, picked_shares) = run("plain"), run("picked")
    assert kept < BLOCK <= picked_kept
    assert (shares, picked_shares) == (1, 0)


def test_another_library_of_c_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=OSError))
    assert pick_device("cpu") == CPU

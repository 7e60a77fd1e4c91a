"""Devices and precisions: the given one, or the best one here."""

import ctypes
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from imports import ROOT

from pipeline.base.device import pick_device
from pipeline.base.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_said_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.device .* can't be used .*: set it to auto or cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


# Prints the share of tiny numbers that stay above 0, before and after a CPU is picked, and the bytes that glibc keeps
# when a large block is freed. Only the last product is shared by threads: they must not start earlier.
PROGRAM = """
import ctypes, torch
from pipeline.base.device import pick_device
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
torch.set_num_threads(2)
def share(numbers):
    return ((torch.full((numbers,), 1e-40) * 0.9) != 0).float().mean().item()
print(share(1))
pick_device("cpu")
block = torch.empty(5_000_000)
del block
print(mallinfo().fordblks, share(4_000_000))
"""
BLOCK = 20_000_000  # bytes


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="is about glibc, from 2.33 on")
def test_on_a_cpu_freed_memory_is_kept_and_tiny_numbers_count_as_zero_in_all_threads() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True)
    share, kept, picked_share = map(float, said.split())
    assert kept >= BLOCK
    assert (share, picked_share) == (1, 0)


def test_another_library_of_c_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=OSError))
    assert pick_device("cpu") == CPU

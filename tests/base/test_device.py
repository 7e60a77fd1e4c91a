"""Devices and precisions: the given one, or the best one here."""

import ctypes
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from pipeline.base.device import has_bfloat16, pick_device, pick_precision
from pipeline.base.errors import UserError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "mps:x"])
def test_a_device_that_is_not_there_is_said_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.device .* can't be used .*: set it to auto or cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_precision_is_the_given_one_and_auto_what_the_cpu_has() -> None:
    assert pick_precision("float32", CPU) == torch.float32
    assert pick_precision("bfloat16", CPU) == torch.bfloat16
    assert (pick_precision("auto", CPU) == torch.bfloat16) == has_bfloat16(CPU)


# Prints the bytes that glibc maps for one large block, and the bytes that it keeps when the block is freed.
MEMORY = """
import ctypes, sys, torch
if sys.argv[1] == "picked":
    from pipeline.base.device import pick_device
    pick_device("cpu")
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
before = mallinfo().hblkhd
block = torch.ones(5_000_000)
mapped = mallinfo().hblkhd - before
del block
print(mapped, mallinfo().fordblks)
"""
BLOCK = 20_000_000  # bytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="is about glibc, from 2.33 on")
def test_freed_memory_is_kept_for_the_next_step_on_a_cpu() -> None:
    def run(how: str) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True)
        mapped, kept = map(int, done.stdout.split())
        return mapped, kept

    mapped, kept = run("plain")
    assert mapped >= BLOCK > kept
    mapped, kept = run("picked")
    assert mapped == 0
    assert kept >= BLOCK


def test_another_library_of_c_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for refusal in (AttributeError, OSError, TypeError):
        monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=refusal))
        assert pick_device("cpu") == CPU


# A product that threads share, and a training in which most pixels are on in the first images only.
DENORMALS = """
import sys, torch
torch.set_num_threads(2)
if sys.argv[1] == "picked":
    from pipeline.base.device import pick_device
    pick_device("cpu")
small = torch.full((4_000_000,), 1e-40) * 0.9
print((small != 0).float().mean().item())
torch.manual_seed(0)
layer = torch.nn.Linear(784, 32)
images = torch.zeros(900, 16, 784)
images[0] = torch.rand(16, 784)
images[..., :300] = torch.rand(900, 16, 300)
optimizer = torch.optim.Adam(layer.parameters(), fused=True)
for batch in images:
    layer(batch).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
means = optimizer.state[layer.weight]["exp_avg"]
print(((means != 0) & (means.abs() < 1e-38)).sum().item())
print(layer.weight.double().sum().item(), layer.weight.double().square().sum().item())
"""


def test_tiny_numbers_count_as_zero_on_a_cpu() -> None:
    """In all threads. The weights that Adam reaches stay exactly the same."""

    def run(how: str) -> list[str]:
        command = [sys.executable, "-c", DENORMALS, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n", 2)

    share, count, weights = run("picked")
    assert (float(share), int(count)) == (0, 0)
    plain_share, plain_count, plain_weights = run("plain")
    assert (float(plain_share), plain_weights) == (1, weights)
    assert int(plain_count) > 1000

"""Devices and precisions: what is asked for, or what pays."""

import pytest
import torch

from pipeline.device import has_bfloat16, pick_device, pick_precision
from pipeline.errors import UserError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "mps:x"])
def test_a_device_that_is_not_there_is_said_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"train\.device .* can't be used .*: set it to auto or cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_precision_is_what_was_asked_for_and_auto_what_the_processor_has() -> None:
    assert pick_precision("float32", CPU) == torch.float32
    assert pick_precision("bfloat16", CPU) == torch.bfloat16
    assert (pick_precision("auto", CPU) == torch.bfloat16) == has_bfloat16(CPU)

"""Everything that calls torch's compiler."""

from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import torch

from pipeline.base.device import compiler
from pipeline.base.errors import UserError

COMPILING_PAYS = 80_000  # steps: on an H200 compiling takes 15 s and saves 0.15 ms a step

Compile = Literal["auto", "always", "never"]
P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R], choice: Compile, device: torch.device, steps: int) -> Callable[P, R]:
    """The function for a run of so many steps, as torch's compiler makes it or as it is: `auto` is for long GPU runs.

    Raises UserError if train.compile is `always` and the CPU's compiler is missing.
    """
    if choice == "always" and device.type == "cpu" and not compiler():
        raise UserError("train.compile always needs a C++ compiler (g++, or what CXX names): install it, or set auto")
    if choice == "always" or (choice == "auto" and device.type == "cuda" and steps >= COMPILING_PAYS):
        return torch.compile(function, dynamic=False)
    return function

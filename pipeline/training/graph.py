"""How steps are made fast: by torch's compiler, and on a GPU as replays of one step captured in a CUDA graph.

A step of the strong model is some 140 launches, which cost the host ten times what a GPU needs for their work; in a
graph they are one launch. What differs from step to step lies in tables on the device, read at a counter that the step
itself raises, so that the host has nothing to do within an epoch.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from pipeline.base.device import compiler
from pipeline.base.errors import UserError
from pipeline.training.schedule import Step

COMPILING_PAYS = 80_000  # steps: on an H200 compiling takes 15 s and saves 0.15 ms a step
WARM_UP = 3  # steps before the capture: they allocate what a step needs, and let torch choose its kernels

# Takes row numbers (B,) and a Step, trains, and returns the step's losses (...). Its randomness is `source`'s.
Take = Callable[[Tensor, Step[Any]], Tensor]
Mode = Literal["numbers", "tables", "graph"]
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


def mode_of(choice: Compile, device: torch.device) -> Mode:
    """How steps are taken: on a GPU as a captured one, unless train.compile is `never`."""
    return "numbers" if device.type == "cpu" else "tables" if choice == "never" else "graph"


class Steps:
    """Takes all steps of an epoch, as often as asked.

    state: all tensors that a step changes. mode: `numbers` gives each step its numbers (CPU), `tables` has it read them
    from tables on the device (the plain reference on a GPU), `graph` replays the latter.
    """

    def __init__(
        self, take: Take, source: torch.Generator, state: Callable[[], Iterable[Tensor]], dtype: torch.dtype, mode: Mode
    ) -> None:
        self.take, self.source, self.state, self.dtype, self.mode = take, source, state, dtype, mode
        self._tables: dict[str, Tensor] = {}
        self._next = torch.zeros(1, dtype=torch.int64, device=source.device)  # the number of the next step
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, rows: Tensor, plan: Sequence[Step[float]], seed: int) -> Tensor:
        """rows: (steps, B). Returns the losses of each step, (steps, ...)."""
        if self.mode == "numbers":
            self.source.manual_seed(seed)
            return torch.stack([self.take(batch, step) for batch, step in zip(rows, plan, strict=True)])
        self._load(rows, plan)
        if self.mode == "graph" and self._graph is None:
            self._graph = self._captured()
        self.source.manual_seed(seed)
        for _ in plan:
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        return self._tables["losses"].clone()

    def _load(self, rows: Tensor, plan: Sequence[Step[float]]) -> None:
        """Writes an epoch's rows and numbers into the tables, which keep their place, and starts at the first."""
        columns = {
            name: torch.tensor(column, dtype=self.dtype, device=rows.device)
            for name, column in zip(Step._fields, zip(*plan, strict=True), strict=True)
            if column[0] is not None
        }
        for name, column in (columns | {"rows": rows}).items():
            self._tables.setdefault(name, torch.empty_like(column)).copy_(column)
        self._next.zero_()

    def _step(self) -> None:
        """One step that reads all it needs from the tables and leaves its losses there."""
        row = {
            name: table.index_select(0, self._next).squeeze(0)
            for name, table in self._tables.items()
            if name != "losses"
        }
        losses = self.take(row["rows"], Step(*(row.get(name) for name in Step._fields)))
        if "losses" not in self._tables:
            self._tables["losses"] = losses.new_zeros(len(self._tables["rows"]), *losses.shape)
        self._tables["losses"].index_copy_(0, self._next, losses.unsqueeze(0))
        self._next += 1

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """One step as a graph, its warm-up undone; None, with a warning, where it can't be captured."""
        before = {tensor: tensor.detach().clone() for tensor in self.state()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._next.zero_()  # an epoch may have fewer steps than these
                self._step()
            with torch.no_grad():
                for tensor in self.state():  # what is new among it, an optimizer's moments, begins at 0
                    tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()
            self._next.zero_()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.source)
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            said = f"a training step can't be captured in a CUDA graph and runs ten times slower ({error})"
            warnings.warn(" ".join(said.split()), stacklevel=2)
            self.mode = "tables"
            return None
        return graph

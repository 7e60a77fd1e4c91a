"""Compiled training: the same losses and gradients as the plain code, from one graph."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from solo import CPU, TREATMENTS, VALIDATION, Treatment, treatment

from pipeline.base.errors import UserError
from pipeline.training.fit import fit, start
from pipeline.training.graph import compiled

NAMES = ["capacity and free bits", "several draws, mixture", "resnet, everything"]
TRACED = {name: TREATMENTS[name] for name in NAMES} | {"bfloat16": treatment(precision="bfloat16")}
CASES = [pytest.param(case, "aot_eager", id=name) for name, case in TRACED.items()]
CASES += [pytest.param(treatment(), "inductor", id="as C++")]  # which takes long to make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler's own libraries
@pytest.mark.parametrize(("case", "backend"), CASES)
def test_compiled_training_equals_plain_training_to_rounding(
    case: Treatment, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of two epochs and the last step's gradients, of one graph (two where the draws change)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    ends = []
    for choice in ("never", "always"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        params = replace(case.params, epochs=2, compile=choice)
        training = start(case.model(dtype=torch.float32), params, CPU)
        with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):  # C++ without vectors takes half the time
            records = list(fit(training, case.data, VALIDATION, params, case.aim))
        found = [weight.grad.flatten() for weight in training.trained.parameters() if weight.grad is not None]
        ends.append((torch.cat(found), [record.figures["train/loss"] for record in records]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if case.aim.draws > 1 else 1)
    assert not torch._dynamo.utils.counters["graph_break"]
    (plain, losses), (other, others) = ends
    tolerance = 2e-2 if case.params.precision == "bfloat16" else 1e-3
    assert losses == pytest.approx(others, rel=tolerance)
    assert (plain - other).norm() < 10 * tolerance * plain.norm()


def test_auto_compiles_long_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: "compiled")
    runs = [("cpu", 10**9), ("cuda", 10**9), ("cuda", 10**4)]
    assert [compiled(abs, "auto", torch.device(device), steps) for device, steps in runs] == [abs, "compiled", abs]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    case = treatment(compile="always")
    with pytest.raises(UserError, match=r"train\.compile always needs a C\+\+ compiler"):
        next(fit(start(case.model(), case.params, CPU), case.data, VALIDATION, case.params, case.aim))

"""Compiled training: the same losses and gradients as the plain code, from one graph."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from settings import objective_params, train_params
from solo import AIM, CPU, PARAMS, SMALL, TRAIN, VALIDATION

from pipeline.base.errors import UserError
from pipeline.model.cvae import Architecture, build
from pipeline.training import compiled
from pipeline.training.compiled import Compile
from pipeline.training.fit import TrainParams, fit, start
from pipeline.training.objective import ObjectiveParams


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler's own libraries
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "capacity", "capacity": 5.0, "prior": "class", "likelihood": "sigma_optimal"},
        {"likelihood": "discretized_logistic", "free_bits": 0.1, "clip": 1.0, "ema": 0.9},
        {"architecture": "resnet", "channels": (6, 8), "blocks": 1, "prior": "mixture", "prior_components": 3},
        {"draws": 3, "draws_after": 0.5, "pixels": "binary"},
        {"schedule": "warmup", "precision": "bfloat16"},
    ],
    ids=str,
)
def test_compiled_training_equals_plain_training_to_rounding(changes: dict[str, Any]) -> None:
    """The losses of two epochs and the last step's gradients, of one graph (two where the draws change)."""
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in (Architecture, ObjectiveParams, TrainParams)}
    of = {kind: {key: value for key, value in changes.items() if key in names} for kind, names in fields.items()}
    aim, architecture = replace(AIM, **of[ObjectiveParams]), replace(SMALL, **of[Architecture])
    ends = []
    for choice in ("never", "always"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        params = replace(PARAMS, epochs=2, compile=choice, **of[TrainParams])
        training = start(build(architecture, 0, aim.likelihood), params, CPU)
        records = list(fit(training, TRAIN, VALIDATION, params, aim))
        found = [weight.grad.flatten() for weight in training.trained.parameters() if weight.grad is not None]
        ends.append((torch.cat(found), [record.figures["train/loss"] for record in records]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if "draws_after" in changes else 1)
    assert not torch._dynamo.utils.counters["graph_break"]
    (plain, losses), (other, others) = ends
    tolerance = 2e-2 if "precision" in changes else 1e-3
    assert losses == pytest.approx(others, rel=tolerance)
    assert (plain - other).norm() < 10 * tolerance * plain.norm()


@pytest.mark.parametrize(
    ("choice", "device", "steps", "worth"),
    [
        ("auto", "cpu", 10**9, False),
        ("auto", "cuda", 10**9, True),
        ("auto", "cuda", 10**4, False),
        ("never", "cuda", 10**9, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(choice: Compile, device: str, steps: int, worth: bool) -> None:
    assert compiled.is_worth(choice, torch.device(device), steps) == worth


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    params = train_params(compile="always")
    with pytest.raises(UserError, match=r"train\.compile always needs a C\+\+ compiler"):
        next(fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, objective_params()))

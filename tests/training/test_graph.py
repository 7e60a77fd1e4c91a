"""Steps that read tables, and on a GPU steps captured in a graph, are the plain steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from settings import objective_params, train_params
from solo import CPU, SMALL, TRAIN, VALIDATION, weights

from pipeline.model.cvae import Architecture, build
from pipeline.training import fit as fit_module
from pipeline.training import population
from pipeline.training.fit import fit, start
from pipeline.training.graph import Mode

PARAMS = train_params(epochs=3, batch_size=20, device="auto")
CONVOLUTIONS = replace(SMALL, architecture="resnet", channels=(4, 6), blocks=1)
# What a step can be made of: params of train, of the objective, and the architecture.
TREATMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], Architecture]] = {
    "plain": ({}, {}, SMALL),
    "averaged, clipped, moved": ({"ema": 0.9, "clip": 1.0, "augment": 1.0, "augment_until": 0.5}, {}, SMALL),
    "warm-up, free bits, binary": ({}, {"schedule": "warmup", "free_bits": 0.1, "pixels": "binary"}, SMALL),
    "capacity, sigma_optimal": ({}, {"schedule": "capacity", "likelihood": "sigma_optimal"}, SMALL),
    "several draws at the end": ({}, {"draws": 3, "draws_after": 0.5}, SMALL),
    "convolutions, mixture": ({"ema": 0.9}, {}, replace(CONVOLUTIONS, prior="mixture", prior_components=2)),
    "logistic, class prior": ({}, {"likelihood": "discretized_logistic"}, replace(SMALL, prior="class")),
}
treatments = pytest.mark.parametrize(("train", "aim", "architecture"), TREATMENTS.values(), ids=TREATMENTS)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(
    monkeypatch: pytest.MonkeyPatch,
    mode: Mode,
    train: dict[str, Any],
    aim: dict[str, Any],
    architecture: Architecture,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, list[float]]:
    """The weights of a run whose steps are taken so, and its losses."""
    monkeypatch.setattr(fit_module, "mode_of", lambda *_: mode)
    params, goal = replace(PARAMS, **train), objective_params(**aim)
    run = start(build(architecture, 0, goal.likelihood, goal.sigma).to(dtype), params, device)
    records = list(fit(run, TRAIN.to(device), VALIDATION.to(device), params, goal))
    return weights(run.model), [record.figures["train/loss"] for record in records]


@treatments
def test_a_step_that_reads_tables_is_the_plain_step(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], aim: dict[str, Any], architecture: Architecture
) -> None:
    plain, losses = trained(monkeypatch, "numbers", train, aim, architecture)
    from_tables, others = trained(monkeypatch, "tables", train, aim, architecture)
    torch.testing.assert_close(from_tables, plain, rtol=0, atol=1e-12)
    assert others == pytest.approx(losses, rel=1e-12)


@on_gpu
@treatments
def test_a_captured_step_is_the_plain_step_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], aim: dict[str, Any], architecture: Architecture
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # else convolutions add in any order
    plain, _ = trained(monkeypatch, "tables", train, aim, architecture, gpu, torch.float32)
    captured, _ = trained(monkeypatch, "graph", train, aim, architecture, gpu, torch.float32)
    assert torch.equal(captured, plain)


@pytest.mark.parametrize("mode", ["tables", pytest.param("graph", marks=on_gpu)])
def test_a_population_is_taken_further_alike_and_members_may_leave(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    device = torch.device("cpu" if mode == "tables" else "cuda")
    found = []
    for each in ("numbers" if mode == "tables" else "tables", mode):
        monkeypatch.setattr(fit_module, "mode_of", lambda *_, each=each: each)
        params, dtype = replace(PARAMS, ema=0.9), torch.float64 if mode == "tables" else torch.float32
        models = [build(SMALL, seed).to(dtype) for seed in range(3)]
        members = population.start(models, [0.1, 1.0, 10.0], params, device, [1e-3, 2e-3, 3e-3])
        splits = TRAIN.to(device), VALIDATION.to(device)
        for records in population.fit(members, *splits, params, objective_params()):
            members.drop([1] if next(iter(records.values())).epoch == 1 else [])  # nobody leaves, in new tensors
        found.append(torch.cat([weights(members.model(member)) for member in members.members]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12 if mode == "tables" else 0)

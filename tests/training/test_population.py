"""A population: each member equals its solo run."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from solo import CPU, KL_WEIGHTS, TREATMENTS, VALIDATION, Treatment, assert_solo, treatment, treatments, weights

from pipeline.model.cvae import CVAE, PRESETS
from pipeline.training import population
from pipeline.training.fit import Record
from pipeline.training.population import Population, auto_size, fit, member_bytes, start

CASE = treatment()


def train(case: Treatment = CASE, models: list[CVAE] | None = None) -> tuple[Population, list[dict[int, Record]]]:
    """A population of three, which has its own KL weights: that of the objective is unread."""
    members = start(models or three(case), KL_WEIGHTS, case.params, CPU)
    unread = replace(case.aim, kl_weight=1e6)
    return members, list(fit(members, case.data, VALIDATION, case.params, unread))


def three(case: Treatment = CASE, dtype: torch.dtype = torch.float64) -> list[CVAE]:
    return [case.model(seed, dtype) for seed in range(len(KL_WEIGHTS))]


@treatments
def test_a_member_is_its_solo_run(case: Treatment) -> None:
    case = case._replace(params=replace(case.params, epochs=2))
    assert_solo(case, *train(case))


@pytest.mark.parametrize(
    ("leavers", "case", "rates"),
    [([0], TREATMENTS["sigma optimal, averaged"], None), ([2, 1], CASE, [5e-4, 1e-3, 4e-3])],
)
def test_the_rest_go_on_as_if_the_leavers_had_stayed(
    leavers: list[int], case: Treatment, rates: list[float] | None
) -> None:
    """With averaged weights, calibrated likelihoods and learning rates of their own."""
    members = start(three(case), KL_WEIGHTS, case.params, CPU, rates)
    records = []
    for record in fit(members, case.data, VALIDATION, case.params, case.aim):
        records.append(record)
        if members.epoch == 1:
            members.drop(leavers)
    stayers = [member for member in range(3) if member not in leavers]
    assert [list(record) for record in records] == [[0, 1, 2], stayers, stayers]
    assert all(len(weight) == len(stayers) for weight in members.weights.values())
    assert_solo(case, members, records, rates)


def test_when_all_have_left_training_ends() -> None:
    members = start(three(), KL_WEIGHTS, CASE.params, CPU)
    for record in fit(members, CASE.data, VALIDATION, CASE.params, CASE.aim):
        members.drop(record)
    assert (members.epoch, members.members) == (1, [])


def with_a_sick_one(case: Treatment, dtype: torch.dtype = torch.float32) -> list[CVAE]:
    models = three(case, dtype)
    with torch.no_grad():
        models[1].log_var.bias.fill_(2000.0)  # its exponential overflows
    return models


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_members_nan_stays_its_own(precision: Any) -> None:
    """The others have, bit for bit, the weights that they have beside a healthy neighbour."""
    case = treatment(precision=precision)
    healthy, _ = train(case, three(dtype=torch.float32))
    members, records = train(case, with_a_sick_one(case))
    assert [[record.diverged for record in epoch.values()] for epoch in records] == [[False, True, False]] * 3
    assert not math.isfinite(records[0][1].figures["train/loss"])
    for member in (0, 2):
        assert torch.equal(weights(members.model(member)), weights(healthy.model(member)))


def test_bfloat16_multiplies_in_bfloat16() -> None:
    """The gradient of one step differs from float32's, by no more than bfloat16's 8 bits explain."""
    exact, rounded = (
        train(treatment(epochs=1, batch_size=110, precision=precision), three(dtype=torch.float32))[0]
        for precision in ("float32", "bfloat16")
    )
    for name, weight in exact.weights.items():
        gradient, other = (side.optimizer.state[side.weights[name]]["exp_avg"] for side in (exact, rounded))
        assert weight.dtype == rounded.weights[name].dtype == torch.float32
        assert 0 < float((gradient - other).norm() / gradient.norm()) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler's own libraries
def test_compiled_members_are_solo_runs_too_beside_one_that_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's compiler traces them; test_compiled.py has a run that it makes C++ of."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = treatment(replace(CASE.architecture, prior="class"), compile="always", clip=3.0)
    members, records = train(case, with_a_sick_one(case, torch.float64))
    assert all(epoch[1].diverged for epoch in records)
    members.drop([1])
    assert_solo(case, members, records)


def test_what_cannot_be_stacked_is_refused() -> None:
    other = treatment(replace(CASE.architecture, latent_size=5))
    with pytest.raises(ValueError, match="share one architecture"):
        start([CASE.model(), other.model()], [1.0, 1.0], CASE.params, CPU)
    with pytest.raises(ValueError, match="2 models need as many KL weights"):
        start(three()[:2], KL_WEIGHTS, CASE.params, CPU)
    with pytest.raises(ValueError, match="3 models need as many KL weights and learning rates"):
        start(three(), KL_WEIGHTS, CASE.params, CPU, [1e-3])


def test_memory_bounds_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = PRESETS["strong"]
    assert 1 <= auto_size(CPU, strong, 128) <= 16  # by this machine's memory
    monkeypatch.setattr(population, "memory", lambda _: 2**40)
    assert (auto_size(CPU, strong, 128), auto_size(torch.device("cuda"), strong, 128)) == (16, 128)
    monkeypatch.setattr(population, "memory", lambda _: 11 * member_bytes(strong, 128))
    assert auto_size(CPU, strong, 128) == 5
    monkeypatch.setattr(population, "memory", lambda _: 0)
    assert auto_size(CPU, strong, 128) == 1

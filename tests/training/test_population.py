"""A population: each member equals its solo run."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from settings import train_params
from solo import AIM, CPU, KL_WEIGHTS, PARAMS, SMALL, TRAIN, VALIDATION, alone, assert_solo, weights

from pipeline.data.splits import Split
from pipeline.model.cvae import CVAE, PRESETS, Architecture, build
from pipeline.training import population
from pipeline.training.compiled import Compile
from pipeline.training.fit import Record, TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.training.population import Population, auto_size, fit, member_bytes, start

UNREAD = replace(AIM, kl_weight=1e6)  # a population has its own KL weights
MANY, FEW = TRAIN[:110], TRAIN[:60]  # few: convolutions in float64 are slow


def models(
    architecture: Architecture = SMALL, aim: ObjectiveParams = UNREAD, dtype: torch.dtype = torch.float64
) -> list[CVAE]:
    """One for each of KL_WEIGHTS, each with first weights of its own."""
    return [build(architecture, seed, aim.likelihood, aim.sigma).to(dtype) for seed in range(len(KL_WEIGHTS))]


def train(
    models: list[CVAE], params: TrainParams = PARAMS, aim: ObjectiveParams = UNREAD, data: Split = MANY
) -> tuple[Population, list[dict[int, Record]]]:
    members = start(models, KL_WEIGHTS, params, CPU)
    return members, list(fit(members, data, VALIDATION, params, aim))


CONVOLUTIONAL = replace(SMALL, architecture="resnet", channels=(3, 4), blocks=1)
MIXTURE: dict[str, Any] = {"prior": "mixture", "prior_components": 2}
TREATMENTS: dict[str, tuple[Architecture, dict[str, Any], dict[str, Any]]] = {
    "mean, no hidden layer": (Architecture(2, (), (12, 16), "mean", encoder_sees_label=True), {}, {}),
    "product, blind, binary": (
        Architecture(5, (16,), (), "product", encoder_sees_label=False), {"pixels": "binary", "schedule": "warmup"}, {},
    ),
    "sigma optimal, averaged": (SMALL, {"likelihood": "sigma_optimal"}, {"ema": 0.9}),
    "logistic, class prior": (replace(SMALL, prior="class"), {"likelihood": "discretized_logistic"}, {}),
    "capacity and free bits": (SMALL, {"schedule": "capacity", "free_bits": 0.5}, {}),
    "several draws, mixture": (replace(SMALL, **MIXTURE), {"draws": 3, "draws_after": 0.5}, {}),
    "clipped, moved": (SMALL, {}, {"clip": 3.0, "augment": 1.0, "augment_until": 0.7}),
    "conv, several draws": (replace(CONVOLUTIONAL, architecture="conv", blocks=0), {"draws": 2}, {}),
    "resnet, everything": (
        replace(CONVOLUTIONAL, conditioning="sum", **MIXTURE),
        {"likelihood": "sigma_optimal", "schedule": "cyclical", "free_bits": 0.1},
        {"ema": 0.9, "clip": 5.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if value[0].channels else ()) for name, value in TREATMENTS.items()],
)
def test_a_member_is_its_solo_run(name: str) -> None:
    architecture, objective, options = TREATMENTS[name]
    aim, params = replace(UNREAD, **objective), train_params(epochs=2, **options)

    data = FEW if architecture.channels else MANY
    members, records = train(models(architecture, aim), params, aim, data)
    assert_solo(members, records, models(architecture, aim), aim, params, (data, VALIDATION))


@pytest.mark.parametrize(
    ("leavers", "options", "treatment", "rates"),
    [
        ([0], {"ema": 0.9}, {"likelihood": "sigma_optimal"}, None),
        ([2, 1], {}, {}, [5e-4, 1e-3, 4e-3]),
    ],
)
def test_the_rest_go_on_as_if_the_leavers_had_stayed(
    leavers: list[int], options: dict[str, Any], treatment: dict[str, Any], rates: list[float] | None
) -> None:
    """With averaged weights, calibrated likelihoods and learning rates of their own."""
    params, aim = train_params(**options), replace(UNREAD, **treatment)
    members = start(models(aim=aim), KL_WEIGHTS, params, CPU, rates)
    records = []
    for record in fit(members, MANY, VALIDATION, params, aim):
        records.append(record)
        if members.epoch == 1:
            members.drop(leavers)
    stayers = [member for member in range(3) if member not in leavers]
    assert [list(record) for record in records] == [[0, 1, 2], stayers, stayers]
    assert all(len(weight) == len(stayers) for weight in members.weights.values())
    assert_solo(members, records, models(aim=aim), aim, params, (MANY, VALIDATION), rates)


def test_a_gradient_is_clipped_by_its_own_length() -> None:
    """A neighbour's long gradient does not shorten a member's own."""
    params = train_params(clip=3.0)
    quiet, _ = train(models(), params)
    loud = models()
    with torch.no_grad():
        loud[2].pixels.weight *= 300
    members, _ = train(loud, params)
    assert torch.equal(weights(members.model(0)), weights(quiet.model(0)))


def test_when_all_have_left_training_ends() -> None:
    members = start(models(), KL_WEIGHTS, PARAMS, CPU)
    for record in fit(members, MANY, VALIDATION, PARAMS, UNREAD):
        members.drop(record)
    assert (members.epoch, members.members) == (1, [])


@pytest.mark.parametrize("choice", ["never", pytest.param("always", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler's own libraries
def test_a_members_nan_stays_its_own(choice: Compile, precision: Any) -> None:
    """The others have, bit for bit, the weights that they have beside a healthy neighbour."""
    params = replace(PARAMS, compile=choice, precision=precision)
    healthy, _ = train(models(dtype=torch.float32), params)
    sick = models(dtype=torch.float32)
    with torch.no_grad():
        sick[1].log_var.bias.fill_(200.0)  # its exponential overflows float32
    members, records = train(sick, params)
    assert [[record.diverged for record in epoch.values()] for epoch in records] == [[False, True, False]] * 3
    assert not math.isfinite(records[0][1].figures["train/loss"])
    for member in (0, 2):
        assert torch.equal(weights(members.model(member)), weights(healthy.model(member)))


@pytest.mark.slow
def test_bfloat16_ends_near_its_solo_run() -> None:
    params = replace(PARAMS, epochs=6, precision="bfloat16")
    _, records = train(models(CONVOLUTIONAL, dtype=torch.float32), params, data=FEW)
    for member, model in enumerate(models(CONVOLUTIONAL, dtype=torch.float32)):
        _, expected = alone(model, KL_WEIGHTS[member], params, AIM, (FEW, VALIDATION))
        elbo = expected[-1].figures["validation/elbo"]
        assert records[-1][member].figures["validation/elbo"] == pytest.approx(elbo, rel=0.02)


def test_bfloat16_multiplies_in_bfloat16() -> None:
    """The gradient of one step differs from float32's, by no more than bfloat16's 8 bits explain."""
    one_step = replace(PARAMS, epochs=1, batch_size=len(MANY))
    exact, rounded = (
        train(models(dtype=torch.float32), replace(one_step, precision=precision))[0]
        for precision in ("float32", "bfloat16")
    )
    for name, weight in exact.weights.items():
        gradient, other = (side.optimizer.state[side.weights[name]]["exp_avg"] for side in (exact, rounded))
        assert weight.dtype == rounded.weights[name].dtype == torch.float32
        assert 0 < float((gradient - other).norm() / gradient.norm()) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_members_are_solo_runs_too() -> None:
    params, architecture = replace(PARAMS, compile="always", clip=3.0), replace(SMALL, prior="class")
    members, records = train(models(architecture), params)
    assert_solo(members, records, models(architecture), UNREAD, params, (MANY, VALIDATION))


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ValueError, match="share one architecture"):
        start([build(SMALL, 0), build(replace(SMALL, latent_size=5), 0)], [1.0, 1.0], PARAMS, CPU)
    with pytest.raises(ValueError, match="2 models need as many KL weights"):
        start(models()[:2], KL_WEIGHTS, PARAMS, CPU)
    with pytest.raises(ValueError, match="3 models need as many KL weights and learning rates"):
        start(models(), KL_WEIGHTS, PARAMS, CPU, [1e-3])


def test_memory_bounds_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = PRESETS["strong"]
    assert 1 <= auto_size(CPU, strong, 128) <= 16  # by this machine's memory
    monkeypatch.setattr(population, "_memory", lambda _: 2**40)
    assert (auto_size(CPU, strong, 128), auto_size(torch.device("cuda"), strong, 128)) == (16, 128)
    monkeypatch.setattr(population, "_memory", lambda _: 11 * member_bytes(strong, 128))
    assert auto_size(CPU, strong, 128) == 5
    monkeypatch.setattr(population, "_memory", lambda _: 0)
    assert auto_size(CPU, strong, 128) == 1

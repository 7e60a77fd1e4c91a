"""A population: each member is the solo run that it stands for."""

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import solo
import torch
from settings import objective_params, train_params
from solo import KL_WEIGHTS, alone, weights
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.model import likelihood
from pipeline.model.cvae import CVAE, PRESETS, Architecture, build
from pipeline.training import population
from pipeline.training.fit import Compile, Record, TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.training.population import Population, auto_size, fit, member_bytes, start

CPU = torch.device("cpu")
SMALL = Architecture(4, (24,), (16,), "concat", encoder_sees_label=True)
OTHER = Architecture(4, (24, 8), (16,), "sum", encoder_sees_label=False)
PARAMS = train_params()
AIM = objective_params(kl_weight=1e6)  # a population reads its own KL weights


def noisy(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator)
    images[torch.arange(count), :, 2 * labels] += 180
    return Split(images.to(torch.uint8), labels)


TRAIN, VALIDATION = noisy(110, 0), noisy(50, 1)
FEW = TRAIN[:60]  # convolutions in float64 take their time


def models(architecture: Architecture = SMALL, dtype: torch.dtype = torch.float64) -> list[CVAE]:
    """One for each of KL_WEIGHTS, each with weights of its own."""
    return [build(architecture, seed).to(dtype) for seed in range(len(KL_WEIGHTS))]


def train(
    models: list[CVAE], params: TrainParams = PARAMS, aim: ObjectiveParams = AIM, data: Split = TRAIN
) -> tuple[Population, list[dict[int, Record]]]:
    members = start(models, KL_WEIGHTS, params, CPU)
    return members, list(fit(members, data, VALIDATION, params, aim))


def assert_solo(
    members: Population,
    records: list[dict[int, Record]],
    originals: list[CVAE],
    aim: ObjectiveParams,
    params: TrainParams = PARAMS,
    data: Split = TRAIN,
    rates: list[float] | None = None,
) -> None:
    solo.assert_solo(members, records, originals, aim, params, (data, VALIDATION), rates)


@pytest.mark.parametrize(
    ("architecture", "pixels"),
    [(SMALL, "binary"), (OTHER, "grey")],
    ids=["concat", "sum"],
)
@pytest.mark.slow
def test_a_member_is_its_solo_run_over_100_steps(architecture: Architecture, pixels: str) -> None:
    aim = objective_params(kl_weight=1e6, pixels=pixels)
    params, data = dataclasses.replace(PARAMS, epochs=2), noisy(1000, 0)
    members, records = train(models(architecture), params, aim, data)
    assert records[-1][0].step == 100
    assert_solo(members, records, models(architecture), aim, params, data)


def test_a_likelihood_with_weights_of_its_own_trains_in_each_member(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tempered(likelihood.Bernoulli):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(1.5))
            self.pixel_bias = nn.Parameter(torch.zeros(784))

        def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
            return super().log_prob(outputs * self.temperature + self.pixel_bias, pixels)

    monkeypatch.setitem(likelihood.LIKELIHOODS, "bernoulli", Tempered)
    members, records = train(models())
    assert len(set(members.weights["likelihood.temperature"].tolist())) == len(KL_WEIGHTS)
    assert_solo(members, records, models(), AIM)


def test_each_member_may_have_a_learning_rate_of_its_own() -> None:
    rates = [5e-4, 1e-3, 4e-3]
    members = start(models(), KL_WEIGHTS, PARAMS, CPU, rates)
    records = []
    for record in fit(members, TRAIN, VALIDATION, PARAMS, AIM):
        records.append(record)
        if members.epoch == 2:
            members.drop([1])
    assert_solo(members, records, models(), AIM, rates=rates)
    assert members.pace is not None
    assert len(members.pace) == 2


CONVOLUTIONAL = replace(SMALL, architecture="resnet", channels=(3, 4), blocks=1)
TREATMENTS: dict[str, tuple[Architecture, dict[str, Any], dict[str, Any]]] = {
    "mean, no hidden layer": (Architecture(2, (), (12, 16), "mean", encoder_sees_label=True), {}, {}),
    "product, blind": (Architecture(5, (16,), (), "product", encoder_sees_label=False), {"pixels": "binary"}, {}),
    "continuous bernoulli": (SMALL, {"likelihood": "continuous_bernoulli"}, {}),
    "gaussian": (SMALL, {"likelihood": "gaussian"}, {}),
    "sigma learned": (SMALL, {"likelihood": "sigma_learned"}, {}),
    "sigma optimal": (SMALL, {"likelihood": "sigma_optimal"}, {}),
    "sigma optimal, averaged": (SMALL, {"likelihood": "sigma_optimal"}, {"ema": 0.9}),
    "discretized logistic": (SMALL, {"likelihood": "discretized_logistic"}, {}),
    "class prior": (replace(SMALL, prior="class"), {}, {}),
    "mixture prior": (replace(SMALL, prior="mixture", prior_components=2), {"free_bits": 0.2}, {}),
    "warmup": (SMALL, {"schedule": "warmup", "schedule_share": 0.7}, {}),
    "cyclical": (SMALL, {"schedule": "cyclical", "cycles": 3}, {}),
    "capacity": (SMALL, {"schedule": "capacity", "capacity": 4.0}, {}),
    "free bits": (SMALL, {"free_bits": 0.5}, {}),
    "capacity and free bits": (SMALL, {"schedule": "capacity", "free_bits": 0.5}, {}),
    "several draws": (SMALL, {"draws": 3}, {}),
    "several draws in the end, mixture prior": (
        replace(SMALL, prior="mixture", prior_components=2),
        {"draws": 3, "draws_after": 0.5},
        {},
    ),
    "several draws, conv": (replace(CONVOLUTIONAL, architecture="conv", blocks=0), {"draws": 2}, {}),
    "averaged": (SMALL, {}, {"ema": 0.95}),
    "clipped": (SMALL, {}, {"clip": 3.0}),
    "moved images": (SMALL, {}, {"augment": 1.0, "augment_until": 0.7}),
    "conv": (replace(CONVOLUTIONAL, architecture="conv", blocks=0), {}, {}),
    "resnet, blind": (replace(CONVOLUTIONAL, encoder_sees_label=False, conditioning="sum"), {}, {}),
    "resnet, everything": (
        replace(CONVOLUTIONAL, prior="mixture", prior_components=2),
        {"likelihood": "sigma_optimal", "schedule": "cyclical", "free_bits": 0.1},
        {"ema": 0.9, "clip": 5.0},
    ),
}

QUICK = (
    "mean, no hidden layer",
    "several draws",
    "sigma optimal, averaged",
    "mixture prior",
    "capacity and free bits",
    "clipped",
    "moved images",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TREATMENTS],
)
def test_a_member_is_its_solo_run_under_any_treatment(name: str) -> None:
    architecture, objective, options = TREATMENTS[name]
    aim, params = objective_params(kl_weight=1e6, **objective), train_params(epochs=2, **options)

    def originals() -> list[CVAE]:
        seeds = range(len(KL_WEIGHTS))
        return [build(architecture, seed, aim.likelihood, aim.sigma).to(torch.float64) for seed in seeds]

    data = FEW if architecture.channels else TRAIN
    members, records = train(originals(), params, aim, data)
    assert_solo(members, records, originals(), aim, params, data)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}])
def test_an_average_stays_with_its_member_when_others_leave(options: dict[str, Any]) -> None:
    params, aim = train_params(**options), objective_params(kl_weight=1e6, likelihood="sigma_optimal")

    def originals() -> list[CVAE]:
        return [build(SMALL, seed, "sigma_optimal").double() for seed in range(3)]

    members = start(originals(), KL_WEIGHTS, params, CPU)
    records = []
    for record in fit(members, TRAIN, VALIDATION, params, aim):
        records.append(record)
        if members.epoch == 1:
            members.drop([0])
    assert_solo(members, records, originals(), aim, params)


def test_a_gradient_is_clipped_by_its_own_length() -> None:
    """A neighbour with a gradient as long as you like does not shorten a member's own."""
    params = train_params(clip=3.0)
    quiet, _ = train(models(), params)
    loud = models()
    with torch.no_grad():
        loud[2].pixels.weight *= 300
    members, _ = train(loud, params)
    assert torch.equal(weights(members.model(0)), weights(quiet.model(0)))


@pytest.mark.parametrize("leavers", [[0], [1], [2, 0]])
def test_the_rest_go_on_as_if_the_leavers_had_stayed(leavers: list[int]) -> None:
    members = start(models(), KL_WEIGHTS, PARAMS, CPU)
    records = []
    for record in fit(members, TRAIN, VALIDATION, PARAMS, AIM):
        records.append(record)
        if members.epoch == 1:
            members.drop(leavers)
    stayers = [member for member in range(3) if member not in leavers]
    assert [list(record) for record in records] == [[0, 1, 2], stayers, stayers]
    assert all(len(weight) == len(stayers) for weight in members.weights.values())
    assert_solo(members, records, models(), AIM)


def test_when_all_have_left_training_ends() -> None:
    members = start(models(), KL_WEIGHTS, PARAMS, CPU)
    for record in fit(members, TRAIN, VALIDATION, PARAMS, AIM):
        members.drop(record)
    assert (members.epoch, members.members) == (1, [])


@pytest.mark.parametrize("choice", ["never", "always"], ids=["plain", "compiled"])
def test_a_members_nan_is_its_own(choice: Compile) -> None:
    """The others have, bit for bit, the weights that they have beside a healthy neighbour."""
    params = dataclasses.replace(PARAMS, compile=choice)
    healthy, _ = train(models(dtype=torch.float32), params)
    sick = models(dtype=torch.float32)
    with torch.no_grad():
        sick[1].log_var.bias.fill_(200.0)  # its exponential overflows float32
    members, records = train(sick, params)
    assert [[record.diverged for record in epoch.values()] for epoch in records] == [[False, True, False]] * 3
    assert not math.isfinite(records[0][1].figures["train/loss"])
    assert not weights(members.model(1)).isfinite().all()
    for member in (0, 2):
        assert torch.equal(weights(members.model(member)), weights(healthy.model(member)))


@pytest.mark.slow
def test_bfloat16_ends_near_its_solo_run() -> None:
    params = dataclasses.replace(PARAMS, epochs=8, precision="bfloat16")
    _, records = train(models(dtype=torch.float32), params)
    for member, model in enumerate(models(dtype=torch.float32)):
        _, expected = alone(model, KL_WEIGHTS[member], params, AIM, (TRAIN, VALIDATION))
        assert records[-1][member].figures["validation/elbo"] == pytest.approx(
            expected[-1].figures["validation/elbo"], rel=0.01
        )


@pytest.mark.slow
def test_convolutions_train_in_bfloat16_too() -> None:
    params = train_params(precision="bfloat16")
    originals = [build(CONVOLUTIONAL, seed) for seed in range(3)]
    _, records = train(originals, params, AIM, FEW)
    _, expected = alone(build(CONVOLUTIONAL, 1), KL_WEIGHTS[1], params, AIM, (FEW, VALIDATION))
    assert records[-1][1].figures["validation/elbo"] == pytest.approx(expected[-1].figures["validation/elbo"], rel=0.02)


def test_bfloat16_multiplies_in_bfloat16() -> None:
    """One step's gradient differs from float32's, and by no more than bfloat16's 8 bits explain."""
    one_step = dataclasses.replace(PARAMS, epochs=1, batch_size=len(TRAIN))
    exact, rounded = (
        train(models(dtype=torch.float32), dataclasses.replace(one_step, precision=precision))[0]
        for precision in ("float32", "bfloat16")
    )
    for name, weight in exact.weights.items():
        gradient, other = (side.optimizer.state[side.weights[name]]["exp_avg"] for side in (exact, rounded))
        assert weight.dtype == rounded.weights[name].dtype == torch.float32
        assert 0 < float((gradient - other).norm() / gradient.norm()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [SMALL, replace(SMALL, prior="class")], ids=["stacked", "vmap"])
def test_compiled_members_are_solo_runs_too(architecture: Architecture) -> None:
    """By torch's compiler: test_kernel.py is about those that have a kernel, which clipping has not."""
    params = dataclasses.replace(PARAMS, compile="always", clip=3.0)
    members, records = train(models(architecture), params)
    assert_solo(members, records, models(architecture), AIM, params)


def test_a_members_model_is_a_copy() -> None:
    originals = models()
    members = start(originals, KL_WEIGHTS, PARAMS, CPU)
    before = weights(members.model(2))
    assert torch.equal(before, weights(originals[2]))
    taken = members.model(2)
    list(fit(members, TRAIN, VALIDATION, PARAMS, AIM))
    assert torch.equal(weights(taken), before)
    assert torch.equal(weights(originals[2]), before)
    assert not torch.equal(weights(members.model(2)), before)


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(models())
    assert torch.equal(torch.rand(1), expected)


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ValueError, match="share one architecture"):
        start([build(SMALL, 0), build(OTHER, 0)], [1.0, 1.0], PARAMS, CPU)
    with pytest.raises(ValueError, match="2 models need as many KL weights, not 3"):
        start(models()[:2], KL_WEIGHTS, PARAMS, CPU)
    with pytest.raises(ValueError, match="3 models need as many learning rates, not 1"):
        start(models(), KL_WEIGHTS, PARAMS, CPU, [1e-3])


def test_compiling_members_without_a_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"train\.compile always needs a C\+\+ compiler"):
        train(models(), train_params(compile="always"))


def test_one_who_is_not_in_cannot_leave() -> None:
    members = start(models(), KL_WEIGHTS, PARAMS, CPU)
    members.drop([1])
    with pytest.raises(ValueError, match=r"member 1 is not in the population, whose members are \[0, 2\]"):
        members.drop([1])


def test_memory_bounds_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = PRESETS["strong"]
    monkeypatch.setattr(population, "_memory", lambda _: 2**40)
    assert (auto_size(CPU, strong, 128), auto_size(torch.device("cuda"), strong, 128)) == (16, 64)
    monkeypatch.setattr(population, "_memory", lambda _: 11 * member_bytes(strong, 128))
    assert auto_size(CPU, strong, 128) == 5
    monkeypatch.setattr(population, "_memory", lambda _: 0)
    assert auto_size(CPU, strong, 128) == 1


def test_convolutions_take_memory_for_what_they_compute() -> None:
    conv, more = (replace(PRESETS["strong"], architecture="conv", channels=size) for size in ((32, 64), (64, 64)))
    assert member_bytes(more, 128) - member_bytes(conv, 128) > 128 * 2 * 32 * 14 * 14 * 3 * 4


def test_memory_is_asked_of_this_machine() -> None:
    assert 1 <= auto_size(CPU, PRESETS["article"], 128) <= 16

"""kernel.cpp: a member of it is the solo run that it stands for, as one of the plain step is."""

import itertools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import solo
import torch
from settings import objective_params, train_params
from solo import KL_WEIGHTS
from torch import Tensor

from pipeline import kernel, objective, population, train
from pipeline.data import Split
from pipeline.errors import UserError
from pipeline.model import CVAE, PRESETS, Architecture, build
from pipeline.population import Population, PopulationRecord

CPU = torch.device("cpu")
SMALL = Architecture(4, (24,), (16,), "concat", encoder_sees_label=True)
BLIND = Architecture(3, (24, 8), (16, 12), "sum", encoder_sees_label=False)
PARAMS = train_params(compile="always")
AIM = objective_params(kl_weight=-1.0)  # a population reads its own KL weights


def pictures(count: int, seed: int) -> Split:
    """Some pixels are off in all of them, in the middle of a row too, and some in all of one batch."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator)
    images *= torch.rand(count, 1, 28, 28, generator=generator) < 0.1
    images[:, :, 20:] = 0
    images[:, :, :, 9:20] = 0
    return Split(images.to(torch.uint8), torch.randint(0, 10, (count,), generator=generator))


TRAIN, VALIDATION = pictures(110, 0), pictures(50, 1)


@pytest.fixture(autouse=True)
def kernel_or_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The step that every test means to take, on one thread: no other is there to take its place."""
    monkeypatch.setattr(population, "_stacked_loss", None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def models(architecture: Architecture = SMALL, dtype: torch.dtype = torch.float64) -> list[CVAE]:
    return [build(architecture, seed).to(dtype) for seed in range(len(KL_WEIGHTS))]


def together(
    models: list[CVAE],
    params: train.TrainParams = PARAMS,
    aim: objective.ObjectiveParams = AIM,
    data: Split = TRAIN,
    rates: list[float] | None = None,
    leavers: dict[int, list[int]] | None = None,
) -> tuple[Population, list[PopulationRecord]]:
    """`leavers` by the epoch at whose end they leave."""
    members = population.start(models, KL_WEIGHTS, params, CPU, rates)
    records = []
    for record in population.fit(members, data, VALIDATION, params, aim):
        records.append(record)
        members.drop((leavers or {}).get(record.epoch, []))
    return members, records


def assert_solo(
    members: Population,
    records: list[PopulationRecord],
    originals: list[CVAE],
    params: train.TrainParams = PARAMS,
    aim: objective.ObjectiveParams = AIM,
    data: Split = TRAIN,
    rates: list[float] | None = None,
) -> None:
    solo.assert_solo(members, records, originals, aim, params, (data, VALIDATION), rates)


@pytest.mark.parametrize(
    ("architecture", "aims", "options"),
    [
        (SMALL, {}, {}),
        (BLIND, {"pixels": "binary"}, {"ema": 0.9}),
        (replace(BLIND, conditioning="mean"), {"schedule": "warmup", "schedule_share": 0.7}, {}),
        (replace(SMALL, conditioning="product"), {"schedule": "cyclical", "cycles": 2}, {"warmup": 0.3}),
        (replace(BLIND, encoder_hidden=()), {}, {"augment": 1.0}),
        (replace(SMALL, encoder_hidden=(), decoder_hidden=()), {}, {}),
        (replace(SMALL, encoder_hidden=(17, 5, 9), decoder_hidden=(3, 33, 8)), {}, {"batch_size": 7}),
    ],
    ids=["concat", "sum", "mean", "product", "no encoder", "no hidden layer", "deep"],
)
def test_a_member_is_its_solo_run(architecture: Architecture, aims: dict[str, Any], options: dict[str, Any]) -> None:
    aim, params = objective_params(kl_weight=-1.0, **aims), train_params(compile="always", **options)
    members, records = together(models(architecture), params, aim)
    assert_solo(members, records, models(architecture), params, aim)


def test_by_auto_all_but_short_runs_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Exception):
        pass

    def plain(*_: Any) -> None:
        raise Plain

    monkeypatch.setattr(population, "_stacked_loss", plain)
    auto = train_params(compile="auto")
    images = auto.epochs * (len(TRAIN) // auto.batch_size) * auto.batch_size * len(KL_WEIGHTS)
    with pytest.raises(Plain):
        together(models(), auto)
    monkeypatch.setattr(population, "KERNEL_PAYS", images)
    members, records = together(models(), auto)
    assert_solo(members, records, models())
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(kernel, "build", kernel.build.__wrapped__)
    with pytest.raises(Plain):
        together(models(), auto)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_a_preset_is_its_solo_run_over_100_steps(preset: str) -> None:
    data = pictures(1000, 2)
    members, records = together(models(PRESETS[preset]), replace(PARAMS, epochs=2), data=data)
    assert records[-1].step == 100
    assert_solo(members, records, models(PRESETS[preset]), replace(PARAMS, epochs=2), data=data)


@pytest.mark.parametrize("leavers", [{1: [0]}, {1: [2], 2: [0]}])
def test_members_leave_and_have_rates_and_averages_of_their_own(leavers: dict[int, list[int]]) -> None:
    params, rates = train_params(compile="always", ema=0.9), [5e-4, 1e-3, 4e-3]
    members, records = together(models(), params, rates=rates, leavers=leavers)
    assert members.members == [member for member in range(3) if member not in itertools.chain(*leavers.values())]
    assert_solo(members, records, models(), params, rates=rates)


def test_adam_goes_on_where_the_plain_step_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    members = population.start(models(), KL_WEIGHTS, PARAMS, CPU)
    runs = [
        population.fit(members, TRAIN, VALIDATION, params, AIM) for params in (train_params(), PARAMS, train_params())
    ]
    records = [next(run) for run in runs]
    assert_solo(members, records, models())


@pytest.mark.parametrize("architecture", [SMALL, BLIND], ids=["label seen", "blind"])
def test_a_batch_without_a_pixel_on_trains_as_alone(
    architecture: Architecture, capfd: pytest.CaptureFixture[str]
) -> None:
    blank = Split(torch.zeros_like(TRAIN.images), TRAIN.labels)
    members, records = together(models(architecture), data=blank)
    assert capfd.readouterr() == ("", "")  # a BLAS prints what it thinks of sizes that it is given
    assert_solo(members, records, models(architecture), data=blank)


def test_whichever_thread_takes_a_member_its_weights_are_the_same() -> None:
    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        members, _ = together(models(BLIND, torch.float32), data=pictures(500, 3))
        return [*members.weights.values()]

    alone = run(1)
    for threads in (2, 2, 3):
        assert all(map(torch.equal, run(threads), alone))


def test_with_few_members_for_the_cores_the_plain_step_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = kernel.Library.step, set()

    def counted(*inputs: Any) -> Tensor:
        figures = step(*inputs)
        taken.add(figures.shape[1])
        return figures

    monkeypatch.undo()
    monkeypatch.setattr(population, "KERNEL_PAYS", 0)
    monkeypatch.setattr(kernel.Library, "step", counted)
    torch.set_num_threads(4)
    params = train_params(compile="auto")
    members, records = together(models(), params, leavers={1: [0], 2: [1]})
    assert taken == {3, 2}  # and one member alone does without
    assert_solo(members, records, models())


@pytest.mark.parametrize("loudness", [1.0, 30.0, 3000.0])
def test_in_float32_a_step_is_as_exact_as_the_plain_one(loudness: float) -> None:
    """Logits up to some 3,000, where a sigmoid in float32 is 0 or 1."""
    originals = models(dtype=torch.float32)
    for model in originals:
        model.pixels.weight.data *= loudness
    noise = torch.randn(len(TRAIN), SMALL.latent_size, generator=torch.Generator().manual_seed(0))
    library = kernel.build()
    assert library is not None
    ends = []
    for dtype in (torch.float32, torch.float64):
        members = population.start([model.to(dtype) for model in originals], KL_WEIGHTS, PARAMS, CPU)
        batch = TRAIN.images, TRAIN.labels, noise.to(dtype)
        rates = torch.full((len(KL_WEIGHTS),), 1e-3, dtype=dtype)
        kl_weights, adam = members.kl_weights, members.optimizer
        figures = library.step(members.template, members.weights, adam, None, kl_weights, rates, batch)
        states = [adam.state[weight] for weight in members.weights.values()]
        ends.append((figures, [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")]))
    (figures, moments), (expected, exact) = ends
    torch.testing.assert_close(figures.double(), expected, rtol=1e-6, atol=0)
    for ours, other in zip(moments, exact, strict=True):
        assert (ours - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize(
    ("architecture", "aims", "options"),
    [
        (replace(SMALL, architecture="conv", channels=(3, 4)), {}, {}),
        (replace(SMALL, prior="class"), {}, {}),
        (SMALL, {"likelihood": "continuous_bernoulli"}, {}),
        (SMALL, {"draws": 2}, {}),
        (SMALL, {"schedule": "capacity"}, {}),
        (SMALL, {"free_bits": 0.1}, {}),
        (SMALL, {}, {"clip": 3.0}),
    ],
)
def test_what_it_was_not_written_for_does_not_suit(
    architecture: Architecture, aims: dict[str, Any], options: dict[str, Any]
) -> None:
    aim = objective_params(**aims)
    assert kernel.suits(build(SMALL, 0), PARAMS, AIM)
    assert not kernel.suits(build(architecture, 0, aim.likelihood), train_params(**options), aim)


def test_where_it_cannot_be_compiled_auto_goes_without_and_always_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(population, "KERNEL_PAYS", 0)
    monkeypatch.setattr(kernel, "FLAGS", ("-no-such-flag", *kernel.FLAGS))
    monkeypatch.setattr(kernel, "build", kernel.build.__wrapped__)
    members, records = together(models(), train_params(compile="auto"))
    assert_solo(members, records, models())
    with pytest.raises(UserError, match=r"can't make a library of kernel\.cpp \(.*no-such-flag.*\): name") as error:
        together(models())
    assert "\n" not in str(error.value)


# What the step reads or `suits` refuses (train.precision in population._pick_step), what has its effect around it, and
# where a new option does not yet stand: it would have no effect on the members that the kernel trains.
CONSIDERED = {
    Architecture: "latent_size encoder_hidden decoder_hidden conditioning encoder_sees_label architecture prior",
    train.TrainParams: "learning_rate warmup ema clip precision",
    objective.ObjectiveParams: "likelihood draws schedule free_bits kl_weight",
}
AROUND = {
    Architecture: "channels blocks prior_components init",
    train.TrainParams: "epochs batch_size augment augment_until seed device compile",
    objective.ObjectiveParams: "sigma pixels schedule_share cycles capacity draws_after",
}


@pytest.mark.parametrize("owner", CONSIDERED)
def test_no_option_passes_it_by(owner: type) -> None:
    assert {field.name for field in fields(owner)} == {*CONSIDERED[owner].split(), *AROUND[owner].split()}


def test_it_takes_the_products_of_mkl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert kernel.build.__wrapped__() is None


@pytest.mark.slow
def test_its_source_compiles_without_a_warning() -> None:
    flags = (*kernel.FLAGS, "-Wall", "-Wextra", "-Wshadow", "-fsyntax-only")
    command = [str(train.compiler()), *flags, str(kernel.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not re.findall(r"(?:warning|error): .*", done.stderr)

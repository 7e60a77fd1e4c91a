"""Training: deterministic, resumable, honest about divergence."""

import copy
import dataclasses
import doctest
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import objective_params, train_params
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.data.splits import Split, batches, to_unit
from pipeline.model import likelihood
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.stages.saved import resume_training, save_training
from pipeline.training import fit as train_module
from pipeline.training import objective
from pipeline.training.fit import (
    Compile,
    Diverged,
    Training,
    TrainParams,
    advance,
    fit,
    labelled,
    laid_out,
    learning_rate,
    pick_gradients,
    start,
    validate,
)
from pipeline.training.objective import ObjectiveParams, Schedule

CPU = torch.device("cpu")
SMALL = Architecture(4, (32,), (32,), "concat", encoder_sees_label=True)
PARAMS = train_params()
AIM = objective_params()


def blobs(count: int, seed: int) -> Split:
    """Pictures of one bright square whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 2 + 9 * (label // 4), 1 + 7 * (label % 4)
        image[:, row : row + 5, column : column + 5] = 250
    return Split(images.to(torch.uint8), labels)


TRAIN, VALIDATION = blobs(210, 0), blobs(50, 1)


def train(params: TrainParams = PARAMS, aim: ObjectiveParams = AIM) -> Training[CVAE]:
    training = start(build(SMALL, params.seed), params, CPU)
    for _ in fit(training, TRAIN, VALIDATION, params, aim):
        pass
    return training


def weights(training: Training[CVAE]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in training.model.parameters()])


def test_the_same_seed_gives_the_same_weights() -> None:
    assert torch.equal(weights(train()), weights(train()))


@pytest.mark.parametrize("change", [{"seed": 8}, {"batch_size": 30}, {"learning_rate": 2e-3}, {"augment": 1.0}])
def test_each_setting_changes_the_weights(change: dict[str, Any]) -> None:
    assert not torch.equal(weights(train()), weights(train(dataclasses.replace(PARAMS, **change))))


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train()
    assert torch.equal(torch.rand(1), expected)


def test_a_record_an_epoch_and_the_loss_falls() -> None:
    training = start(build(SMALL, 0), PARAMS, CPU)
    records = list(fit(training, TRAIN, VALIDATION, dataclasses.replace(PARAMS, epochs=8), AIM))
    assert [record.epoch for record in records] == list(range(1, 9))
    assert [record.step for record in records] == [10 * epoch for epoch in range(1, 9)]
    assert records[-1].figures["train/loss"] < 0.75 * records[0].figures["train/loss"]
    assert records[-1].figures["validation/elbo"] > records[0].figures["validation/elbo"]


def test_a_record_adds_up() -> None:
    aim = dataclasses.replace(AIM, kl_weight=0.25)
    (record, *_) = fit(start(build(SMALL, 0), PARAMS, CPU), TRAIN, VALIDATION, PARAMS, aim)
    assert record.figures["train/loss"] == pytest.approx(
        record.figures["train/reconstruction"] + 0.25 * record.figures["train/kl"]
    )
    assert record.figures["validation/elbo"] == pytest.approx(
        -(record.figures["validation/reconstruction"] + record.figures["validation/kl"])
    )


@pytest.mark.parametrize(
    ("pixels", "architecture"),
    [
        ("grey", SMALL),
        ("binary", SMALL),
        ("grey", replace(SMALL, architecture="resnet", channels=(6, 8), blocks=1)),  # whose weights lie channels last
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(
    tmp_path: Path, pixels: str, architecture: Architecture
) -> None:
    aim = objective_params(pixels=pixels)
    path = tmp_path / "unfinished.safetensors"
    first, whole = (start(build(architecture, PARAMS.seed), PARAMS, CPU) for _ in range(2))
    for record in fit(first, TRAIN, VALIDATION, PARAMS, aim):
        save_training(path, first, {"history": [record.epoch]})
        if record.epoch == 1:
            break

    second = start(build(architecture, seed=99), PARAMS, CPU)
    assert resume_training(path, second) == {"history": [1]}
    assert [record.epoch for record in fit(second, TRAIN, VALIDATION, PARAMS, aim)] == [2, 3]
    for _ in fit(whole, TRAIN, VALIDATION, PARAMS, aim):
        pass
    assert torch.equal(weights(second), weights(whole))


TREATMENTS: list[dict[str, Any]] = [
    {"schedule": "warmup"},
    {"schedule": "cyclical", "cycles": 2, "free_bits": 0.5},
    {"schedule": "capacity", "capacity": 5.0, "kl_weight": 3.0},
    {"likelihood": "sigma_optimal"},
    {"likelihood": "discretized_logistic"},
    {"draws": 3, "draws_after": 0.5},
]


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: next(iter(treatment.values())))
@pytest.mark.parametrize("options", [{"ema": 0.9, "clip": 5.0, "augment": 1.0}, {}], ids=["averaged", "plain"])
def test_under_any_treatment_an_interrupted_run_ends_the_same(
    tmp_path: Path, treatment: dict[str, Any], options: dict[str, Any]
) -> None:
    """In every tensor of the model: a σ that was calibrated, and averaged weights, among them."""
    aim, params = objective_params(**treatment), train_params(**options)

    def fresh() -> Training[CVAE]:
        return start(build(replace(SMALL, prior="class"), 0, aim.likelihood, aim.sigma), params, CPU)

    path, first, second, whole = tmp_path / "unfinished.safetensors", fresh(), fresh(), fresh()
    next(fit(first, TRAIN[:110], VALIDATION, params, aim))
    save_training(path, first, {})
    resume_training(path, second)
    for training in (second, whole):
        *_, record = fit(training, TRAIN[:110], VALIDATION, params, aim)
        assert math.isfinite(record.figures["train/loss"] + record.figures["validation/elbo"])
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_several_draws_change_nothing_before_their_epochs() -> None:
    """So that a run may be gone on with by more draws than it began with."""
    late, early = objective_params(draws=4, draws_after=0.5), objective_params(draws=4)
    after: dict[str, list[Tensor]] = {name: [] for name in ("one", "late", "early")}
    for name, aim in (("one", AIM), ("late", late), ("early", early)):
        run = start(build(SMALL, PARAMS.seed), train_params(epochs=2), CPU)
        for _ in fit(run, TRAIN, VALIDATION, train_params(epochs=2), aim):
            after[name].append(weights(run))
    assert torch.equal(after["one"][0], after["late"][0])
    assert not torch.equal(after["one"][1], after["late"][1])
    assert not torch.equal(after["one"][0], after["early"][0])


def test_the_average_is_what_is_validated_and_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain reference: the weights after every step, averaged by hand with the decay of that step."""
    params = train_params(epochs=2, ema=0.8)
    training = start(build(SMALL, 0).double(), params, CPU)
    means = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
    steps: list[dict[str, Tensor]] = []

    def step(optimizer: torch.optim.Adam) -> None:
        advance(optimizer)
        steps.append({name: weight.detach().clone() for name, weight in training.trained.named_parameters()})

    monkeypatch.setattr(train_module, "advance", step)
    *_, record = fit(training, TRAIN, VALIDATION, params, AIM)
    for index, taken in enumerate(steps):
        keep = min(0.8, (1 + index) / (10 + index))
        means = {name: keep * mean + (1 - keep) * taken[name] for name, mean in means.items()}
    for name, weight in training.model.named_parameters():
        torch.testing.assert_close(weight.detach(), means[name], rtol=0, atol=1e-12)
    assert not torch.equal(weights(training), torch.cat([w.detach().flatten() for w in training.trained.parameters()]))
    assert (
        record.figures["validation/reconstruction"]
        == validate(training.model, VALIDATION, labelled(AIM.pixels)).reconstruction
    )


def test_averaging_does_not_change_what_is_trained() -> None:
    plain_run, averaged = train(), train(train_params(ema=0.99))
    for weight, other in zip(plain_run.model.parameters(), averaged.trained.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_a_long_gradient_is_cut_to_its_length_and_a_short_one_left_alone() -> None:
    """By one step of plain Adam's first moment, 0.1 · gradient."""
    lengths = []
    for clip in (None, 2.0, 1e6):
        training = train(train_params(epochs=1, batch_size=210, clip=clip))
        moments = [training.optimizer.state[weight]["exp_avg"].flatten() for weight in training.trained.parameters()]
        lengths.append(10 * float(torch.cat(moments).norm()))
    assert lengths[0] > 2
    assert lengths[1] == pytest.approx(2, rel=1e-4)
    assert lengths[2] == pytest.approx(lengths[0])


def test_a_record_shows_the_true_terms_under_any_pressure() -> None:
    """At the same weights: the first epoch of one step, whose terms come before any change."""
    params = train_params(epochs=1, batch_size=210)
    records = [
        next(fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, aim))
        for aim in (AIM, objective_params(free_bits=3.0), objective_params(schedule="capacity", kl_weight=9.0))
    ]
    assert len({(record.figures["train/reconstruction"], record.figures["train/kl"]) for record in records}) == 1
    assert len({record.figures["train/loss"] for record in records}) == 3


@pytest.mark.parametrize("schedule", ["warmup", "cyclical"])
def test_a_record_shows_the_weight_that_pressed_last(schedule: str) -> None:
    aim, params = objective_params(schedule=schedule, kl_weight=2.0, cycles=3, schedule_share=1.0), train_params()
    shown = [
        record.figures["kl_weight"]
        for record in fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, aim)
    ]
    expected = {"warmup": [9 / 30, 19 / 30, 29 / 30], "cyclical": [0.9, 0.9, 0.9]}[schedule]
    assert shown == pytest.approx([2 * share for share in expected])


@pytest.mark.slow
def test_a_capacity_leads_the_kl() -> None:
    """A strong weight holds the KL where it is led, above where β would have left it."""
    params = train_params(epochs=30)
    aim = objective_params(schedule="capacity", kl_weight=50.0, capacity=8.0, schedule_share=0.3)
    *_, led = fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, aim)
    *_, pressed = fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, objective_params(kl_weight=50.0))
    assert led.figures["train/kl"] == pytest.approx(8, abs=1)
    assert pressed.figures["train/kl"] < 2


@pytest.mark.slow
def test_free_bits_keep_dimensions_alive() -> None:
    params = train_params(epochs=30)
    aim = objective_params(kl_weight=50.0, free_bits=1.0)
    *_, record = fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, aim)
    assert record.figures["train/kl"] > 3  # of the 4 that are free


def test_sigma_is_that_of_the_training_images() -> None:
    params, aim = train_params(epochs=2), objective_params(likelihood="sigma_optimal")
    training = start(build(SMALL, 0, "sigma_optimal"), params, CPU)
    *_, record = fit(training, TRAIN, VALIDATION, params, aim)
    model = training.model
    assert isinstance(model.likelihood, likelihood.SigmaOptimal)
    # At this very σ the images that it was taken from cost D/2 (log 2πσ² + 1) on average, with whatever draws of z.
    log_sigma = float(model.likelihood.log_sigma)
    expected = 784 * (0.5 * math.log(2 * math.pi) + log_sigma + 0.5)
    assert validate(model, TRAIN, labelled(aim.pixels)).reconstruction == pytest.approx(expected, abs=0.02 * 784)
    assert (
        validate(model, VALIDATION, labelled(aim.pixels)).reconstruction == record.figures["validation/reconstruction"]
    )


def test_between_records_nothing_depends_on_the_batch() -> None:
    """Whoever measures a model that is still in training measures the model, whatever mode it was handed over in."""
    params, aim = train_params(epochs=2), objective_params(likelihood="sigma_optimal")
    training = start(build(SMALL, 0, "sigma_optimal").train(), params, CPU)
    assert not training.model.training
    for _ in fit(training, TRAIN, VALIDATION, params, aim):
        assert not any(part.training for part in training.model.modules())


def test_a_density_above_one_is_no_divergence() -> None:
    """Black pictures under a narrow Gaussian: a reconstruction far below 0, and all is well."""
    dark = Split(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10)
    aim, params = objective_params(likelihood="gaussian", sigma=0.05), train_params(epochs=20, learning_rate=1e-2)
    *_, record = fit(start(build(SMALL, 0, "gaussian", 0.05), params, CPU), dark, dark, params, aim)
    assert record.figures["train/reconstruction"] < -1000
    assert record.figures["validation/elbo"] > 1000


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(train_module).failed == 0


def test_a_divergence_names_step_term_and_cause() -> None:
    training = start(build(SMALL, 0), PARAMS, CPU)
    with torch.no_grad():
        training.model.log_var.bias.fill_(200.0)  # its exponential overflows float32
    with pytest.raises(Diverged, match=r"became (inf|nan) at step 0: .*train\.learning_rate"):
        list(fit(training, TRAIN, VALIDATION, PARAMS, AIM))


def test_a_divergence_blames_a_high_rate() -> None:
    params = dataclasses.replace(PARAMS, learning_rate=1e6, epochs=50)
    with pytest.raises(Diverged, match="learning_rate 1e\\+06 is probably too high"):
        list(fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, AIM))


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    params = dataclasses.replace(PARAMS, batch_size=10_000, epochs=1)
    (record,) = fit(start(build(SMALL, 0), params, CPU), TRAIN, VALIDATION, params, AIM)
    assert record.step == 1


def test_the_loop_is_adam_on_the_objective() -> None:
    """The plain reference: the same batches and noise through torch's own Adam, step by step, in float64."""
    params = dataclasses.replace(PARAMS, epochs=1, warmup=0.0)
    training = start(build(SMALL, 0).double(), params, CPU)
    (record,) = fit(training, TRAIN, VALIDATION, params, AIM)

    model = build(SMALL, 0).double()
    adam = torch.optim.Adam(model.parameters(), foreach=False, fused=False)
    source = torch.Generator().manual_seed(params.seed * 1_000_003)
    losses = []
    for step, rows in enumerate(batches(len(TRAIN), 20, params.seed, 0, CPU)):
        adam.param_groups[0]["lr"] = learning_rate(step, 10, 1e-3, 0.0)
        images = to_unit(TRAIN.images[rows]).double()
        noise = torch.randn(20, 4, generator=source, dtype=torch.float64)
        loss = objective.loss(objective.terms(model, images, TRAIN.labels[rows], noise), 1.0)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    reference = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    torch.testing.assert_close(weights(training), reference, rtol=0, atol=1e-12)
    assert record.figures["train/loss"] == pytest.approx(sum(losses) / 10, rel=1e-12)


@pytest.mark.slow
def test_bfloat16_ends_near_float32() -> None:
    params = dataclasses.replace(PARAMS, epochs=8)
    exact = validate(train(params).model, VALIDATION, labelled(AIM.pixels))
    rounded = validate(train(dataclasses.replace(params, precision="bfloat16")).model, VALIDATION, labelled(AIM.pixels))
    assert rounded.reconstruction + rounded.kl == pytest.approx(exact.reconstruction + exact.kl, rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own libraries warn as they like
@pytest.mark.parametrize("schedule", ["constant", "warmup", "capacity"])
def test_a_compiled_run_is_the_plain_one_to_rounding(schedule: Schedule) -> None:
    """And is compiled once, whatever weight a schedule gives a step."""
    aim = replace(AIM, schedule=schedule, capacity=5.0)
    plain_run = train(aim=aim)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(dataclasses.replace(PARAMS, compile="always"), aim)
    torch.testing.assert_close(weights(compiled), weights(plain_run), rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {"prior": "mixture", "prior_components": 3},
        {"prior": "class", "likelihood": "sigma_optimal"},
        {"likelihood": "discretized_logistic"},
        {"architecture": "resnet", "channels": (6, 8), "blocks": 1},
        {"draws": 3, "draws_after": 0.5, "pixels": "binary"},
        {"free_bits": 0.1, "clip": 1.0, "ema": 0.9},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_whatever_is_compiled_learns_as_the_plain_code(changes: dict[str, Any]) -> None:
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
    for weight in training.trained.parameters():
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
    (plain, losses), (compiled, others) = ends
    tolerance = 2e-2 if "precision" in changes else 1e-3
    assert losses == pytest.approx(others, rel=tolerance)
    assert (plain - compiled).norm() < 10 * tolerance * plain.norm()


def test_gradients_lie_as_their_weights_do_and_are_else_left_alone() -> None:
    """A fused Adam takes the first number in memory for that of the first weight."""
    weights = {"rows": torch.zeros(3, 4), "channels": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    lying = {name: torch.randn_like(weight) for name, weight in weights.items()}
    other = {"rows": torch.randn(4, 3).T, "channels": torch.randn(2, 3, 4, 4)}
    assert [laid_out(lying, weights)[name] is lying[name] for name in weights] == [True, True]
    for name, gradient in laid_out(other, weights).items():
        assert torch.equal(gradient, other[name])
        assert gradient.stride() == weights[name].stride()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_second_run_of_one_model_s_kind_is_not_compiled_again() -> None:
    torch.compiler.reset()
    params = replace(PARAMS, epochs=1, compile="always")
    torch._dynamo.utils.counters.clear()
    for seed in (0, 1):
        train(replace(params, seed=seed))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_our_step_of_adam_is_torch_s_to_the_last_bit() -> None:
    """With weights among them that have no gradient, or a first one later, and after a resume."""
    runs = [start(build(SMALL, 0), PARAMS, CPU) for _ in range(2)]
    noise, found = torch.zeros(len(TRAIN), 4), []
    for index in range(6):
        steps: list[Callable[[torch.optim.Adam], object]] = [torch.optim.Adam.step, advance]
        for run, step in zip(runs, steps, strict=True):
            run.optimizer.param_groups[0]["lr"] = 1e-3 * (index + 1)
            run.optimizer.zero_grad()
            terms = objective.terms(run.trained, to_unit(TRAIN.images), TRAIN.labels, noise)
            (terms.kl if index in (0, 1, 5) else terms.reconstruction).sum().backward()
            found.append(sum(weight.grad is not None for weight in run.trained.parameters()))
            step(run.optimizer)
            if index == 3:
                run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    assert found[0] == found[2] == found[10] < found[4]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[1]), weights(start(build(SMALL, 0), PARAMS, CPU)))


def test_grey_images_reach_the_step_as_bytes_and_are_the_same_numbers_there() -> None:
    images, labels = train_module.labelled("grey")(TRAIN, torch.Generator())
    assert (images.dtype, labels is TRAIN.labels) == (torch.uint8, True)
    model, noise = build(SMALL, 0), torch.zeros(len(TRAIN), 4)
    found, expected = (objective.terms(model, x, labels, noise) for x in (images, to_unit(images)))
    assert torch.equal(found.reconstruction, expected.reconstruction)
    assert torch.equal(found.kl_by_dimension, expected.kl_by_dimension)


@pytest.mark.parametrize(
    ("choice", "device", "images", "compiles"),
    [
        ("auto", "cpu", 10**9, False),
        ("auto", "cuda", 10**9, True),
        ("auto", "cuda", 10**6, False),
        ("never", "cuda", 10**9, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    choice: Compile, device: str, images: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    for name in ("gradients", "compiled_gradients"):
        monkeypatch.setattr(train_module, name, lambda _, name=name: taken.append(name))
    pick_gradients(choice, torch.device(device), images, build(SMALL, 0))
    assert taken == ["compiled_gradients" if compiles else "gradients"]


def test_compiling_without_a_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"train\.compile always needs a C\+\+ compiler"):
        pick_gradients("always", CPU, 1, build(SMALL, 0))


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 200, 0.5, 0.1) for step in range(200)]
    assert max(rates) == rates[19] == 0.5
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert math.isclose(rates[-1], 0, abs_tol=1e-3)

"""Training: deterministic, resumable, and clear about divergence."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import objective_params, train_params
from solo import AIM, CPU, PARAMS, SMALL, TRAIN, VALIDATION, Treatment, treatments, weights
from torch import Tensor

from pipeline.data.splits import Split, batches, to_unit
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.likelihood import SigmaOptimal
from pipeline.stages.saved import resume_training, save_training
from pipeline.training import objective, schedule
from pipeline.training.fit import Diverged, Record, Training, TrainParams, fit, start
from pipeline.training.objective import ObjectiveParams
from pipeline.training.validation import labelled, validate


def run(
    params: TrainParams = PARAMS, aim: ObjectiveParams = AIM, architecture: Architecture = SMALL, data: Split = TRAIN
) -> tuple[Training[CVAE], list[Record]]:
    """A whole run and its records."""
    training = start(build(architecture, params.seed, aim.likelihood, aim.sigma), params, CPU)
    return training, list(fit(training, data, VALIDATION, params, aim))


def test_the_same_params_give_the_same_weights_and_others_do_not() -> None:
    before = torch.random.get_rng_state()
    first, again = (weights(run()[0].model) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    changes: list[dict[str, Any]] = [{"seed": 8}, {"batch_size": 30}, {"learning_rate": 2e-3}, {"augment": 1.0}]
    for change in changes:
        assert not torch.equal(weights(run(replace(PARAMS, **change))[0].model), first)


def test_a_record_for_each_epoch_while_the_loss_falls() -> None:
    _, records = run(replace(PARAMS, epochs=8), replace(AIM, kl_weight=0.25))
    assert [(record.epoch, record.step) for record in records] == [(epoch, 10 * epoch) for epoch in range(1, 9)]
    first, last = records[0].figures, records[-1].figures
    assert last["train/loss"] < 0.75 * first["train/loss"]
    assert last["validation/elbo"] > first["validation/elbo"]
    assert last["train/loss"] == pytest.approx(last["train/reconstruction"] + 0.25 * last["train/kl"])
    assert last["validation/elbo"] == pytest.approx(-(last["validation/reconstruction"] + last["validation/kl"]))


def test_the_loop_is_adam_on_the_objective() -> None:
    """The plain reference: the same batches and noise through torch's plain Adam, step by step, in float64."""
    params = replace(PARAMS, epochs=1, warmup=0.0)
    training = start(build(SMALL, 0).double(), params, CPU)
    (record,) = fit(training, TRAIN, VALIDATION, params, AIM)

    model = build(SMALL, 0).double()
    adam = torch.optim.Adam(model.parameters(), foreach=False, fused=False)
    source = torch.Generator().manual_seed(params.seed * 1_000_003)
    losses = []
    for step, rows in enumerate(batches(len(TRAIN), 20, params.seed, 0, CPU)):
        adam.param_groups[0]["lr"] = schedule.learning_rate(step, 10, 1e-3, 0.0)
        images = to_unit(TRAIN.images[rows]).double()
        noise = torch.randn(20, 4, generator=source, dtype=torch.float64)
        loss = objective.loss(objective.terms(model, images, TRAIN.labels[rows], noise), 1.0)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    torch.testing.assert_close(weights(training.model), weights(model), rtol=0, atol=1e-12)
    assert record.figures["train/loss"] == pytest.approx(sum(losses) / 10, rel=1e-12)


@treatments
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path: Path, case: Treatment) -> None:
    """In every tensor of the model, bit for bit."""
    params, path = case.params, tmp_path / "unfinished.safetensors"
    whole, _ = run(params, case.aim, case.architecture, case.data)
    first, second = (start(case.model(seed, torch.float32), params, CPU) for seed in (params.seed, 99))
    next(fit(first, case.data, VALIDATION, params, case.aim))
    save_training(path, first, {"history": [1]})
    assert resume_training(path, second) == {"history": [1]}
    assert [record.epoch for record in fit(second, case.data, VALIDATION, params, case.aim)] == [2, 3]
    assert weights(whole.model).isfinite().all()
    assert torch.equal(weights(second.model), weights(whole.model))


def test_several_draws_change_nothing_before_their_epochs() -> None:
    """So that a run can continue with more draws than it began with."""
    after = []
    for aim in (AIM, replace(AIM, draws=4, draws_after=0.5)):
        training = start(build(SMALL, 0), train_params(epochs=2), CPU)
        records = fit(training, TRAIN, VALIDATION, train_params(epochs=2), aim)
        after.append([weights(training.model) for _ in records])
    assert torch.equal(after[0][0], after[1][0])
    assert not torch.equal(after[0][1], after[1][1])


def test_the_average_is_what_is_validated_and_saved() -> None:
    """The plain reference: the weights after every step, averaged by hand with the decay of that step."""
    params = train_params(epochs=2, ema=0.8)
    training = start(build(SMALL, 0).double(), params, CPU)
    mean, steps = weights(training.model), list[Tensor]()
    training.optimizer.register_step_post_hook(lambda *_: steps.append(weights(training.trained)))
    *_, record = fit(training, TRAIN, VALIDATION, params, AIM)
    for index, taken in enumerate(steps):
        keep = min(0.8, (1 + index) / (10 + index))
        mean = keep * mean + (1 - keep) * taken
    torch.testing.assert_close(weights(training.model), mean, rtol=0, atol=1e-12)
    assert not torch.equal(weights(training.model), weights(training.trained))
    validated = validate(training.model, VALIDATION, labelled(AIM.pixels))
    assert record.figures["validation/reconstruction"] == validated["reconstruction"]
    assert torch.equal(weights(run(train_params(ema=0.99))[0].trained), weights(run()[0].model))


def test_a_record_has_the_plain_terms_under_any_treatment() -> None:
    """Of an epoch with one step, whose terms are computed before any weight changes."""
    params = train_params(epochs=1, batch_size=10_000)  # a batch larger than the data is the data
    aims = (AIM, replace(AIM, free_bits=3.0), replace(AIM, schedule="capacity", kl_weight=9.0))
    found = [run(params, aim)[1] for aim in aims]
    figures = [records[0].figures for records in found]
    assert {records[0].step for records in found} == {1}
    assert len({(one["train/reconstruction"], one["train/kl"]) for one in figures}) == 1
    assert len({one["train/loss"] for one in figures}) == 3


def test_a_record_has_the_kl_weight_of_the_last_step() -> None:
    _, records = run(aim=objective_params(schedule="warmup", kl_weight=2.0, schedule_share=1.0))
    assert [record.figures["train/kl_weight"] for record in records] == pytest.approx([18 / 30, 38 / 30, 58 / 30])


def test_sigma_is_calibrated_on_training_images() -> None:
    aim = objective_params(likelihood="sigma_optimal")
    training, _ = run(train_params(epochs=2), aim)
    assert isinstance(training.model.likelihood, SigmaOptimal)
    assert not any(part.training for part in training.model.modules())
    # At this σ, the images that it was taken from cost D/2 (log 2πσ² + 1) in the mean.
    expected = 784 * (0.5 * math.log(2 * math.pi) + float(training.model.likelihood.log_sigma) + 0.5)
    found = validate(training.model, TRAIN, labelled("grey"))
    assert found["reconstruction"] == pytest.approx(expected, abs=0.02 * 784)


def test_a_density_above_one_is_no_divergence() -> None:
    """Black images under a narrow Gaussian: a reconstruction far below 0."""
    dark = Split(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10)
    aim, params = objective_params(likelihood="gaussian", sigma=0.05), train_params(epochs=20, learning_rate=1e-2)
    _, records = run(params, aim, data=dark)
    assert records[-1].figures["train/reconstruction"] < -1000


def test_a_divergence_names_step_term_and_remedy() -> None:
    training = start(build(SMALL, 0), PARAMS, CPU)
    with torch.no_grad():
        training.model.log_var.bias.fill_(200.0)  # its exponential overflows float32
    with pytest.raises(Diverged, match=r"became (inf|nan) at step 0: .*train\.learning_rate"):
        list(fit(training, TRAIN, VALIDATION, PARAMS, AIM))


def test_bfloat16_ends_near_float32() -> None:
    exact, rounded = (run(train_params(precision=name))[1][-1].figures for name in ("float32", "bfloat16"))
    assert exact["validation/elbo"] != rounded["validation/elbo"]
    assert exact["validation/elbo"] == pytest.approx(rounded["validation/elbo"], rel=0.02)

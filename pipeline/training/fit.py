"""fit(): training as a generator of Records, one for each epoch.

The loop knows no formula (objective.py, schedule.py) and no file, tracker or trial: between two records the caller
logs, prunes, samples and saves.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from pipeline.base.device import pick_precision
from pipeline.base.errors import UserError
from pipeline.base.params import Neutral, Number, params
from pipeline.data import augment
from pipeline.data.splits import Split, batches, epoch_seed
from pipeline.model.cvae import Model
from pipeline.training import objective, schedule
from pipeline.training.graph import Compile, Steps, compiled, mode_of
from pipeline.training.objective import ObjectiveParams
from pipeline.training.optimizer import adam, average, changed_by, set_learning_rate
from pipeline.training.schedule import Step
from pipeline.training.validation import View, calibrate, labelled, validate

COLLAPSED_KL = 0.1  # nats per image: I(x; z∣y) ≤ kl, so that the latents then carry at most a seventh of a bit

Precision = Literal["auto", "float32", "bfloat16"]


@params
class TrainParams:
    """The section `train` of params.yaml."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0)]
    """the peak; it then falls to 0 along half a cosine"""
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    """share of all steps in which the learning rate rises to its peak"""
    ema: Annotated[Number | None, Field(gt=0, lt=1)]
    """decay of averaged weights, which are validated and saved; blank: last weights"""
    clip: Annotated[Number | None, Field(gt=0)]
    """largest norm of the gradient; blank: no limit"""
    augment: Annotated[Number, Field(ge=0, le=10), Neutral(0)]
    """how far training images are moved; 1: turned by about 4° (docs/treatments.md)"""
    augment_until: Annotated[Number, Field(gt=0, le=1), Neutral(0.8)]
    """share of the epochs with moved images"""
    seed: Annotated[int, Field(ge=0, le=2**31)]
    device: str
    """auto | cpu | cuda | cuda:1; also of the judge and the evaluation"""
    precision: Precision
    """auto (bfloat16 where the device has it) | float32 | bfloat16"""
    compile: Compile
    """auto (long runs on a GPU) | always | never"""


@dataclass(frozen=True)
class Record:
    """One epoch of one model, and its figures by name. Losses and their terms are in nats per image.

    train/kl_weight, train/learning_rate: those of the epoch's last step.
    train/loss, train/reconstruction, train/kl: means over the epoch's batches. The loss is what was minimised; the
    terms are the plain ones, whatever KL schedule or treatment the loss had.
    validation/reconstruction, validation/kl, validation/elbo: after the epoch.
    time/seconds, time/images_per_second: of the epoch's training alone.
    """

    epoch: int
    step: int
    figures: dict[str, float]

    @property
    def diverged(self) -> bool:
        """Whether a loss of the epoch is no longer finite."""
        return not math.isfinite(self.figures["train/loss"] + self.figures["validation/elbo"])

    def row(self) -> dict[str, float]:
        """Epoch, step and figures as one flat row of a table."""
        return {"epoch": self.epoch, "step": self.step, **self.figures}


M = TypeVar("M", bound=Model)


@dataclass
class Training(Generic[M]):
    """What a run carries from epoch to epoch, and a checkpoint from process to process.

    `model` is validated, sampled and saved. The optimizer moves `trained`: with train.ema, `model` is its average,
    otherwise the same object. No random generator is part of it: each epoch seeds its own (splits.epoch_seed).
    """

    model: M
    optimizer: torch.optim.Adam
    trained: M
    epoch: int = 0


class Diverged(UserError):
    """The loss is no longer finite."""


def start(model: M, params: TrainParams, device: torch.device) -> Training[M]:
    """A run before its first step: the model on the device, and a fresh Adam."""
    model = model.to(device).eval()
    trained = model if params.ema is None else copy.deepcopy(model)
    return Training(model, adam([*trained.parameters()], params.learning_rate), trained)


def fit(
    training: Training[M],
    train: Split,
    validation: Split,
    params: TrainParams,
    aim: ObjectiveParams,
    view: View | None = None,
) -> Iterator[Record]:
    """Trains from `training.epoch` to `params.epochs`, a Record an epoch. Both splits are on the model's device.

    `view` is what the model is shown; by default images and their labels.

    The same seed on the same machine gives the same weights, whether or not the run was interrupted between two
    records. Raises Diverged at the end of the epoch in which a term of the loss, or a weight, is no longer finite.
    """
    model, view = training.model, view or labelled(aim.pixels)
    take_step = _solo_step(training, params, aim, train)

    def state() -> list[Tensor]:
        return [*changed_by(training.optimizer), *model.parameters(), *model.buffers(), *training.trained.buffers()]

    loop = Loop(take_step, state, train, params, aim, view, model)
    while training.epoch < params.epochs:
        training.trained.train()
        ran = loop.run(training.epoch)
        training.trained.eval()

        means = ran.trace.mean(0).tolist()
        if not all(map(math.isfinite, means)):
            raise Diverged(_divergence(ran, params))
        training.epoch += 1

        calibrate(model, train, view)
        kl_weight = aim.kl_weight * ran.last.kl_factor
        record = ran.record(kl_weight, ran.last.learning_rate, means, validate(model, validation, view))
        if record.diverged:  # the weights of the last step, whose loss was still finite
            raise Diverged(_no_longer_finite("validation/elbo", record.figures, record.step, params))
        yield record


Batch = tuple[Tensor, Tensor, Tensor]  # images, conditions, noise
# Takes a step; returns the loss and the means of its two terms, (3,), or (3, M) of M members.
TakeStep = Callable[[Batch, Step[Any]], Tensor]


@dataclass(frozen=True)
class Epoch:
    """An epoch's steps as they ran. trace: what each step returned, (steps, 3, ...); images: seen in `seconds`."""

    trace: Tensor
    last: Step[float]
    number: int
    images: int
    seconds: float

    def record(
        self, kl_weight: float, learning_rate: float, train: Sequence[float], validation: Mapping[str, float]
    ) -> Record:
        """One model's record. train: its loss, reconstruction and kl; validation: what `validate` gave."""
        figures = {
            **dict(zip(("train/loss", "train/reconstruction", "train/kl"), train, strict=True)),
            "train/kl_weight": kl_weight,
            "train/learning_rate": learning_rate,
            **{f"validation/{name}": value for name, value in validation.items()},
            "time/seconds": self.seconds,
            "time/images_per_second": self.images / self.seconds,
        }
        return Record(self.number, self.number * len(self.trace), figures)


@dataclass
class Loop:
    """Runs epochs of a solo run or of a population. state: the tensors that `take_step` changes.

    Randomness depends on seed and epoch alone. On a GPU the steps are replays of a captured one, unless train.compile
    is `never`.
    """

    take_step: TakeStep
    state: Callable[[], Iterable[Tensor]]
    train: Split
    params: TrainParams
    aim: ObjectiveParams
    view: View
    model: Model  # only its latent size and type are read
    steps: dict[tuple[bool, int], Steps] = field(default_factory=dict)  # by what an epoch's steps differ in
    ready: dict[int, tuple[Tensor, list[Step[float]]]] = field(default_factory=dict)  # by epoch

    def run(self, epoch: int) -> Epoch:
        """Takes the steps of an epoch, the first of which is 0."""
        began, params = time.perf_counter(), self.params
        rows, numbers = self.ready.pop(epoch) if epoch in self.ready else self._prepared(epoch)
        moving = params.augment > 0 and epoch < params.augment_until * params.epochs
        kind = moving, self.aim.draws if epoch >= self.aim.draws_after * params.epochs else 1
        if kind not in self.steps:
            self.steps[kind] = self._steps(*kind)
        # Each step leaves its losses on the device. To copy them at the end is the epoch's only wait for it.
        trace = self.steps[kind].run(rows, numbers, epoch_seed(params.seed, epoch))
        if epoch + 1 < params.epochs:  # while a GPU is at work
            self.ready[epoch + 1] = self._prepared(epoch + 1)
        trace = trace.cpu()
        return Epoch(trace, numbers[-1], epoch + 1, rows.numel(), time.perf_counter() - began)

    def _prepared(self, epoch: int) -> tuple[Tensor, list[Step[float]]]:
        """The rows of an epoch's batches, (steps, B), and what its steps are taken with."""
        rows = batches(len(self.train), self.params.batch_size, self.params.seed, epoch, self.device)
        return rows, plan(epoch, self.params, self.aim, len(rows))

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    def _steps(self, moving: bool, draws: int) -> Steps:
        source = torch.Generator(self.device)

        def take(rows: Tensor, step: Step[Any]) -> Tensor:
            return self.take_step(self.batch(rows, source, moving=moving, draws=draws), step)

        return Steps(take, source, self.state, self.model.dtype, mode_of(self.params.compile, self.device))

    def batch(self, rows: Tensor, source: torch.Generator, *, moving: bool, draws: int) -> Batch:
        """Images (B, 1, 28, 28) of the rows (B,), conditions (B, ...) and noise.

        The noise is (B, latent), or (draws, B, latent) for several draws. moving: the images are moved copies.
        """
        part = self.train[rows]
        if moving:
            part = Split(augment.move(part.images, self.params.augment, source), part.labels)
        images, condition = self.view(part, source)
        shape = (*([draws] if draws > 1 else []), len(rows), self.model.latent_size)
        return images, condition, torch.randn(shape, generator=source, device=self.device, dtype=self.model.dtype)


def plan(epoch: int, params: TrainParams, aim: ObjectiveParams, length: int) -> list[Step[float]]:
    """The `length` steps of an epoch, the first of which is 0."""
    total = length * params.epochs
    return [
        Step(
            schedule.learning_rate(step, total, params.learning_rate, params.warmup),
            *schedule.pressure(step, total, aim),
            None if params.ema is None else schedule.decay(step, params.ema),
        )
        for step in range(epoch * length, (epoch + 1) * length)
    ]


def steps_per_epoch(train: Split, params: TrainParams) -> int:
    """Whole batches in a split; at least one, which is then a smaller batch."""
    return max(len(train) // params.batch_size, 1)


def _solo_step(training: Training[M], params: TrainParams, aim: ObjectiveParams, train: Split) -> TakeStep:
    """Raises UserError if compiling is asked for and there is no compiler."""
    model, trained, optimizer, device = training.model, training.trained, training.optimizer, train.images.device
    precision, dtype = pick_precision(params.precision, device), model.dtype
    steps = steps_per_epoch(train, params) * params.epochs
    compute = compiled(compute_loss, params.compile, device, steps)

    def take_step(batch: Batch, step: Step[Any]) -> Tensor:
        # As tensors: to a compiled function, each new number would be a reason to compile again.
        kl_weight = torch.as_tensor(aim.kl_weight * step.kl_factor, dtype=dtype)
        capacity = None if step.capacity is None else torch.as_tensor(step.capacity, dtype=dtype)
        optimizer.zero_grad()
        loss, traced = compute(trained, *batch, kl_weight, capacity, aim.free_bits, precision)
        loss.backward()

        if params.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained.parameters(), params.clip)
        set_learning_rate(optimizer, step.learning_rate)
        optimizer.step()
        if step.decay is not None:
            average([*model.parameters()], [*trained.parameters()], step.decay)
        return traced

    return take_step


def compute_loss(
    model: Model,
    images: Tensor,
    condition: Tensor,
    noise: Tensor,
    kl_weight: Tensor,
    capacity: Tensor | None,
    free_bits: float | None,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """A step's loss, and for the trace the loss and the means of its reconstruction and kl, (3,)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        terms = objective.terms(model, images, condition, noise)
        share, own = None, model.weighing(condition)
        if own is not None:
            kl_weight, share = kl_weight * own[0], own[1]
        loss = objective.loss(terms, kl_weight, capacity, free_bits, share)
    return loss, torch.stack([loss, terms.reconstruction.mean(), terms.kl.mean()]).detach()


def collapsed(record: Record, epochs: int, aim: ObjectiveParams) -> bool:
    """Whether the latents are unused although the KL schedule of a run of `epochs` has finished.

    While a schedule still rises, the run has not reached its aim yet.
    """
    factor, capacity = schedule.pressure(record.step - 1, record.step // record.epoch * epochs, aim)
    finished = factor == 1 and capacity in (None, aim.capacity)
    return finished and record.figures["validation/kl"] <= COLLAPSED_KL


def _divergence(ran: Epoch, params: TrainParams) -> str:
    """The first step of an epoch with a loss that is not finite, and the likely remedy."""
    row = int((~ran.trace.isfinite()).any(1).nonzero()[0])
    value = dict(zip(("loss", "reconstruction", "kl"), ran.trace[row].tolist(), strict=True))
    name = next(name for name in ("reconstruction", "kl", "loss") if not math.isfinite(value[name]))
    return _no_longer_finite(name, value, (ran.number - 1) * len(ran.trace) + row, params)


def _no_longer_finite(name: str, value: Mapping[str, float], step: int, params: TrainParams) -> str:
    return (
        f"training stopped: {name} became {value[name]} at step {step}: "
        f"try a lower train.learning_rate than {params.learning_rate:g}, or train.precision float32"
    )

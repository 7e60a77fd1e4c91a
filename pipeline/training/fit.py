"""fit(): training as a generator of Records.

The loop knows no formula (objective.py), no file, tracker or trial: callers log, prune, draw and save between
records. One Record is one epoch.
"""

import copy
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.base.device import pick_precision
from pipeline.base.errors import UserError
from pipeline.base.params import Neutral, Number, params
from pipeline.data import augment
from pipeline.data.splits import PIXELS, Pixels, Split, as_pixels, batches, epoch_seed, to_unit
from pipeline.model import likelihood
from pipeline.model.cvae import Model
from pipeline.training import objective
from pipeline.training.objective import ObjectiveParams

VALIDATION_BATCH = 1000
CALIBRATION = 10_000  # training images that the σ of sigma_optimal is taken from, in a fraction of an epoch's time
COLLAPSED_KL = 0.1  # nats per image: as I(x; z∣y) ≤ kl, the code can then tell a seventh of a bit at most
COMPILING_PAYS = 5_000_000  # images: compiling costs up to 40 s, which a default run would not win back

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "always", "never"]


@params
class TrainParams:
    """The section `train` of params.yaml."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0, description="the peak; it then falls to 0 along half a cosine")]
    warmup: Annotated[
        Number, Field(ge=0, lt=1, description="share of all steps in which the learning rate rises to its peak")
    ]
    ema: Annotated[
        Number | None,
        Field(gt=0, lt=1, description="decay of averaged weights, which are validated and saved; blank: last weights"),
    ]
    clip: Annotated[Number | None, Field(gt=0, description="largest norm of the gradient; blank: no limit")]
    augment: Annotated[
        Number,
        Field(ge=0, le=10, description="how far training images are moved; 1: turned by about 4° (docs/treatments.md)"),
        Neutral(0),
    ]
    augment_until: Annotated[
        Number, Field(gt=0, le=1, description="share of the epochs with moved images"), Neutral(0.8)
    ]
    seed: Annotated[int, Field(ge=0, le=2**31)]
    device: Annotated[str, Field(description="auto | cpu | cuda | cuda:1; also of the judge and the evaluation")]
    precision: Annotated[Precision, Field(description="auto (bfloat16 where the device has it) | float32 | bfloat16")]
    compile: Annotated[Compile, Field(description="auto (populations, and long runs on a GPU) | always | never")]


@dataclass(frozen=True)
class Record:
    """One epoch of one model, and its figures by name. Losses and their terms are in nats per image.

    kl_weight, learning_rate: those of the epoch's last step.
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


def record(
    epoch: int,
    step: int,
    *,
    kl_weight: float,
    learning_rate: float,
    train: Sequence[float],
    validation: "Means",
    seconds: float,
    images: int,
) -> Record:
    """The record of an epoch. train: loss, reconstruction and kl; images: how many a step's model saw in `seconds`."""
    figures = {
        "kl_weight": kl_weight,
        "learning_rate": learning_rate,
        **dict(zip(("train/loss", "train/reconstruction", "train/kl"), train, strict=True)),
        "validation/reconstruction": validation.reconstruction,
        "validation/kl": validation.kl,
        "validation/elbo": -(validation.reconstruction + validation.kl),
        "time/seconds": seconds,
        "time/images_per_second": images / seconds,
    }
    return Record(epoch, step, figures)


# How a part of a split is shown to a model: images (N, 1, 28, 28), in [0, 1] or as they are stored, and the condition
# of each, (N, ...). What is random in it comes from the generator alone.
View = Callable[[Split, torch.Generator], tuple[Tensor, Tensor]]


def labelled(pixels: Pixels) -> View:
    """The CVAE's view: the condition is the label. Grey images stay the bytes they are, for the step to convert."""
    if pixels == "grey":
        return lambda part, _: (part.images, part.labels)
    return lambda part, source: (as_pixels(part.images, pixels, source), part.labels)


M = TypeVar("M", bound=Model)


@dataclass
class Training(Generic[M]):
    """What a run carries from epoch to epoch, and a checkpoint from process to process.

    `model` is what is validated, sampled and saved. The optimizer moves `trained`: with train.ema, `model` is the
    average of it, and otherwise the same object. There is no state of a random generator among it: each epoch seeds
    its own (data.epoch_seed).
    """

    model: M
    optimizer: torch.optim.Adam
    trained: M
    epoch: int = 0


class Diverged(UserError):
    """The loss is no longer finite."""


def start(model: M, params: TrainParams, device: torch.device) -> Training[M]:
    """A run that has not taken a step: the model on the device and a fresh Adam over it."""
    model = model.to(device).eval()
    trained = model if params.ema is None else copy.deepcopy(model)
    return Training(model, torch.optim.Adam(trained.parameters(), lr=params.learning_rate, fused=True), trained)


@torch.no_grad()
def advance(adam: torch.optim.Adam) -> None:
    """adam.step() of a fused one without further options or hooks, to the last bit, less what torch checks each time.

    That takes a tenth of a millisecond, 4 % of a compiled step of the article's model.
    """
    (group,) = adam.param_groups
    weights = [weight for weight in group["params"] if weight.grad is not None]
    states = [adam.state[weight] for weight in weights]
    if not weights or not all(states):  # a weight's first gradient
        adam.step()
        return
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    torch._fused_adam_(
        weights,
        [weight.grad for weight in weights],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear rise to `peak` over the share `warmup` of all steps, then half a cosine down to 0.

    >>> [round(learning_rate(step, 100, 1.0, 0.1), 3) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = math.ceil(steps * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def decay(step: int, most: float) -> float:
    """Decay of the averaged weights after step `step`: a short memory at first, when all weights are bad.

    >>> [round(decay(step, 0.999), 3) for step in (0, 90, 10_000)]
    [0.1, 0.91, 0.999]
    """
    return min(most, (1 + step) / (10 + step))


@torch.no_grad()
def average(means: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """Moves each mean the share 1 − decay towards its weight, in place (after Polyak & Juditsky 1992)."""
    torch._foreach_lerp_(list(means), list(weights), 1 - decay)


def minibatches(
    train: Split, params: TrainParams, view: View, epoch: int, latent_size: int, dtype: torch.dtype, draws: int = 1
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch's images (B, 1, 28, 28), conditions (B, ...) and noise, by seed and epoch alone.

    The noise is (B, latent), or (draws, B, latent) of several draws. With train.augment the images are moved copies,
    others in every epoch.
    """
    device = train.images.device
    source = torch.Generator(device).manual_seed(epoch_seed(params.seed, epoch))
    moving = params.augment > 0 and epoch < params.augment_until * params.epochs
    for rows in batches(len(train), params.batch_size, params.seed, epoch, device):
        part = train[rows]
        if moving:
            part = Split(augment.move(part.images, params.augment, source), part.labels)
        images, condition = view(part, source)
        shape = (len(rows), latent_size) if draws == 1 else (draws, len(rows), latent_size)
        noise = torch.randn(shape, generator=source, device=device, dtype=dtype)
        yield images, condition, noise


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
    """A step's loss, and what a trace keeps of it: the loss and the means of its reconstruction and kl, (3,)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        terms = objective.terms(model, images, condition, noise)
        loss = objective.loss(terms, kl_weight, capacity, free_bits)
    return loss, torch.stack([loss, terms.reconstruction.mean(), terms.kl.mean()]).detach()


# Takes what compute_loss does, less the model; leaves each weight's gradient in its `.grad` and returns the trace, (3,)
Gradients = Callable[..., Tensor]


def gradients(model: Model) -> Gradients:
    """By autograd, operator by operator."""
    weights = [*model.parameters()]

    def compute(*inputs: Any) -> Tensor:
        for weight in weights:
            weight.grad = None
        loss, kept = compute_loss(model, *inputs)
        loss.backward()
        return kept

    return compute


class FunctionOf(nn.Module):
    """A function of a model as a module's forward, which is what functional_call calls."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.model, *inputs)


def compiled_gradients(model: Model) -> Gradients:
    """The same by one compiled function from bytes to gradients, in which autograd's engine has no part."""
    module = FunctionOf(model, compute_loss)
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    values = {name: weight.detach() for name, weight in weights.items()}
    differentiate = torch.compile(_differentiate, dynamic=False)

    @torch.no_grad()
    def compute(*inputs: Any) -> Tensor:
        for weight in weights.values():
            weight.grad = None
        found, kept = differentiate(module, values, *inputs)
        for name, weight in weights.items():
            weight.grad = found[name]
        return kept

    return compute


def _differentiate(module: nn.Module, weights: dict[str, Tensor], *inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The model is an argument, so that what was compiled for one serves the next of its kind."""

    def loss(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = functional_call(module, weights, inputs)
        return found

    found, kept = torch.func.grad(loss, has_aux=True)(weights)
    return laid_out(found, weights), kept


def laid_out(tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each gradient, or moment of one, as its weight lies in memory: a fused Adam pairs what lies at the same place.

    Autograd leaves gradients so. What already lies so is returned as it is; compiled code decides that while it is
    traced.
    """
    laid = {}
    for name, tensor in tensors.items():
        weight = weights[name]
        laid[name] = tensor if tensor.stride() == weight.stride() else torch.empty_like(weight).copy_(tensor)
    return laid


def compiler() -> str | None:
    """The C++ compiler that there is, if any: g++, or what CXX names."""
    return shutil.which(os.environ.get("CXX", "g++"))


def check_compiler(choice: Compile, device: torch.device) -> None:
    """Raises UserError where compiling is asked for on a CPU and there is no C++ compiler to do it with."""
    if choice == "always" and device.type == "cpu" and not compiler():
        raise UserError("train.compile always needs a C++ compiler (g++, or what CXX names): install it, or set auto")


def pick_gradients(choice: Compile, device: torch.device, images: int, model: Model) -> Gradients:
    """Compiled where that is asked for, or by `auto` for a long run on a GPU.

    On a CPU a default run does not win back the compiler's 10 to 40 seconds: benchmarks/README.md. Raises UserError
    as check_compiler does.
    """
    check_compiler(choice, device)
    if choice == "always" or (choice == "auto" and device.type == "cuda" and images >= COMPILING_PAYS):
        return compiled_gradients(model)
    return gradients(model)


def fit(
    training: Training[M],
    train: Split,
    validation: Split,
    params: TrainParams,
    aim: ObjectiveParams,
    view: View | None = None,
) -> Iterator[Record]:
    """Trains from `training.epoch` to `params.epochs`, a Record an epoch; both splits lie on the model's device.

    `view` is what the model is shown, images with their labels where it is not given.

    Same seed, same machine: the same weights, whether or not the run was interrupted between two records. Raises
    Diverged at the end of the epoch in which a term of the loss stopped being finite.
    """
    model, trained, optimizer = training.model, training.trained, training.optimizer
    device, dtype, view = train.images.device, model.dtype, view or labelled(aim.pixels)
    precision = pick_precision(params.precision, device)
    steps_per_epoch = max(len(train) // params.batch_size, 1)
    steps = steps_per_epoch * params.epochs
    compute = pick_gradients(params.compile, device, steps * params.batch_size, trained)

    while training.epoch < params.epochs:
        began = time.perf_counter()
        # Each step leaves its loss and terms here, on the device: reading them there and then would stall a GPU.
        trace = torch.empty(steps_per_epoch, 3, device=device, dtype=dtype)

        draws = objective.draws(training.epoch, params.epochs, aim)
        epoch = minibatches(train, params, view, training.epoch, model.latent_size, dtype, draws)
        trained.train()
        for index, batch in enumerate(epoch):
            step = training.epoch * steps_per_epoch + index
            rate = learning_rate(step, steps, params.learning_rate, params.warmup)
            factor, capacity = objective.pressure(step, steps, aim)
            for group in optimizer.param_groups:
                group["lr"] = rate

            # As tensors: a compiled step would have each number's own code.
            kl_weight = torch.tensor(aim.kl_weight * factor, dtype=dtype)
            led_to = None if capacity is None else torch.tensor(capacity, dtype=dtype)
            trace[index] = compute(*batch, kl_weight, led_to, aim.free_bits, precision)
            if params.clip is not None:
                torch.nn.utils.clip_grad_norm_(trained.parameters(), params.clip)
            advance(optimizer)
            if params.ema is not None:
                average([*model.parameters()], [*trained.parameters()], decay(step, params.ema))
        trained.eval()

        means = trace.mean(0).tolist()  # the epoch's only wait for the device
        seconds = time.perf_counter() - began
        if not all(map(math.isfinite, means)):
            raise Diverged(_divergence(trace.cpu(), training.epoch * steps_per_epoch, params, aim))
        training.epoch += 1
        calibrate(model, train, view)
        unseen = validate(model, validation, view)
        yield record(
            training.epoch,
            training.epoch * steps_per_epoch,
            kl_weight=aim.kl_weight * factor,
            learning_rate=rate,
            train=means,
            validation=unseen,
            seconds=seconds,
            images=steps_per_epoch * min(params.batch_size, len(train)),
        )


def collapsed(record: Record, epochs: int, aim: ObjectiveParams) -> bool:
    """Whether the code carries next to nothing at a record of a run of `epochs`, although nothing presses it yet more.

    While a schedule still rises, a run has not come to what it aims at, and is given time.
    """
    factor, led_to = objective.pressure(record.step - 1, record.step // record.epoch * epochs, aim)
    risen = factor == 1 and led_to in (None, aim.capacity)
    return risen and record.figures["validation/kl"] <= COLLAPSED_KL


@torch.no_grad()
def calibrate(model: Model, train: Split, view: View) -> None:
    """Gives a likelihood that takes its σ from its errors (sigma_optimal) the one σ that all images are judged by.

    From training images alone, with one draw of z each, the same at every call. Other likelihoods are left as they are.
    """
    if not isinstance(model.likelihood, likelihood.SigmaOptimal):
        return
    source = torch.Generator(train.images.device).manual_seed(0)
    dtype = model.dtype
    total = torch.zeros((), dtype=torch.float64, device=train.images.device)
    seen = train[:CALIBRATION]
    for start_row in range(0, len(seen), VALIDATION_BATCH):
        part = seen[start_row : start_row + VALIDATION_BATCH]
        images, condition = view(part, source)
        images, context = to_unit(images).to(dtype), model.context(condition)
        q = model.encode(images, context)
        z = q.sample(torch.randn(q.mu.shape, generator=source, device=q.mu.device, dtype=dtype))
        mean = model.decode(z, context).sigmoid()
        total += (images.flatten(1) - mean).square().sum()
    model.likelihood.calibrate((total / (len(seen) * PIXELS)).to(dtype))


@dataclass(frozen=True)
class Means:
    """Terms of the evidence lower bound, in nats per image, averaged over a split."""

    reconstruction: float
    kl: float


@torch.no_grad()
def validate(model: Model, split: Split, view: View) -> Means:
    """Both terms on a split, one draw of z an image, in the weights' own precision; the same noise at every call."""
    source = torch.Generator(split.images.device).manual_seed(0)
    dtype = model.dtype
    total = torch.zeros(2, dtype=torch.float64, device=split.images.device)
    for start_row in range(0, len(split), VALIDATION_BATCH):
        part = split[slice(start_row, start_row + VALIDATION_BATCH)]
        images, condition = view(part, source)
        noise = torch.randn(len(part), model.latent_size, generator=source, device=images.device, dtype=dtype)
        terms = objective.terms(model, images, condition, noise)
        total += torch.stack([terms.reconstruction.sum(), terms.kl.sum()])
    reconstruction, kl = (total / len(split)).tolist()
    return Means(reconstruction, kl)


def _divergence(trace: Tensor, first_step: int, params: TrainParams, aim: ObjectiveParams) -> str:
    row = int((~trace.isfinite()).any(1).nonzero()[0])
    names = ("loss", "reconstruction", "kl")
    column = next(index for index in (1, 2, 0) if not trace[row, index].isfinite())
    cause = (
        f"train.learning_rate {params.learning_rate:g} is probably too high, try {params.learning_rate / 10:g}"
        if params.learning_rate > 3e-3
        else f"objective.kl_weight {aim.kl_weight:g} is far above 1 and may be too high"
        if aim.kl_weight > 1e3
        else "try a lower train.learning_rate, or train.precision float32"
    )
    return f"training stopped: {names[column]} became {float(trace[row, column])} at step {first_step + row}: {cause}"

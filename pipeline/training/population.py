"""fit() for M members at once: CVAEs of one architecture that differ in their KL weight, and in their first weights.

Each weight gains a leading dimension M. A step computes every member's loss on the same images and noise, and takes
all of them one step of Adam further. Nothing mixes rows: member m equals a solo run (fit.fit) with the same initial
weights, data order and noise, which a test holds in float64, and one member's NaN stays its own.
"""

import copy
import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pipeline.base.device import pick_precision
from pipeline.data.splits import PIXELS, SIDE, Split
from pipeline.model.cvae import CVAE, Architecture
from pipeline.model.likelihood import FACTORS, Bernoulli, full
from pipeline.model.networks import one_hot
from pipeline.training import objective
from pipeline.training.fit import (
    FunctionOf,
    Means,
    Record,
    TrainParams,
    advance,
    average,
    calibrate,
    check_compiler,
    decay,
    labelled,
    learning_rate,
    minibatches,
    record,
    validate,
)
from pipeline.training.objective import ObjectiveParams

MANY = 2**14  # weights of a layer from which on its own form saves more than the call of that form costs: half a ms


@dataclass
class Population:
    """What M runs carry from epoch to epoch. Row m of each stacked tensor is `members[m]`'s.

    members: the positions, in the list that `start` was given, of those still in; kl_weights: (M,); pace: (M,), each
    member's learning rate ÷ that of the params, or None where all have that one.
    """

    template: CVAE  # what all have in common; its weights are not read
    weights: dict[str, Tensor]  # by parameter name, (M, ...)
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Adam
    kl_weights: Tensor
    members: list[int]
    average: dict[str, Tensor] | None  # with train.ema, the averaged weights, which `model` gives
    pace: Tensor | None = None
    epoch: int = 0

    def step(self) -> None:
        """One step of Adam, whose update is proportional to the learning rate: each member's own is a share of it."""
        if self.pace is None:
            advance(self.optimizer)
            return
        before = [weight.detach().clone() for weight in self.weights.values()]
        advance(self.optimizer)
        for old, weight in zip(before, self.weights.values(), strict=True):
            share = self.pace.view(-1, *[1] * (weight.ndim - 1))
            weight.detach().copy_(torch.lerp(old, weight.detach(), share))

    def model(self, member: int) -> CVAE:
        """A copy of one member as it is now: an ordinary CVAE, which trains, samples and saves alone."""
        row = self._row(member)
        model = copy.deepcopy(self.template)
        tensors = (self.average or self.weights) | self.buffers
        model.load_state_dict({name: tensor[row].detach() for name, tensor in tensors.items()})
        return model

    def drop(self, members: Collection[int]) -> None:
        """Takes members out, between two records: weights and Adam's state shrink, the rest go on as if they stayed."""
        leaving = {self._row(member) for member in members}
        rows = [row for row in range(len(self.members)) if row not in leaving]
        adam = self.optimizer
        weights = {name: weight.detach()[rows].requires_grad_() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.Adam(weights.values(), lr=adam.param_groups[0]["lr"], fused=True)
        for name, weight in self.weights.items():
            # `step` is one count for the whole tensor; the moments have a row for each member.
            self.optimizer.state[weights[name]] = {
                key: value if key == "step" else value[rows] for key, value in adam.state[weight].items()
            }
        self.weights = weights
        self.average = self.average and {name: mean[rows] for name, mean in self.average.items()}
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self.kl_weights = self.kl_weights[rows]
        self.pace = None if self.pace is None else self.pace[rows]
        self.members = [self.members[row] for row in rows]

    def _row(self, member: int) -> int:
        if member not in self.members:
            raise ValueError(f"member {member} is not in the population, whose members are {self.members}")
        return self.members.index(member)


def start(
    models: Sequence[CVAE],
    kl_weights: Sequence[float],
    params: TrainParams,
    device: torch.device,
    learning_rates: Sequence[float] | None = None,
) -> Population:
    """A population that has not taken a step: copies of the models' weights on the device, and a fresh Adam.

    `learning_rates` gives each member a peak of its own in place of `params.learning_rate`. Raises ValueError where
    the models differ in more than their weights, or there isn't one KL weight (and rate, if any) for each.
    """
    if len(models) != len(kl_weights):
        raise ValueError(f"{len(models)} models need as many KL weights, not {len(kl_weights)}")
    if learning_rates is not None and len(models) != len(learning_rates):
        raise ValueError(f"{len(models)} models need as many learning rates, not {len(learning_rates)}")
    if len({(model.architecture, type(model.likelihood)) for model in models}) != 1:
        raise ValueError("the members of a population must share one architecture and likelihood")
    weights, buffers = stack_module_state([model.to(device) for model in models])
    dtype = models[0].mu.weight.dtype
    own_rates = None if learning_rates is None else torch.tensor(learning_rates, dtype=dtype, device=device)
    average = None if params.ema is None else {name: weight.detach().clone() for name, weight in weights.items()}
    return Population(
        template=copy.deepcopy(models[0]).eval(),
        weights=weights,
        buffers=buffers,
        optimizer=torch.optim.Adam(weights.values(), lr=params.learning_rate, fused=True),
        kl_weights=torch.tensor(kl_weights, dtype=dtype, device=device),
        members=list(range(len(models))),
        pace=None if own_rates is None else own_rates / params.learning_rate,
        average=average,
    )


def fit(
    population: Population, train: Split, validation: Split, params: TrainParams, aim: ObjectiveParams
) -> Iterator[dict[int, Record]]:
    """fit.fit for all members: after each epoch a Record by member. `population.kl_weights` replace `aim.kl_weight`.

    All see the same batches, pixels and noise, which `params.seed` decides. A member that diverges goes on until it is
    dropped. Ends early when no member is left.
    """
    device, dtype = train.images.device, population.kl_weights.dtype
    steps_per_epoch = max(len(train) // params.batch_size, 1)
    steps = steps_per_epoch * params.epochs
    images = steps_per_epoch * min(params.batch_size, len(train))
    take_step = _pick_step(population, params, aim, device)

    while population.members and population.epoch < params.epochs:
        began = time.perf_counter()
        members = list(population.members)
        # Each step leaves its losses and terms here, on the device: reading them there and then would stall a GPU.
        trace = torch.empty(steps_per_epoch, 3, len(members), device=device, dtype=dtype)

        size, view = population.template.latent_size, labelled(aim.pixels)
        draws = objective.draws(population.epoch, params.epochs, aim)
        for index, batch in enumerate(minibatches(train, params, view, population.epoch, size, dtype, draws)):
            step = population.epoch * steps_per_epoch + index
            rate = learning_rate(step, steps, params.learning_rate, params.warmup)
            factor, capacity = objective.pressure(step, steps, aim)
            for group in population.optimizer.param_groups:
                group["lr"] = rate

            kl_weights = population.kl_weights * factor
            led_to = None if capacity is None else torch.tensor(capacity, device=device, dtype=dtype)
            for row, figure in enumerate(take_step(batch, kl_weights, led_to, step)):
                trace[index, row] = figure

        means = trace.mean(0).T.tolist()  # the epoch's only wait for the device
        seconds = time.perf_counter() - began
        population.epoch += 1
        # One at a time, through the solo code: at 1000 images a batch a CPU gains nothing from stacking.
        unseen = [_measure(population, member, train, validation, aim) for member in members]
        pace = [1.0] * len(members) if population.pace is None else population.pace.tolist()
        pressed = kl_weights.tolist()
        yield {
            member: record(
                population.epoch,
                population.epoch * steps_per_epoch,
                kl_weight=pressed[row],
                learning_rate=rate * pace[row],
                train=means[row],
                validation=unseen[row],
                seconds=seconds,
                images=images,
            )
            for row, member in enumerate(members)
        }


def _measure(population: Population, member: int, train: Split, validation: Split, aim: ObjectiveParams) -> Means:
    """What train.fit does with a model at an epoch's end."""
    model = population.model(member)
    view = labelled(aim.pixels)
    calibrate(model, train, view)
    for name, buffer in model.named_buffers():
        population.buffers[name][population.members.index(member)] = buffer
    return validate(model, validation, view)


# (images, labels and noise, KL weights (M,), capacity, steps taken) to loss, reconstruction and kl, (M,) each
TakeStep = Callable[[tuple[Tensor, Tensor, Tensor], Tensor, Tensor | None, int], Iterable[Tensor]]


def _pick_step(population: Population, params: TrainParams, aim: ObjectiveParams, device: torch.device) -> TakeStep:
    """What takes a population one step further, whoever has left it by then.

    Raises UserError where compiling is asked for and can't be done.
    """
    check_compiler(params.compile, device)
    precision = pick_precision(params.precision, device)
    compute = functools.cache(lambda: _stacked_loss(population.template, params, aim, device))

    def take_step(
        batch: tuple[Tensor, Tensor, Tensor], kl_weights: Tensor, capacity: Tensor | None, step: int
    ) -> Iterable[Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            figures = compute()(population.weights, population.buffers, kl_weights, capacity, *batch)
        figures[0].sum().backward()  # the sum's gradient in a member's weights is that of the member's own loss
        if params.clip is not None:
            _clip([*population.weights.values()], params.clip)
        population.step()
        population.optimizer.zero_grad()
        if population.average is not None and params.ema is not None:
            average([*population.average.values()], [*population.weights.values()], decay(step, params.ema))
        return (figure.detach() for figure in figures)

    return take_step


def _clip(weights: Sequence[Tensor], longest: float) -> None:
    """torch.nn.utils.clip_grad_norm_ for each member by its own: gradients (M, ...) in place."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    shares = (longest / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient *= shares.view(-1, *[1] * (gradient.ndim - 1))


def auto_size(device: torch.device, architecture: Architecture, batch_size: int) -> int:
    """How many members train at once: as many as still make the device faster, and half its memory holds.

    On a CPU of 2 cores the images a second stop growing at 16 (benchmarks/population.py), as the products of the plain
    step then fill the cores. On a GPU the launches of a step, about a
    millisecond, hide the work of some 64 members (of 2 GFLOP each for `strong` at batch 256): this is reckoned, not
    measured.
    """
    most = 64 if device.type == "cuda" else 16
    return max(1, min(most, _memory(device) // 2 // member_bytes(architecture, batch_size)))


def member_bytes(architecture: Architecture, batch_size: int) -> int:
    """About what one member's training takes, in bytes."""
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in CVAE(architecture).parameters())
    units = sum(architecture.encoder_hidden) + sum(architecture.decoder_hidden)
    for scale, channels in enumerate(architecture.channels, 1):
        # Encoder and decoder: the convolution that changes the side, and two (three arrays each) in every block.
        units += 2 * channels * (SIDE >> scale) ** 2 * (1 + 3 * architecture.blocks)
    # Weight, gradient and Adam's two moments in float32, weight and gradient in bfloat16. For an image, each hidden
    # unit before and after its ReLU and its gradient, and about ten arrays around the likelihood's pixels.
    return 20 * weights + 4 * batch_size * (3 * units + 10 * PIXELS)


def _memory(device: torch.device) -> int:
    """Bytes: free ones of a GPU, all of a CPU's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# (weights, buffers, kl_weights, capacity, images, labels, noise) to loss, reconstruction and kl, (M,) each
StackedLoss = Callable[
    [dict[str, Tensor], dict[str, Tensor], Tensor, Tensor | None, Tensor, Tensor, Tensor], tuple[Tensor, ...]
]


def _stacked_loss(template: CVAE, params: TrainParams, aim: ObjectiveParams, device: torch.device) -> StackedLoss:
    """The model's own code and objective, written for one member, over all of them: by vmap, which takes any model.

    A dense CVAE with a standard prior, the Bernoulli's likelihood and one draw runs on stacked weights as it is. On a
    CPU in float32 that makes 16 members 1.2 times as fast: vmap takes the cross entropy apart into some twenty passes
    over (M, N, 784), and its calls take a tenth of the article's step. Compiled it is 1.2 times as fast again
    (article), after 20 s for the compiler.
    """
    # On a GPU a compiled step replays a CUDA graph instead of launching.
    mode = "reduce-overhead" if device.type == "cuda" else None

    def compiled(loss: StackedLoss) -> StackedLoss:
        return torch.compile(loss, dynamic=False, mode=mode) if params.compile == "always" else loss

    module = FunctionOf(copy.deepcopy(template), objective.terms).train()

    def terms(weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: tuple[Tensor, ...]) -> objective.Terms:
        state = {f"model.{name}": tensor for name, tensor in (weights | buffers).items()}
        found: objective.Terms = functional_call(module, state, batch)
        return found

    architecture = template.architecture
    dense = architecture.architecture == "mlp" and architecture.prior == "standard" and aim.draws == 1
    if dense and type(template.likelihood) is Bernoulli:
        for layer in module.modules():
            if type(layer) in _STACKED:
                layer.__class__ = _STACKED[type(layer)]
        by_member = vmap(objective.loss, in_dims=(0, 0, None, None))

        def stacked_loss(
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            kl_weights: Tensor,
            capacity: Tensor | None,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            found = terms(weights, buffers, batch)
            losses = by_member(found, kl_weights, capacity, aim.free_bits)
            return losses, found.reconstruction.mean(-1), found.kl.mean(-1)

        return compiled(stacked_loss)

    def member_loss(
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        kl_weight: Tensor,
        capacity: Tensor | None,
        *batch: Tensor,
    ) -> tuple[Tensor, ...]:
        found = terms(weights, buffers, batch)
        loss = objective.loss(found, kl_weight, capacity, aim.free_bits)
        return loss, found.reconstruction.mean(), found.kl.mean()

    for layer in module.modules():
        if type(layer) in _HALF:
            layer.__class__ = _HALF[type(layer)]
    stacked: StackedLoss = vmap(member_loss, in_dims=(0, 0, 0, None, None, None, None))
    for layer in module.modules() if params.compile != "always" else ():
        if type(layer) is nn.Linear and layer.bias is not None and layer.weight.numel() >= MANY:
            layer.__class__ = _Linear
    return compiled(stacked)


class _Conv2d(nn.Conv2d):
    """One that brings its bias to the type of its products: under vmap, autocast forgets it."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = _autocast(x, self.weight, self.bias)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class _ConvTranspose2d(nn.ConvTranspose2d):
    """Likewise."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        assert not isinstance(self.padding, str)  # which a transposed convolution does not take
        x, weight, bias = _autocast(x, self.weight, self.bias)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding)


_HALF: dict[type[nn.Module], Any] = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d}


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three in the type that autocast multiplies in, where it is on."""
    half = torch.is_autocast_enabled(x.device.type) and weight.dtype == torch.float32
    dtype = torch.bfloat16 if half else weight.dtype
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Linear(nn.Linear):
    """A Linear whose form for many members we choose.

    vmap's own rule expands shared inputs, adds the bias in a pass of its own and has autocast copy transposed
    weights: on a CPU in bfloat16 a step with this one is 1.02 to 1.15 (article) and 1.2 to 1.3 times (strong) as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            return super().forward(x)
        half = torch.is_autocast_enabled(x.device.type) and self.weight.dtype == torch.float32
        return _OneLinear.apply(x, self.weight, self.bias, torch.bfloat16 if half else self.weight.dtype)


class _OneLinear(torch.autograd.Function):
    """One member's layer, seen from inside vmap, which replaces it by the stacked one."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: the stacked layer has the gradient."""

    @staticmethod
    def vmap(
        _: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int]:
        if in_dims[0] is not None:
            x = x.movedim(in_dims[0], 0)
        return _StackedLinear.apply(x, weight, bias, dtype), 0


class _StackedLinear(torch.autograd.Function):
    """x (N, in), the same for all members, or (M, N, in); weight (M, out, in), bias (M, out); to (M, N, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        bias, by_member = bias.to(dtype).unsqueeze(1), _by_member(x, weight)
        if torch.compiler.is_compiling():  # the next pass over the products adds the bias
            return torch.bmm(by_member, weight.mT) + bias
        return torch.baddbmm(bias, by_member, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(grad, weight)
            grad_x = grad_x.sum(0) if x.ndim == 2 else grad_x
        # autograd brings each gradient to the type of what it belongs to
        return grad_x, torch.bmm(grad.mT, _by_member(x, weight)), grad.sum(1), None


def _by_member(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, in) for all of M members, (M, N, in); one that has M is itself, lest compiled code keep it twice."""
    return x if x.ndim == 3 else x.expand(len(weight), *x.shape)


class _StackedCVAE(CVAE):
    """All members of a dense CVAE as one: every layer's weights and all it computes have a leading dimension M."""

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Without the flattening of the leading dimension, which is the members' here."""
        return self.pixels(self.decoder(self.condition(z, one_hot(labels, z.dtype))))


class _StackedLayer(nn.Linear):
    """A Linear whose weights are stacked."""

    def forward(self, x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled(x.device.type) and self.weight.dtype == torch.float32
        return _StackedLinear.apply(x, self.weight, self.bias, torch.bfloat16 if half else self.weight.dtype)


class _StackedBernoulli(Bernoulli):
    """One whose cross entropy takes few passes over (M, N, 784), and two for the gradient."""

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().log_prob(outputs, pixels)
        return _CrossEntropy.apply(outputs, pixels)


_STACKED: dict[type[nn.Module], Any] = {CVAE: _StackedCVAE, nn.Linear: _StackedLayer, Bernoulli: _StackedBernoulli}


class _CrossEntropy(torch.autograd.Function):
    """Outputs (M, N, 784) and pixels (N, 784) to (M, N): likelihood.log_prob_by_products, but its sigmoid is kept."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, pixels: Tensor) -> Tensor:
        logits = full(outputs)
        mean = logits.sigmoid()
        ctx.save_for_backward(mean, pixels)
        linear = torch.addcmul(logits.clamp_min(0), logits, pixels, value=-1).sum(-1)
        factors = (mean - 0.5).abs_().add_(0.5)  # sigmoid(|η|)
        return factors.unflatten(-1, (-1, FACTORS)).prod(-1).log_().sum(-1) - linear

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mean, pixels = ctx.saved_tensors
        return (pixels - mean).mul_(grad.unsqueeze(-1)), None

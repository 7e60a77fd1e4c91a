"""fit() for M members at once: CVAEs of one architecture that differ in KL weight and first weights.

Each weight gains a leading dimension M. A step computes every member's loss on the same images and noise, then takes
one step of Adam for all. Rows never mix: member m equals a solo run (fit.fit) with the same first weights, data order
and noise (a test compares them in float64), and one member's NaN stays its own.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import stack_module_state, vmap

from pipeline.base.device import memory, pick_precision
from pipeline.data.splits import PIXELS, SIDE, Split
from pipeline.model.cvae import CVAE, Architecture
from pipeline.model.likelihood import SigmaOptimal
from pipeline.training import objective
from pipeline.training.fit import Batch, Loop, Record, TakeStep, TrainParams, steps_per_epoch
from pipeline.training.graph import compiled
from pipeline.training.members import member_terms
from pipeline.training.objective import ObjectiveParams
from pipeline.training.optimizer import adam, average, changed_by, set_learning_rate
from pipeline.training.schedule import Step
from pipeline.training.validation import View, calibrate, labelled, shown, with_elbo


@dataclass
class Population:
    """What M runs carry from epoch to epoch. Row m of each stacked tensor belongs to `members[m]`.

    members: those still in, by their position in the list that `start` was given. kl_weights: (M,). pace: (M,), each
    member's learning rate ÷ train.learning_rate, or None if all are 1.
    """

    template: CVAE  # the common architecture; its weights are not read
    weights: dict[str, Tensor]  # by parameter name, (M, ...)
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Adam
    kl_weights: Tensor
    members: list[int]
    average: dict[str, Tensor] | None  # with train.ema, the averaged weights, which `model` gives
    pace: Tensor | None = None
    epoch: int = 0

    def step(self, learning_rate: float | Tensor) -> None:
        """One step of Adam, whose update is proportional to the learning rate: a member's own rate takes a share."""
        set_learning_rate(self.optimizer, learning_rate)
        if self.pace is None:
            self.optimizer.step()
            return
        before = [weight.detach().clone() for weight in self.weights.values()]
        self.optimizer.step()
        for old, weight in zip(before, self.weights.values(), strict=True):
            share = self.pace.view(-1, *[1] * (weight.ndim - 1))
            weight.detach().copy_(torch.lerp(old, weight.detach(), share))

    def model(self, member: int) -> CVAE:
        """A copy of one member as it is now: an ordinary CVAE."""
        row = self.members.index(member)
        model = copy.deepcopy(self.template)
        tensors = (self.average or self.weights) | self.buffers
        model.load_state_dict({name: tensor[row].detach() for name, tensor in tensors.items()})
        return model

    def drop(self, members: Collection[int]) -> None:
        """Takes members out between two records. The rest continue as if those had stayed."""
        rows = [row for row, member in enumerate(self.members) if member not in members]
        before = self.optimizer
        weights = {name: weight.detach()[rows].requires_grad_() for name, weight in self.weights.items()}
        self.optimizer = adam([*weights.values()], float(before.param_groups[0]["lr"]))
        for name, weight in self.weights.items():
            # `step` is one number for the whole tensor; the moments have a row for each member.
            self.optimizer.state[weights[name]] = {
                key: value if key == "step" else value[rows] for key, value in before.state[weight].items()
            }
        self.weights = weights
        self.average = self.average and {name: mean[rows] for name, mean in self.average.items()}
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self.kl_weights = self.kl_weights[rows]
        self.pace = None if self.pace is None else self.pace[rows]
        self.members = [self.members[row] for row in rows]


def start(
    models: Sequence[CVAE],
    kl_weights: Sequence[float],
    params: TrainParams,
    device: torch.device,
    learning_rates: Sequence[float] | None = None,
) -> Population:
    """A population before its first step: copies of the models' weights on the device, and a fresh Adam.

    `learning_rates`: each member's own peak, in place of `params.learning_rate`. Raises ValueError if the models differ
    in more than their weights, or do not have one KL weight (and learning rate, if given) each.
    """
    if {len(kl_weights), len(learning_rates or kl_weights)} != {len(models)}:
        raise ValueError(f"{len(models)} models need as many KL weights and learning rates")
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
        optimizer=adam([*weights.values()], params.learning_rate),
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
    dropped. Ends early when no member is left. Raises UserError if compiling is asked for and there is no compiler.
    """
    view = labelled(aim.pixels)
    take_step = _population_step(population, params, aim, train)

    def state() -> list[Tensor]:
        return [*changed_by(population.optimizer), *(population.average or {}).values(), *population.buffers.values()]

    def loop() -> Loop:
        return Loop(take_step, state, train, params, aim, view, population.template)

    running, optimizer = loop(), population.optimizer
    while population.members and population.epoch < params.epochs:
        if optimizer is not population.optimizer:  # a captured step is of the tensors that there were before `drop`
            running, optimizer = loop(), population.optimizer
        ran = running.run(population.epoch)
        population.epoch += 1

        means = ran.trace.mean(0).T.tolist()
        kl_weights = (population.kl_weights * ran.last.kl_factor).tolist()
        pace = [1.0] * len(means) if population.pace is None else population.pace.tolist()
        unseen = _validated(population, train, validation, view)
        yield {
            member: ran.record(kl_weights[row], ran.last.learning_rate * pace[row], means[row], unseen[row])
            for row, member in enumerate(population.members)
        }


@torch.no_grad()
def _validated(population: Population, train: Split, validation: Split, view: View) -> list[dict[str, float]]:
    """What `validate` says of each member, after `calibrate`."""
    template = population.template
    if isinstance(template.likelihood, SigmaOptimal):
        for row, member in enumerate(population.members):
            model = population.model(member)
            calibrate(model, train, view)
            for name, buffer in model.named_buffers():
                population.buffers[name][row] = buffer
    terms, weights = member_terms(template), population.average or population.weights
    total = torch.zeros(2, len(population.members), dtype=torch.float64, device=validation.images.device)
    for batch in shown(validation, template, view):
        found = terms(weights, population.buffers, *batch)
        total += torch.stack([found.reconstruction.sum(1), found.kl.sum(1)])
    return [with_elbo(*terms) for terms in (total / len(validation)).T.tolist()]


def _population_step(population: Population, params: TrainParams, aim: ObjectiveParams, train: Split) -> TakeStep:
    """Takes the members that are still in the population one step further."""
    device, steps = train.images.device, steps_per_epoch(train, params) * params.epochs
    half = pick_precision(params.precision, device) == torch.bfloat16
    terms = member_terms(population.template, half=half, training=True)
    loss_of = vmap(objective.loss, in_dims=(0, 0, None, None))

    def losses(
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        kl_weights: Tensor,
        capacity: Tensor | None,
        *batch: Tensor,
    ) -> tuple[Tensor, ...]:
        found = terms(weights, buffers, *batch)
        loss = loss_of(found, kl_weights, capacity, aim.free_bits)
        return loss, found.reconstruction.flatten(1).mean(1), found.kl.flatten(1).mean(1)

    compute = compiled(losses, params.compile, device, steps)

    def take_step(batch: Batch, step: Step[Any]) -> Tensor:
        kl_weights = population.kl_weights * step.kl_factor
        capacity = None if step.capacity is None else torch.as_tensor(step.capacity).to(kl_weights)
        population.optimizer.zero_grad()
        traced = compute(population.weights, population.buffers, kl_weights, capacity, *batch)
        traced[0].sum().backward()  # no loss depends on another member's weights

        if params.clip is not None:
            _clip([*population.weights.values()], params.clip)
        population.step(step.learning_rate)
        if population.average is not None and step.decay is not None:
            average([*population.average.values()], [*population.weights.values()], step.decay)
        return torch.stack(traced).detach()

    return take_step


def _clip(weights: Sequence[Tensor], longest: float) -> None:
    """torch.nn.utils.clip_grad_norm_ for each member by itself: gradients (M, ...), in place."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    shares = (longest / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient *= shares.view(-1, *[1] * (gradient.ndim - 1))


def auto_size(device: torch.device, architecture: Architecture, batch_size: int) -> int:
    """How many members train at once: as many as still make the device faster, within half of its memory.

    On a CPU with 2 cores, images per second stop growing at 16 members (benchmarks/population.py). On an H200 a member
    costs 92 µs a step among 8, 57 among 32 and 47 among 125 (docs/lab/gpu.md).
    """
    most = 128 if device.type == "cuda" else 16
    return max(1, min(most, memory(device) // 2 // member_bytes(architecture, batch_size)))


def member_bytes(architecture: Architecture, batch_size: int) -> int:
    """About the memory that one member's training takes, in bytes."""
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in CVAE(architecture).parameters())
    units = sum(architecture.encoder_hidden) + sum(architecture.decoder_hidden)
    for scale, channels in enumerate(architecture.channels, 1):
        # Encoder and decoder: one strided convolution, and two (three arrays each) in every block.
        units += 2 * channels * (SIDE >> scale) ** 2 * (1 + 3 * architecture.blocks)
    # Weights: weight, gradient and Adam's two moments in float32, weight and gradient in bfloat16. Per image: each
    # hidden unit before and after its ReLU and its gradient, and about ten arrays of the likelihood's 784 pixels.
    return 20 * weights + 4 * batch_size * (3 * units + 10 * PIXELS)

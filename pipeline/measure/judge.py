"""Two judges: independent classifiers of digits, used only to measure samples.

The tolerant judge is trained on digits that are moved, blurred and faded at random. So it also reads the samples of a
VAE, which are softer and greyer than MNIST, and the labels it reads give their class_accuracy. But its features hardly
tell blurred digits from sharp ones. The plain judge is trained on moved digits that are neither blurred nor faded. Its
penultimate features are the space of the other sample metrics.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.device import has_bfloat16
from pipeline.base.params import Number, params
from pipeline.data.splits import CLASSES, SIDE, Split, batches, epoch_seed, to_unit
from pipeline.training.graph import Steps, mode_of
from pipeline.training.optimizer import adam, changed_by, set_learning_rate
from pipeline.training.schedule import Step

FEATURES = 64
READ_BATCH = 500
WARMUP = 0.2  # share of all steps in which the learning rate rises to its peak
FEWER = 0.6  # share of the epochs that the tolerant judge needs after the plain one
DECAY = 0.1  # weight decay; without it the features, and so every Fréchet distance, are larger

# The augmentation of training images. Each amount is uniform and independent for each image. The plain judge's are
# shifted and scaled alone.
SHIFT = 2.0  # pixels, up or down, and left or right
SCALE = 0.1  # change of height and of width, as a share
BLUR = 2.0  # largest standard deviation, pixels; half of the images stay sharp
SHARP = 0.3  # standard deviation, pixels, at which resampling adds neither blur nor jagged edges
FADE = 0.4  # lowest contrast; half of the images keep theirs
LIFT = 0.1  # brightest background; half of the images keep it black


@params
class JudgeParams:
    """The section `judge` of params.yaml."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0)]
    """the peak"""
    seed: Annotated[int, Field(ge=0, le=2**31)]


class JudgeRecord(NamedTuple):
    """One epoch. loss: mean cross-entropy of its augmented images, nats per image. accuracy: on validation images."""

    epoch: int
    loss: float
    accuracy: float


class Reading(NamedTuple):
    """What the judge says about N images. features: (N, 64) float32, at least 0; labels: (N,) int64 in 0…9."""

    features: Tensor
    labels: Tensor

    def of(self, rows: Tensor) -> "Reading":
        """Of some of the images; rows: a mask (N,) or indices."""
        return Reading(self.features[rows], self.labels[rows])


Reader = Callable[[Tensor], Reading]  # `Judge.read` of a trained judge


class Judge(nn.Module):
    """Four convolutions, then 64 features, then 10 logits. Planes shrink early: large ones take most of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(1, 16, kernel=5, stride=2),
            _block(16, 24, pool=2),
            _block(24, 64, pool=2),
            _block(64, 64),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32 in [0, 1]. Returns logits (N, 10)."""
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def read(self, images: Tensor) -> Reading:
        """Features and labels of images (N, 1, 28, 28), uint8 or float32 in [0, 1], on any device.

        Leaves the judge in evaluation mode. The result is on the judge's device.
        """
        self.eval()
        device = self.head.weight.device
        parts = (part.to(device) for part in images.split(READ_BATCH))
        features = torch.cat([self.body(to_unit(part)) for part in parts])
        return Reading(features, self.head(features).argmax(1))


class Judges(NamedTuple):
    """Both judges, trained."""

    tolerant: Judge
    plain: Judge


def build(seed: int) -> Judge:
    """An untrained judge on the CPU. Its weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Judge()


def fit(
    judge: Judge, train: Split, validation: Split, params: JudgeParams, tolerant: bool = True
) -> Iterator[JudgeRecord]:
    """Trains `judge` in place and yields a record per epoch. At the end it has the weights of its best epoch.

    tolerant: whether its training images are also blurred and faded.

    Judge and splits are on one device. AdamW (Loshchilov & Hutter 2019) minimises the cross-entropy, in bfloat16 where
    the device multiplies it natively. On a CPU, the same seed and number of threads give the same weights. A GPU may
    add in another order, which changes the last digits.
    """
    device = train.images.device
    length = max(len(train) // params.batch_size, 1)
    optimizer, source = adam([*judge.parameters()], params.learning_rate, DECAY), torch.Generator(device)

    def take(rows: Tensor, step: Step[Any]) -> Tensor:
        set_learning_rate(optimizer, step.learning_rate)
        images = augment(to_unit(train.images[rows]), source, tolerant)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = judge(images)
        loss = F.cross_entropy(logits.float(), train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def state() -> list[Tensor]:
        return [*changed_by(optimizer), *judge.buffers()]

    steps = Steps(take, source, state, torch.float32, mode_of("auto", device))
    best, best_accuracy = judge.state_dict(), -1.0
    for epoch in range(params.epochs):
        judge.train()
        shares = ((epoch * length + index) / (params.epochs * length) for index in range(length))
        plan = [Step(params.learning_rate * _rate(share), 1.0, None, None) for share in shares]
        rows = batches(len(train), params.batch_size, params.seed, epoch, device)
        loss = float(steps.run(rows, plan, epoch_seed(params.seed, epoch)).mean())

        accuracy = float((judge.read(validation.images).labels == validation.labels).float().mean())
        if accuracy >= best_accuracy:  # of equal epochs the later one: its learning rate was lower
            best, best_accuracy = copy.deepcopy(judge.state_dict()), accuracy
        yield JudgeRecord(epoch=epoch + 1, loss=loss, accuracy=accuracy)
    judge.load_state_dict(best)
    judge.eval()


def fit_both(judges: Judges, train: Split, validation: Split, params: JudgeParams) -> Iterator[tuple[str, JudgeRecord]]:
    """Trains the plain judge, then the tolerant one, which starts from the plain one's weights and needs fewer epochs.

    Yields a judge's name and its record after each of the `epochs_of_both`.
    """
    for record in fit(judges.plain, train, validation, params, tolerant=False):
        yield "plain", record
    judges.tolerant.load_state_dict(judges.plain.state_dict())
    fewer = replace(params, epochs=epochs_of_both(params) - params.epochs)
    for record in fit(judges.tolerant, train, validation, fewer):
        yield "tolerant", record


def epochs_of_both(params: JudgeParams) -> int:
    return params.epochs + math.ceil(FEWER * params.epochs)


def augment(images: Tensor, source: torch.Generator, tolerant: bool) -> Tensor:
    """Shifts and scales each image by amounts of its own. Does not change `images`.

    tolerant: also blurs, fades and brightens them.

    Shift, scale and Gaussian blur are separable. So two matrices (28, 28) per image, one for its rows and one for its
    columns, do all three: `down @ image @ across.T`.

    images: (N, 1, 28, 28) float32 in [0, 1]. Returns the same shape, in [0, 1].
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=source, device=device) * (high - low) + low

    sigma = uniform(-BLUR, BLUR).clamp_min(SHARP) if tolerant else torch.full((count, 1, 1), SHARP, device=device)
    down = _resampling(uniform(-SHIFT, SHIFT), uniform(1 - SCALE, 1 + SCALE), sigma)
    across = _resampling(uniform(-SHIFT, SHIFT), uniform(1 - SCALE, 1 + SCALE), sigma)
    changed = down @ images.squeeze(1) @ across.mT
    if tolerant:
        contrast = uniform(FADE, 2 - FADE).clamp_max(1)
        lift = uniform(-LIFT, LIFT).clamp_min(0)
        changed = lift + (1 - lift) * contrast * changed
    return changed.clamp_max(1).unsqueeze(1)  # rounding can exceed 1


def _resampling(shift: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
    """Matrices (N, 28, 28): row i weights the pixels around `scale · i + shift` by a Gaussian. Rows sum to 1.

    The arguments are (N, 1, 1). Positions are relative to the middle of the image.
    """
    places = torch.arange(SIDE, device=shift.device) - (SIDE - 1) / 2
    distance = scale * places[:, None] + shift - places
    # Weights below e^-30 change nothing in float32, but denormal numbers would slow a CPU down.
    return torch.softmax((-0.5 * (distance / sigma).square()).clamp_min(-30), dim=2)


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pool: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _rate(progress: float) -> float:
    """The learning rate as a share of its peak: from 0.04 along half a cosine to 1, then along another to 0."""
    if progress < WARMUP:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / WARMUP))
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))

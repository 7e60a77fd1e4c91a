"""The judge: an independent classifier of digits, used only to measure samples.

Its labels give the class accuracy of samples, its penultimate features are the space of the other sample metrics.
Samples of a VAE are softer and greyer than MNIST, and a network that has seen sharp digits alone misreads them. So
the judge learns from digits that are moved, blurred and faded at random: its verdict is on the digit, not on the
sharpness.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.device import has_bfloat16
from pipeline.base.params import Number, params
from pipeline.data.splits import CLASSES, SIDE, Split, batches, epoch_seed, to_unit

FEATURES = 64
READ_BATCH = 500
WARMUP = 0.2  # share of all steps in which the learning rate rises to its peak
DECAY = 0.1  # of the weights; without it the features, and with them every Fréchet distance, come out larger

# What training does to an image; `augment` draws each uniformly, for each image anew.
SHIFT = 2.0  # pixels, either way, down and across
SCALE = 0.1  # share of the height and of the width, either way
BLUR = 2.0  # largest standard deviation, pixels; half of the images stay sharp
SHARP = 0.3  # the standard deviation, in pixels, at which resampling neither blurs nor jags
FADE = 0.4  # lowest contrast; half of the images keep theirs
LIFT = 0.1  # highest grey of a black background; half of the images keep it black


@params
class JudgeParams:
    """The section `judge` of params.yaml."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0, description="the peak")]
    seed: Annotated[int, Field(ge=0, le=2**31)]


@dataclass(frozen=True)
class JudgeRecord:
    """One epoch."""

    epoch: int
    loss: float  # cross-entropy in nats per image, the mean over the epoch's altered images
    accuracy: float  # share of the validation images, unaltered, that are read right
    seconds: float


class Reading(NamedTuple):
    """What the judge says about N images. features: (N, 64) float32, at least 0; labels: (N,) int64 in 0…9."""

    features: Tensor
    labels: Tensor


Reader = Callable[[Tensor], Reading]  # a trained judge: `partial(read, judge)`


class Judge(nn.Module):
    """Four convolutions, then 64 features, then 10 logits.

    The planes shrink 28² → 14² → 7² → 3², by a stride at once and by pooling ahead of the normalisation, as on a
    CPU most of the time goes to the large ones.
    """

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

    def features(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32 in [0, 1]. Returns (N, 64), at least 0."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32 in [0, 1]. Returns logits (N, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def build(seed: int) -> Judge:
    """An untrained judge on the CPU, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Judge()


def fit(judge: Judge, train: Split, validation: Split, params: JudgeParams) -> Iterator[JudgeRecord]:
    """Trains `judge` in place, a record an epoch; once exhausted, it holds the weights that read validation best.

    Judge and splits lie on one device. Same seed, machine and number of threads: the same weights (a GPU may add in
    another order, and then differ in the last digits). AdamW (Loshchilov & Hutter 2019) on the cross-entropy, in
    bfloat16 where the processor multiplies it natively.
    """
    device = train.images.device
    steps_per_epoch = max(len(train) // params.batch_size, 1)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=DECAY, fused=True)
    source = torch.Generator(device)
    best, best_accuracy = judge.state_dict(), -1.0

    for epoch in range(params.epochs):
        began = time.perf_counter()
        judge.train()
        source.manual_seed(epoch_seed(params.seed, epoch))
        # The loss adds up on the device: reading it at each step would stall a GPU.
        total = torch.zeros((), device=device)

        for index, rows in enumerate(batches(len(train), params.batch_size, params.seed, epoch, device)):
            progress = (epoch * steps_per_epoch + index) / (params.epochs * steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * _rate(progress)

            images = augment(to_unit(train.images[rows]), source)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                logits = judge(images)
            loss = F.cross_entropy(logits.float(), train.labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()

        accuracy = float((read(judge, validation.images).labels == validation.labels).float().mean())
        if accuracy >= best_accuracy:  # of equals the later one, which was trained at a lower rate
            best, best_accuracy = copy.deepcopy(judge.state_dict()), accuracy
        yield JudgeRecord(
            epoch=epoch + 1,
            loss=float(total) / steps_per_epoch,
            accuracy=accuracy,
            seconds=time.perf_counter() - began,
        )
    judge.load_state_dict(best)
    judge.eval()


def augment(images: Tensor, source: torch.Generator) -> Tensor:
    """Moves, stretches, blurs, fades and lifts each image by amounts of its own; leaves `images` as they are.

    A Gaussian blur is separable, and so are shift and stretch: one matrix (28, 28) for the rows and one for the
    columns of each image do all three at once, `down @ image @ across.T`.

    images: (N, 1, 28, 28) float32 in [0, 1]. Returns the same shape, in [0, 1].
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=source, device=device) * (high - low) + low

    sigma = uniform(-BLUR, BLUR).clamp_min(SHARP)
    down = _resampling(uniform(-SHIFT, SHIFT), uniform(1 - SCALE, 1 + SCALE), sigma)
    across = _resampling(uniform(-SHIFT, SHIFT), uniform(1 - SCALE, 1 + SCALE), sigma)
    contrast = uniform(FADE, 2 - FADE).clamp_max(1)
    lift = uniform(-LIFT, LIFT).clamp_min(0)
    changed = lift + (1 - lift) * contrast * (down @ images.squeeze(1) @ across.mT)
    return changed.clamp_max(1).unsqueeze(1)  # rows that sum to 1 do so up to rounding


def _resampling(shift: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
    """Matrices (N, 28, 28) whose row i weights the pixels around `scale · i + shift` by a Gaussian; rows sum to 1.

    All three arguments are (N, 1, 1); places are counted from the middle of the image.
    """
    places = torch.arange(SIDE, device=shift.device) - (SIDE - 1) / 2
    distance = scale * places[:, None] + shift - places
    # Weights under e^-30 change nothing in float32, but as denormal numbers they would slow a CPU down.
    return torch.softmax((-0.5 * (distance / sigma).square()).clamp_min(-30), dim=2)


@torch.no_grad()
def read(judge: Judge, images: Tensor) -> Reading:
    """Features and labels, in float32, on the judge's device; leaves the judge in evaluation mode.

    images: (N, 1, 28, 28), uint8 or float32 in [0, 1], on any device.
    """
    judge.eval()
    device = judge.head.weight.device
    parts = (part.to(device) for part in images.split(READ_BATCH))
    features = torch.cat([judge.features(to_unit(part)) for part in parts])
    return Reading(features, judge.head(features).argmax(1))


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pool: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _rate(progress: float) -> float:
    """The learning rate as a share of its peak: up along half a cosine, then down along half a cosine to 0.

    >>> [round(_rate(share), 2) for share in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if progress < WARMUP:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / WARMUP))
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))

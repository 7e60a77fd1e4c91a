"""The layers that encoders and decoders are built of, and how their weights are initialised."""

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.splits import CLASSES, PIXELS, SIDE

DARK = -2.0  # the logit of MNIST's mean grey value, 0.13
halving = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)  # of the side of a picture


def mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear + ReLU for each hidden size."""
    pairs = itertools.pairwise((width, *hidden))
    return nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels (N,) in 0…9 as (N, 10). Mixtures of labels (N, 10) stay as they are."""
    return (labels if labels.ndim == 2 else F.one_hot(labels, CLASSES)).to(dtype)


class Dense(nn.Sequential):
    """A dense encoder: pixels and label side by side, then Linear + ReLU for each hidden size."""

    def __init__(self, labels: int, hidden: tuple[int, ...]) -> None:
        super().__init__(*mlp(PIXELS + labels, hidden))
        self.width = (PIXELS + labels, *hidden)[-1]

    def forward(self, images: Tensor, label: Tensor | None) -> Tensor:  # type: ignore[override]
        """(N, 1, 28, 28) and one-hot labels (N, 10), None if it must not see them, to (N, width)."""
        x = images.flatten(1)
        if label is not None:
            x = torch.cat([x, label], dim=-1)
        for layer in self:
            x = layer(x)
        return x


class Convolutions(nn.Module):
    """A convolutional encoder: strided convolutions to 14 × 14 and 7 × 7, residual blocks at each, then dense layers.

    The label, where it may see it, enters twice: as a bias of the first channels and beside the features.
    """

    def __init__(self, labels: int, channels: tuple[int, ...], blocks: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = halving(1, channels[0])
        self.bias = nn.Linear(labels, channels[0], bias=False) if labels else None
        layers = [*residuals(channels[0], blocks), nn.ReLU()]
        for pair in itertools.pairwise(channels):
            layers += [halving(*pair), *residuals(pair[1], blocks), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        features = channels[-1] * (SIDE // 2 ** len(channels)) ** 2 + labels
        self.dense = mlp(features, hidden)
        self.width = (features, *hidden)[-1]

    def forward(self, images: Tensor, label: Tensor | None) -> Tensor:
        """(N, 1, 28, 28) and one-hot labels (N, 10), None if it must not see them, to (N, width)."""
        x = self.stem(images)
        if self.bias is None or label is None:
            return self.dense(self.body(x).flatten(1))
        x = self.body(x + self.bias(label)[..., None, None]).flatten(1)
        return self.dense(torch.cat([x, label], dim=-1))


class Deconvolutions(nn.Module):
    """Features to pixels: dense to 7 × 7, residual blocks, transposed convolutions to 14 × 14 and to 28 × 28."""

    def __init__(self, width: int, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        side = SIDE // 2 ** len(channels)
        self.shape = (channels[-1], side, side)
        self.spread = nn.Linear(width, math.prod(self.shape))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((*reversed(channels), 1)):
            doubling = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            layers += [*residuals(before, blocks), nn.ReLU(), doubling]
        self.body = nn.Sequential(*layers)

    @property
    def last(self) -> nn.ConvTranspose2d:
        """The layer that makes the pixels."""
        return self.body[-1]  # type: ignore[return-value]

    def forward(self, features: Tensor) -> Tensor:
        """(..., width) to (..., 784)."""
        x = self.spread(features).view(-1, *self.shape)
        return self.body(x).reshape(*features.shape[:-1], PIXELS)


class Residual(nn.Module):
    """x + f(x), where f is two 3 × 3 convolutions, each after a ReLU (He 2016), not normalised: see `scale_down`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def residuals(channels: int, blocks: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(blocks)]


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Sets weights to N(0, 2 ÷ inputs of a unit) and biases to 0, which keeps the size of activations (He 2015).

    torch's default weights are √6 times smaller. Differences between latents then shrink with every layer towards the
    pixels, and the first epochs are spent on making them larger.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            inputs = layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            # weight: (in, out, height, width); each output pixel reads every stride-th row and column of the kernel
            inputs = layer.weight[:, 0].numel() // math.prod(layer.stride)
        else:
            continue
        layer.weight.normal_(0, math.sqrt(2 / inputs))
        if layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def darken(last: nn.Linear | nn.ConvTranspose2d) -> None:
    """Makes the first pictures dark and alike: divides the last weights by 3, sets biases to the logit of MNIST's mean.

    He's weights make random pictures, half of them bright. The first steps are then spent on pixels that are dark in
    almost every digit, which matters in a training of few steps, such as one with large batches.
    """
    last.weight /= 3
    last.bias.fill_(DARK)  # type: ignore[union-attr]


@torch.no_grad()
def scale_down(network: nn.Module) -> None:
    """Divides the last weights of each residual block by √(number of blocks), so that their sum stays bounded.

    This replaces normalisation (after Child 2021): no batch statistics, so that nothing mixes images or members of a
    population.
    """
    blocks = [part for part in network.modules() if isinstance(part, Residual)]
    for block in blocks:
        block.second.weight /= math.sqrt(len(blocks))

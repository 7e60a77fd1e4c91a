"""MNIST as tensors: the three splits, and the batches of an epoch.

A data set stays on the device as uint8 (47 MB for all of MNIST), so that a batch is one indexing operation without
worker processes or copies from the host (after KellerJordan/cifar10-airbench).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10

Pixels = Literal["grey", "binary"]


@dataclass(frozen=True)
class Split:
    """images: (N, 1, 28, 28) uint8; labels: (N,) int64 in 0…9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        if isinstance(rows, Tensor) and rows.dtype == torch.int64:  # five times as fast as indexing
            return Split(self.images.index_select(0, rows), self.labels.index_select(0, rows))
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def of_class(self, digit: int) -> "Split":
        return self[self.labels == digit]

    def first_rows(self, count: int) -> Tensor:
        """The rows of the first `count` images of each class, class by class."""
        return torch.cat([(self.labels == digit).nonzero()[:count, 0] for digit in range(CLASSES)])


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """(N, 28, 28) uint8 and (N,) uint8 arrays as tensors, copied."""
    return Split(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def split(images: np.ndarray, labels: np.ndarray, validation_size: int, seed: int) -> tuple[Split, Split]:
    """Training and validation rows of the published training set: stratified by class, shuffled, seeded.

    Raises UserError where a class, or the training split, would have no images, or a class a single one many times.
    """
    from sklearn.model_selection import train_test_split

    if len(labels) - validation_size < CLASSES:
        raise UserError(f"data.validation_size {validation_size} leaves no training data of {len(labels)} images")
    if (np.bincount(labels) == 1).any():
        raise UserError("a digit with a single training image can't be split: give each digit at least two")
    for digit in np.unique(labels):
        of_digit = images[labels == digit]
        if (of_digit == of_digit[0]).all():
            raise UserError(f"all training images of digit {digit} are the same: they must be data of another kind")
    rows = np.arange(len(labels))
    train, validation = train_test_split(rows, test_size=validation_size, random_state=seed, stratify=labels)
    return as_split(images[train], labels[train]), as_split(images[validation], labels[validation])


def batches(size: int, batch_size: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """The row indices of an epoch's batches, (batches, batch size): a permutation by seed and epoch alone.

    All batches have the same size, because a compiled step needs it. The rows left over, fewer than `batch_size`,
    differ from epoch to epoch.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(size, generator=generator).to(device)
    batch_size = min(batch_size, size)
    return order[: size - size % batch_size].view(-1, batch_size)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for each (seed, epoch), so that an epoch can be repeated without those before it."""
    return (seed * 1_000_003 + epoch) % 2**63


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; floating-point images are returned as they are."""
    return images if images.is_floating_point() else images.float().div_(255)


def as_pixels(images: Tensor, pixels: Pixels, generator: torch.Generator | None = None) -> Tensor:
    """uint8 images as the model sees them: grey values in [0, 1], or a Bernoulli draw with those probabilities."""
    grey = to_unit(images)
    return grey if pixels == "grey" else torch.bernoulli(grey, generator=generator)

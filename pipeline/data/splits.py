"""MNIST as tensors: IDX parsing, the three splits, and batches by index.

The data set lives on the device as uint8 (47 MB for all of MNIST), so that a batch is one gather: no workers,
no copies, no host in the loop (after KellerJordan/cifar10-airbench).
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
SPLITS = ("train", "validation", "test")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

Pixels = Literal["grey", "binary"]


@dataclass(frozen=True)
class Split:
    """Images and labels, row by row.

    images: (N, 1, 28, 28) uint8; labels: (N,) int64 in 0…9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        if isinstance(rows, Tensor) and rows.dtype == torch.int64:  # copies whole rows, five times as fast as indexing
            return Split(self.images.index_select(0, rows), self.labels.index_select(0, rows))
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def of_class(self, digit: int) -> "Split":
        return self[self.labels == digit]


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """An IDX file's array of bytes (LeCun's format: 0, 0, type 8 = uint8, number of dimensions, sizes, values).

    Raises UserError where `content` is not a whole uint8 IDX file; `name` says which.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{name} is no IDX file of bytes: delete it and run `cvae download` again")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if len(content) != start + int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{name} is not whole: delete it and run `cvae download` again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_pair(folder: Path, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both uint8, from two IDX files, plain or gzipped, that belong together."""
    arrays = []
    for name in (images, labels):
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}): run `cvae download` first") from None
        try:
            plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        except (EOFError, OSError, zlib.error):
            raise UserError(f"{path} is not whole: delete it and run `cvae download` again") from None
        arrays.append(parse_idx(plain, str(path)))
    pictures, digits = arrays
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{folder / images} must hold {SIDE} × {SIDE} pictures, not {pictures.shape[1:]}")
    if digits.shape != pictures.shape[:1] or digits.max(initial=0) >= CLASSES:
        raise UserError(f"{folder / labels} must hold a label in 0…9 for each picture of {images}")
    return pictures, digits


def split(images: np.ndarray, labels: np.ndarray, validation_size: int, seed: int) -> tuple[Split, Split]:
    """Training and validation rows of the published training set: stratified by class, shuffled, seeded."""
    from sklearn.model_selection import train_test_split

    if len(labels) - validation_size < CLASSES:
        raise UserError(f"data.validation_size {validation_size} leaves no training data of {len(labels)} images")
    if (np.bincount(labels) == 1).any():
        raise UserError("a digit with a single training image can't be split: give each at least two")
    rows = np.arange(len(labels))
    train, validation = train_test_split(rows, test_size=validation_size, random_state=seed, stratify=labels)
    return as_split(images[train], labels[train]), as_split(images[validation], labels[validation])


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """(N, 28, 28) uint8 and (N,) uint8 arrays as tensors."""
    return Split(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def batches(size: int, batch_size: int, seed: int, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """The row indices of one epoch's batches: a permutation that depends on seed and epoch alone.

    Every batch has the same size, as compiled steps want it: the up to `batch_size - 1` rows left over wait for
    another epoch's permutation.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(size, generator=generator).to(device)
    batch_size = min(batch_size, size)
    yield from order[: size - size % batch_size].view(-1, batch_size)


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed for each (seed, epoch), so that any epoch can be replayed without those before it."""
    return (seed * 1_000_003 + epoch) % 2**63


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; what already is a picture of such numbers, as it is."""
    return images if images.is_floating_point() else images.float().div_(255)


def as_pixels(images: Tensor, pixels: Pixels, generator: torch.Generator | None = None) -> Tensor:
    """uint8 images as the model sees them: grey values in [0, 1], or a fresh Bernoulli draw with those chances."""
    grey = to_unit(images)
    return grey if pixels == "grey" else torch.bernoulli(grey, generator=generator)

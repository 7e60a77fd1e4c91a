"""IDX, the format that MNIST is published in (LeCun): 0, 0, the type, the number of dimensions, sizes, values."""

import struct

import numpy as np

from pipeline.base.errors import UserError
from pipeline.data.splits import CLASSES, SIDE

FILES = {  # images and labels of each published set
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UINT8 = 8


def parse(content: bytes, name: str) -> np.ndarray:
    """The uint8 array that an IDX file holds. Raises UserError, with the file's `name`, for any other content."""
    if len(content) < 4 or content[:3] != bytes([0, 0, UINT8]):
        raise UserError(f"{name} is no IDX file of bytes: delete it and run `cvae download` again")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if len(content) != start + int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{name} is not whole: delete it and run `cvae download` again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def parse_pair(images: bytes, labels: bytes, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and their labels (N,), both uint8. Raises UserError where the two files don't fit."""
    pictures, digits = parse(images, names[0]), parse(labels, names[1])
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{names[0]} must hold {SIDE} × {SIDE} images, not {pictures.shape[1:]}")
    if digits.shape != pictures.shape[:1] or digits.max(initial=0) >= CLASSES:
        raise UserError(f"{names[1]} must hold a label in 0…9 for each image of {names[0]}")
    return pictures, digits

"""IDX, the format that MNIST is published in (LeCun): 0, 0, 8 for bytes, the number of dimensions, sizes, values."""

import struct

import numpy as np

from pipeline.base.errors import UserError
from pipeline.data.download import NAMES
from pipeline.data.splits import CLASSES, SIDE

FILES = {"train": NAMES[:2], "test": NAMES[2:]}  # images and labels of each published set


def parse(images: bytes, labels: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and their labels (N,) in 0…9, both uint8, from the content of two files.

    Raises UserError, with the set's name, where the files hold anything else.
    """
    count = max(len(labels) - 8, 0)
    pixels, digits = np.frombuffer(images, np.uint8)[16:], np.frombuffer(labels, np.uint8)[8:]
    if (
        images[:16] != struct.pack(">4B3I", 0, 0, 8, 3, count, SIDE, SIDE)
        or labels[:8] != struct.pack(">4BI", 0, 0, 8, 1, count)
        or len(pixels) != count * SIDE * SIDE
        or digits.max(initial=0) >= CLASSES
    ):
        raise UserError(
            f"{' and '.join(FILES[name])} must be IDX files of {SIDE} × {SIDE} images and of a label in 0…9 for each: "
            "delete them and run `cvae download` again"
        )
    return pixels.reshape(count, SIDE, SIDE), digits

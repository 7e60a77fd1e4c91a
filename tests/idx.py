"""Arrays as files in MNIST's format."""

import struct

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in IDX format."""
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

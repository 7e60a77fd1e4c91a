"""Turns the IDX files into one safetensors file of uint8 tensors: train, validation and test. A few seconds."""

from pathlib import Path

import numpy as np

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.params import load
from pipeline.base.paths import PREPARED, RAW
from pipeline.data import idx
from pipeline.data.download import DataParams
from pipeline.data.splits import as_split, split
from pipeline.stages.saved import save_splits


def main() -> None:
    params = load(DataParams, "data")
    train, validation = split(*read_published(RAW, "train"), params.validation_size, params.seed)
    test = as_split(*read_published(RAW, "test"))
    save_splits(PREPARED, {"train": train, "validation": validation, "test": test})
    print(f"{PREPARED}: {len(train):,} train, {len(validation):,} validation, {len(test):,} test images")


def read_published(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of the published set `train` or `test`, both uint8. Raises UserError."""
    try:
        images, labels = ((folder / file).read_bytes() for file in idx.FILES[name])
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}): run `cvae download` first") from None
    return idx.parse(images, labels, name)


if __name__ == "__main__":
    console.run(main)

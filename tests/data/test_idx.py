"""The IDX format is read, or refused with the names of the files."""

from pathlib import Path

import numpy as np
import pytest
from idx import idx

from pipeline.base.errors import UserError
from pipeline.data.idx import FILES, parse
from pipeline.stages.prepare import read_published

SOURCE = np.random.default_rng(0)
IMAGES = SOURCE.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 9, 5, 5, 3], np.uint8)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (idx(IMAGES)[:-1], idx(LABELS)),
        (b"<!DOCTYPE html><title>404</title>", idx(LABELS)),
        (idx(IMAGES[:, :27]), idx(LABELS)),
        (idx(IMAGES), idx(LABELS[:6])),
        (idx(IMAGES), idx(LABELS.reshape(7, 1))),
        (idx(IMAGES), idx(LABELS + 1)),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100), idx(LABELS)),  # sizes whose product overflows
    ],
)
def test_other_files_are_refused(images: bytes, labels: bytes) -> None:
    with pytest.raises(UserError, match=r"^t10k-images-idx3-ubyte and t10k-labels.* must be IDX files .*cvae download"):
        parse(images, labels, "test")


def test_a_published_set_is_read_from_its_folder(tmp_path: Path) -> None:
    for name, array in zip(FILES["test"], (IMAGES, LABELS), strict=True):
        (tmp_path / name).write_bytes(idx(array))
    images, labels = read_published(tmp_path, "test")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte can't be read .*cvae download"):
        read_published(tmp_path, "train")

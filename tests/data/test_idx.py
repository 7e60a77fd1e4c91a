"""The IDX format is read, or refused with the file's name."""

from pathlib import Path

import numpy as np
import pytest
from idx import idx

from pipeline.base.errors import UserError
from pipeline.data.idx import FILES, parse, parse_pair
from pipeline.stages.prepare import read_published

SOURCE = np.random.default_rng(0)
IMAGES = SOURCE.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 9, 5, 5, 3], np.uint8)


def test_a_file_is_read_as_the_format_says() -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])
    assert parse(content, "a").tolist() == [[10, 20, 30], [40, 50, 255]]


@pytest.mark.parametrize("length", [*range(4, 20), -1])
def test_a_file_cut_short_at_any_length_is_refused(length: int) -> None:
    with pytest.raises(UserError, match="images is not whole"):
        parse(idx(IMAGES)[:length], "images")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"<!DOCTYPE html><title>404</title>", b"\0\0\x0d\x01\0\0\0\0"])
def test_another_format_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="images is no IDX file"):
        parse(content, "images")


@pytest.mark.parametrize(
    ("images", "labels", "culprit"),
    [
        (IMAGES[:, :27], LABELS, "images"),
        (IMAGES.reshape(7, 784), LABELS, "images"),
        (IMAGES, LABELS[:6], "labels"),
        (IMAGES, LABELS.reshape(7, 1), "labels"),
        (IMAGES, LABELS + 1, "labels"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(images: np.ndarray, labels: np.ndarray, culprit: str) -> None:
    with pytest.raises(UserError, match=f"^{culprit} must hold"):
        parse_pair(idx(images), idx(labels), ("images", "labels"))


def test_a_published_set_is_read_from_its_folder(tmp_path: Path) -> None:
    for name, array in zip(FILES["test"], (IMAGES, LABELS), strict=True):
        (tmp_path / name).write_bytes(idx(array))
    images, labels = read_published(tmp_path, "test")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte can't be read .*cvae download"):
        read_published(tmp_path, "train")

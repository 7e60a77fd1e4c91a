"""Odd data is trained and measured, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drills import Zygote, assert_words, digits, make_project

pytestmark = pytest.mark.slow

Data = tuple[np.ndarray, np.ndarray]


def black() -> Data:
    images, labels = digits()
    return np.zeros_like(images), labels


def nearly_black() -> Data:
    """A single pixel tells two images of a class from each other."""
    images, labels = black()
    images[::2, 0, 0] = 1
    return images, labels


def constant() -> Data:
    """The images of a class are all the same."""
    images, labels = digits()
    first = np.stack([images[labels == digit][0] for digit in range(10)])
    return first[labels], labels


def a_class_is_missing() -> Data:
    images, labels = digits()
    return images[labels != 4], labels[labels != 4]


def ten_images() -> Data:
    images, labels = digits()
    return np.concatenate([images[:10], images[360:]]), np.concatenate([labels[:10], labels[360:]])


@pytest.mark.parametrize("make", [black, nearly_black, constant, a_class_is_missing, ten_images])
def test_odd_data_is_measured_or_refused_in_one_line(
    tmp_path: Path, zygote: Zygote, database: Path, make: Callable[[], Data]
) -> None:
    images, labels = make()
    train = 10 if make is ten_images else 360
    folder = make_project(tmp_path / "project", database, images, labels, train)
    for stage in ("prepare", "judge", "train", "evaluate"):
        ended = zygote.run(folder, stage)
        assert_words(ended)
        if ended.status == 2:
            print(stage, ended.said)
            return
    assert (folder / "reports/metrics.json").exists()

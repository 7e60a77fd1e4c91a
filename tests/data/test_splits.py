"""Splits hold each image once, batches cover everything once, and pixels are what they say."""

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.data import splits as data
from pipeline.data.splits import Split

CPU = torch.device("cpu")


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images that each hold their own number, with uneven classes."""
    labels = (np.arange(count) % 13).clip(max=9).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return images, labels


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 0, 0, 1].long()).tolist()


def test_the_two_parts_hold_every_image_once_with_its_label_and_shuffled() -> None:
    images, labels = numbered(1300)
    parts = data.split(images, labels, validation_size=130, seed=3)
    assert [len(part) for part in parts] == [1170, 130]
    assert sorted(numbers(parts[0]) + numbers(parts[1])) == list(range(1300))
    assert numbers(data.split(images, labels, 130, 3)[1]) == numbers(parts[1])
    assert numbers(data.split(images, labels, 130, 4)[1]) != numbers(parts[1])
    for part in parts:
        assert part.labels.tolist() == labels[numbers(part)].tolist()
        assert numbers(part) != sorted(numbers(part))
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert (shares - torch.bincount(torch.from_numpy(labels)) / 1300).abs().max() <= 1 / len(part)


def test_a_validation_set_that_leaves_no_training_data_is_refused() -> None:
    with pytest.raises(UserError, match="validation_size 495 leaves no training data of 500 images"):
        data.split(*numbered(500), validation_size=495, seed=0)


@pytest.mark.parametrize(("size", "batch_size", "count"), [(100, 10, 10), (103, 10, 10), (7, 10, 1)])
def test_an_epoch_has_batches_of_one_size_and_no_row_twice(size: int, batch_size: int, count: int) -> None:
    rows = list(data.batches(size, batch_size, seed=0, epoch=0, device=CPU))
    drawn = torch.cat(rows)
    assert [len(batch) for batch in rows] == [min(batch_size, size)] * count
    assert len(drawn.unique()) == len(drawn) > size - batch_size
    assert 0 <= drawn.min() <= drawn.max() < size


def test_seed_and_epoch_alone_make_the_order() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(torch.cat(list(data.batches(100, 10, seed, epoch, CPU))).tolist())

    torch.manual_seed(1)
    first = order(3, 5)
    torch.manual_seed(2)
    assert order(3, 5) == first
    assert len({order(seed, epoch) for seed in range(6) for epoch in range(6)}) == 36


def test_binary_pixels_are_zeros_and_ones_whose_mean_is_the_grey_value() -> None:
    images, source = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).expand(20_000, 4), torch.Generator()
    drawn = data.as_pixels(images, "binary", source.manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.allclose(drawn.mean(0), images[0] / 255, atol=0.015)
    assert not torch.equal(data.as_pixels(images, "binary", source), drawn)
    assert torch.equal(data.as_pixels(images, "binary", source.manual_seed(0)), drawn)

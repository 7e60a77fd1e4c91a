"""Data: the format is read or refused, splits are what they say, batches cover everything once."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from idx import idx

from pipeline.base.errors import UserError
from pipeline.data import splits as data
from pipeline.data.splits import Split

CPU = torch.device("cpu")
SOURCE = np.random.default_rng(0)
PICTURES = SOURCE.integers(0, 256, (7, 28, 28), dtype=np.uint8)
DIGITS = np.array([0, 1, 2, 9, 5, 5, 3], np.uint8)


def pair(folder: Path, pictures: bytes, digits: bytes) -> tuple[np.ndarray, np.ndarray]:
    (folder / "images").write_bytes(pictures)
    (folder / "labels").write_bytes(digits)
    return data.read_idx_pair(folder, "images", "labels")


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images that each hold their own number, with uneven classes."""
    labels = (np.arange(count) % 13).clip(max=9).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return images, labels


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 0, 0, 1].long()).tolist()


def test_an_idx_file_reads_as_its_format_says() -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])
    assert data.parse_idx(content, "a").tolist() == [[10, 20, 30], [40, 50, 255]]


@pytest.mark.parametrize("shape", [(5,), (0,), (2, 3), (4, 28, 28), (2, 1, 3, 2)])
def test_an_array_survives_the_idx_format(shape: tuple[int, ...]) -> None:
    array = SOURCE.integers(0, 256, shape, dtype=np.uint8)
    back = data.parse_idx(idx(array), "a")
    assert back.dtype == np.uint8
    assert np.array_equal(back, array)


@pytest.mark.parametrize("length", [*range(4, 20), -1])
def test_a_truncated_file_is_not_whole_at_any_length(length: int) -> None:
    with pytest.raises(UserError, match="images is not whole"):
        data.parse_idx(idx(PICTURES)[:length], "images")


def test_bytes_too_many_are_not_accepted() -> None:
    with pytest.raises(UserError, match="not whole"):
        data.parse_idx(idx(PICTURES) + b"\0", "images")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"<!DOCTYPE html><title>404</title>", b"\0\0\x0d\x01\0\0\0\0"])
def test_a_foreign_file_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(UserError, match="images is no IDX file"):
        data.parse_idx(content, "images")


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_of_files_reads_plain_or_packed(packed: bool, tmp_path: Path) -> None:
    contents = [gzip.compress(part) if packed else part for part in (idx(PICTURES), idx(DIGITS))]
    pictures, digits = pair(tmp_path, contents[0], contents[1])
    assert np.array_equal(pictures, PICTURES)
    assert np.array_equal(digits, DIGITS)


@pytest.mark.parametrize(
    ("pictures", "digits", "culprit"),
    [
        (PICTURES[:, :27], DIGITS, "images"),
        (PICTURES.reshape(7, 784), DIGITS, "images"),
        (PICTURES, DIGITS[:6], "labels"),
        (PICTURES, DIGITS.reshape(7, 1), "labels"),
        (PICTURES, DIGITS + 1, "labels"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    pictures: np.ndarray, digits: np.ndarray, culprit: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{culprit} must hold"):
        pair(tmp_path, idx(pictures), idx(digits))


def test_a_missing_file_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images can't be read .*cvae download"):
        data.read_idx_pair(tmp_path, "images", "labels")


def test_a_packed_file_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images is not whole"):
        pair(tmp_path, gzip.compress(idx(PICTURES))[:-20], idx(DIGITS))


def test_the_two_parts_of_a_split_hold_every_image_once() -> None:
    train, validation = data.split(*numbered(1000), validation_size=200, seed=0)
    assert (len(train), len(validation)) == (800, 200)
    assert sorted(numbers(train) + numbers(validation)) == list(range(1000))


def test_images_keep_their_labels() -> None:
    images, labels = numbered(1000)
    for part in data.split(images, labels, 200, seed=0):
        assert part.labels.tolist() == labels[numbers(part)].tolist()


def test_both_parts_have_the_same_share_of_each_class() -> None:
    images, labels = numbered(1300)
    for part in data.split(images, labels, 130, seed=3):
        counts = torch.bincount(part.labels, minlength=10)
        assert (counts / len(part) - torch.bincount(torch.from_numpy(labels)) / 1300).abs().max() <= 1 / len(part)


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    images, labels = numbered(500)
    first, again, other = (numbers(data.split(images, labels, 100, seed)[1]) for seed in (4, 4, 5))
    assert first == again
    assert set(first) != set(other)


def test_a_split_is_shuffled() -> None:
    images, labels = numbered(500)
    rows = numbers(data.split(images, np.sort(labels), 100, 0)[0])
    assert rows != sorted(rows)


@pytest.mark.parametrize("size", [500, 495, 10_000])
def test_a_validation_set_that_leaves_nothing_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"validation_size {size} leaves no training data of 500 images"):
        data.split(*numbered(500), validation_size=size, seed=0)


def test_a_split_does_not_share_memory_with_its_source() -> None:
    images, labels = numbered(20)
    split = data.as_split(images, labels)
    images[:] = 99
    assert numbers(split) == list(range(20))
    assert split.images.shape == (20, 1, 28, 28)


def test_rows_and_classes_are_taken_together() -> None:
    split = data.as_split(*numbered(26))
    assert split.of_class(3).labels.tolist() == [3, 3]
    assert numbers(split.of_class(3)) == [3, 16]
    assert numbers(split[torch.tensor([5, 2])]) == [5, 2]
    assert split[slice(4, 6)].labels.tolist() == [4, 5]


@pytest.mark.parametrize(("size", "batch_size", "count"), [(100, 10, 10), (103, 10, 10), (7, 10, 1), (10, 1, 10)])
def test_an_epoch_has_batches_of_one_size_and_no_row_twice(size: int, batch_size: int, count: int) -> None:
    rows = list(data.batches(size, batch_size, seed=0, epoch=0, device=CPU))
    drawn = torch.cat(rows)
    assert [len(batch) for batch in rows] == [min(batch_size, size)] * count
    assert len(drawn.unique()) == len(drawn) > size - batch_size
    assert 0 <= drawn.min() <= drawn.max() < size


def test_rows_left_over_get_their_turn_in_other_epochs() -> None:
    seen = torch.cat([batch for epoch in range(10) for batch in data.batches(19, 10, 0, epoch, CPU)])
    assert len(seen.unique()) == 19


def order(seed: int, epoch: int) -> list[int]:
    return torch.cat(list(data.batches(100, 10, seed, epoch, CPU))).tolist()


def test_seed_and_epoch_alone_make_the_order() -> None:
    torch.manual_seed(1)
    first = order(3, 5)
    torch.manual_seed(2)
    assert order(3, 5) == first


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(order(seed, epoch)) for seed in range(6) for epoch in range(6)}
    assert len(orders) == 36


def test_an_epoch_has_a_seed_that_torch_takes_however_large_the_run_s_is() -> None:
    torch.Generator().manual_seed(data.epoch_seed(2**62, 10_000))


def test_the_unit_range_is_the_whole_of_a_byte() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert data.to_unit(images).tolist() == pytest.approx([0, 0.2, 1])
    assert images.tolist() == [0, 51, 255]


def test_what_is_a_picture_of_numbers_already_stays_so() -> None:
    grey = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    assert data.to_unit(grey) is grey


@pytest.mark.parametrize("rows", [torch.tensor([3, 0, 3]), torch.tensor([True, False, True, True]), slice(1, 3)])
def test_rows_of_a_split_are_those_of_both_its_parts(rows: torch.Tensor | slice) -> None:
    images, labels = torch.arange(4 * 784).view(4, 1, 28, 28).to(torch.uint8), torch.tensor([4, 3, 2, 1])
    part = data.Split(images, labels)[rows]
    assert torch.equal(part.images, images[rows])
    assert torch.equal(part.labels, labels[rows])


def test_grey_pixels_are_the_grey_values() -> None:
    images = torch.from_numpy(PICTURES)
    assert torch.equal(data.as_pixels(images, "grey"), data.to_unit(images))


def test_binary_pixels_are_zeros_and_ones_with_the_grey_value_as_mean() -> None:
    images = torch.tensor([0, 64, 128, 200, 255], dtype=torch.uint8).expand(20_000, 5)
    drawn = data.as_pixels(images, "binary", torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.allclose(drawn.mean(0), images[0] / 255, atol=0.015)
    assert drawn[:, 0].max() == 0
    assert drawn[:, -1].min() == 1


def test_binary_pixels_are_drawn_afresh_and_again_by_the_same_seed() -> None:
    images, generator = torch.from_numpy(PICTURES), torch.Generator().manual_seed(0)
    first, second = (data.as_pixels(images, "binary", generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, data.as_pixels(images, "binary", torch.Generator().manual_seed(0)))


def test_pixels_of_one_image_are_drawn_one_by_one() -> None:
    image = torch.full((1, 28, 28), 128, dtype=torch.uint8)
    drawn = data.as_pixels(image, "binary", torch.Generator().manual_seed(0))
    assert 0.4 < drawn.mean() < 0.6

"""Moved copies of images: by how much, and in which epochs."""

from typing import Any

import latents
import pytest
import torch
from latents import source
from settings import objective_params, train_params
from torch import Tensor

from pipeline.data import augment
from pipeline.data.splits import SIDE, Split
from pipeline.training.fit import Batch, Loop
from pipeline.training.validation import labelled


def bar(count: int) -> Tensor:
    """A soft upright bar in the middle, as often as asked, (count, 1, 28, 28) uint8."""
    places = torch.arange(SIDE) - (SIDE - 1) / 2
    ink = torch.exp(-(places[None] ** 2) / 12 - places[:, None] ** 2 / 26) * 255
    return ink.round().to(torch.uint8).expand(count, 1, SIDE, SIDE).contiguous()


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """The middle (N, 2) of each picture's ink, across and down in pixels, and its covariance (N, 2, 2)."""
    ink = images.squeeze(1).double()
    ink = ink / ink.sum((1, 2), keepdim=True)
    places = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    where = torch.stack(torch.meshgrid(places, places, indexing="xy"))  # (2, 28, 28)
    middle = torch.einsum("nij,kij->nk", ink, where)
    away = where[None] - middle[..., None, None]
    return middle, torch.einsum("nij,nkij,nlij->nkl", ink, away, away)


def test_each_image_moves_by_amounts_of_its_own_that_the_seed_decides() -> None:
    images = bar(3)
    kept = images.clone()
    assert torch.equal(augment.move(images, 0.0, source()), images)
    moved = augment.move(images, 1.0, source())
    assert torch.equal(images, kept)
    assert torch.equal(moved, augment.move(images, 1.0, source()))
    assert len({image.numpy().tobytes() for image in (*moved, *augment.move(images, 1.0, source(1)))}) == 6


def test_copies_are_shifted_turned_and_sheared_by_the_amounts_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(name: str) -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as patch:
            for other in {"TURN", "SHEAR", "STRETCH", "SHIFT"} - {name}:
                patch.setattr(augment, other, 0.0)
            return moments(augment.move(bar(2000), 1.0, source()))

    middle, _ = copies("SHIFT")
    assert middle.std(0).tolist() == pytest.approx([0.3, 0.3], rel=0.06)
    assert middle.mean(0).tolist() == pytest.approx([0, 0], abs=0.03)
    _, spread = copies("TURN")
    across, down, mixed = spread[:, 0, 0], spread[:, 1, 1], spread[:, 0, 1]
    degrees = torch.rad2deg(torch.atan2(2 * mixed, down - across) / 2)  # of the long axis, away from upright
    assert degrees.std().item() == pytest.approx(4, rel=0.06)
    _, spread = copies("SHEAR")
    assert (spread[:, 0, 1] / spread[:, 1, 1]).std().item() == pytest.approx(0.05, rel=0.06)
    _, spread = copies("STRETCH")
    _, before = moments(bar(1))
    stretch = (before[0, 0, 0] / spread[:, 0, 0]).sqrt().std().item()
    assert stretch == pytest.approx(0.03, rel=0.25)  # bicubic adds to it


DIGITS = Split(torch.randint(0, 256, (60, 1, SIDE, SIDE), dtype=torch.uint8, generator=source()), torch.arange(60) % 10)


def seen(epoch: int, **changes: Any) -> list[Batch]:
    params, batches = train_params(epochs=10, **changes), []

    def take_step(batch: Batch, _: Any) -> Tensor:
        batches.append(batch)
        return torch.zeros(3)

    Loop(take_step, list, DIGITS, params, objective_params(), labelled("grey"), latents.model()).run(epoch)
    return batches


def test_each_epoch_has_its_own_copies_until_augment_until() -> None:
    """After that, images, labels and noise of an epoch are those of a run without augmentation."""
    first, second, again = (torch.cat([images for images, *_ in seen(epoch, augment=1.0)]) for epoch in (0, 1, 0))
    assert torch.equal(first, again)
    originals = {image.numpy().tobytes() for image in DIGITS.images}
    copies = {image.numpy().tobytes() for image in (*first, *second)}
    assert len(copies) == 120
    assert not copies & originals
    for epoch, moved in ((4, True), (5, False), (9, False)):
        with_copies, without = seen(epoch, augment=1.0, augment_until=0.5), seen(epoch)
        for (images, labels, noise), (other, other_labels, other_noise) in zip(with_copies, without, strict=True):
            assert torch.equal(labels, other_labels)
            assert torch.equal(images, other) is not moved
            assert torch.equal(noise, other_noise) is not moved

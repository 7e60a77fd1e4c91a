"""Which pixels are visible, by chance or by name."""

import torch
from latents import source

from pipeline.completion import masks


def test_masks_show_something_hide_something_and_depend_on_the_generator() -> None:
    drawn = masks.draw_masks(2000, source())
    assert drawn.shape == (2000, 784)
    share, each = drawn.float().mean(1), drawn.float().mean(0)
    assert ((share > 0) & (share < 1)).float().mean() > 0.99
    assert 0.4 < each.min() <= each.max() < 0.6
    assert not torch.equal(masks.draw_masks(50, source(1)), masks.draw_masks(50, source(2)))


def test_every_published_and_named_mask_is_trained_on() -> None:
    drawn = {mask.numpy().tobytes() for mask in masks.draw_masks(2000, source())}
    assert all(mask.numpy().tobytes() in drawn for mask in masks.named_masks().values())


def test_a_block_is_one_rectangle() -> None:
    for mask in [*masks._blocks(200, source()), *map(masks.random_block, range(20))]:
        inside = mask if not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any() else ~mask
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        assert 5 <= min(rows.sum(), columns.sum()) <= max(rows.sum(), columns.sum()) <= 24


def test_a_mask_is_named_by_what_it_hides() -> None:
    named = masks.named_masks()
    assert not named["top"][:14].any()
    assert named["top"][14:].all()
    assert torch.equal(named["left"], ~named["right"])
    assert torch.equal(named["top-left"], ~named["all-but-top-left"])
    for number, name in enumerate(("all-but-bottom-left", "right", "bottom-right"), 1):
        assert torch.equal(named[name].flatten(), masks.quadrants_shown(number))
    assert len({mask.numpy().tobytes() for mask in named.values()}) == len(named) == 12

"""Which pixels of a picture are visible: random masks to train on, the published ones, and named ones."""

import torch
from torch import Tensor

from pipeline.data.splits import SIDE

HALF = SIDE // 2


def draw_masks(count: int, source: torch.Generator) -> Tensor:
    """Random masks (count, 784) bool, true where visible: first quadrants, then halves, blocks and cells.

    The order does not matter, because the images of a batch are shuffled.
    """
    kinds = ((_quadrants, 0.55), (_halves, 0.65), (_blocks, 0.85), (_cells, 1.0))  # with the share where each ends
    masks, done = [], 0
    for draw, share in kinds:
        end = round(share * count)
        masks.append(draw(end - done, source))
        done = end
    return torch.cat(masks).flatten(1)


def _quadrants(count: int, source: torch.Generator) -> Tensor:
    """One, two or three visible quadrants, any of them."""
    order = torch.rand(count, 4, generator=source, device=source.device).argsort(1)
    number = torch.randint(1, 4, (count, 1), generator=source, device=source.device)
    corners = (order < number).view(count, 2, 2)
    return corners.repeat_interleave(HALF, 1).repeat_interleave(HALF, 2)


def _halves(count: int, source: torch.Generator) -> Tensor:
    first = torch.arange(SIDE, device=source.device) < HALF
    halves = torch.stack([side.expand(SIDE, SIDE) for side in (first, ~first, first[:, None], ~first[:, None])])
    return halves[torch.randint(4, (count,), generator=source, device=source.device)]


def _blocks(count: int, source: torch.Generator) -> Tensor:
    """A rectangle of 6 to 22 pixels a side, which is hidden or the only visible part."""
    hides = torch.rand(count, 1, 1, generator=source, device=source.device) < 0.5
    return _rectangles(count, source) ^ hides


def _rectangles(count: int, source: torch.Generator) -> Tensor:
    places = torch.arange(SIDE, device=source.device)
    chance = torch.rand(4, count, 1, generator=source, device=source.device)
    inside = []
    for size, place in (chance[:2], chance[2:]):
        length = 6 + 17 * size
        start = (SIDE - length) * place
        inside.append((places >= start) & (places < start + length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _cells(count: int, source: torch.Generator) -> Tensor:
    """Square cells of 1, 2, 4 or 7 pixels a side, visible with a probability drawn for each image."""
    noise = torch.rand(count, SIDE, SIDE, generator=source, device=source.device)
    side = 2 ** torch.randint(4, (count, 1), generator=source, device=source.device)
    side = torch.where(side == 8, 7, side)
    corner = torch.arange(SIDE, device=source.device) // side * side
    rows = noise.gather(1, corner[:, :, None].expand(-1, -1, SIDE))
    share = torch.rand(count, 1, 1, generator=source, device=source.device)
    return rows.gather(2, corner[:, None, :].expand(-1, SIDE, -1)) < share


def quadrants_shown(number: int) -> Tensor:
    """The mask of Sohn 2015 with 1, 2 or 3 quadrants visible: (784,) bool.

    1: the bottom left; 2: the left half; 3: all but the bottom right.
    """
    return named_masks()[("all-but-bottom-left", "right", "bottom-right")[number - 1]].flatten()


def named_masks() -> dict[str, Tensor]:
    """Visible pixels (28, 28) bool by the name of what is hidden: a half, a quadrant, or all but a quadrant."""
    first = torch.arange(SIDE) < HALF
    top, left = first[:, None].expand(SIDE, SIDE), first.expand(SIDE, SIDE)
    halves = {"top": top, "bottom": ~top, "left": left, "right": ~left}
    quadrants = {f"{a}-{b}": halves[a] & halves[b] for a in ("top", "bottom") for b in ("left", "right")}
    hidden = halves | quadrants
    return {name: ~mask for name, mask in hidden.items()} | {f"all-but-{name}": quadrants[name] for name in quadrants}


def random_block(seed: int) -> Tensor:
    """Visible pixels (28, 28) bool around a hidden rectangle of 6 to 22 pixels a side, which depends on `seed`."""
    return ~_rectangles(1, torch.Generator().manual_seed(seed))[0]

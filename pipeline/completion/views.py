"""What a completion model is given: binary images, and a condition of what is visible of each.

A condition has 795 numbers: 784 for the pixels (1 ink, −1 blank, 0 hidden), 10 for the label (all 0 where it is not
given) and 1 that is 1 where the pixels are Bernoulli draws and 0 where they are thresholded.
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.completion.masks import draw_masks, quadrants_shown
from pipeline.data.splits import CLASSES, PIXELS, Split, to_unit
from pipeline.model.networks import one_hot
from pipeline.training.validation import View

Binarised = Literal["thresholded", "drawn"]

WIDTH = PIXELS + CLASSES + 1  # of a condition
VEIL = 0.2  # the grey in which hidden pixels are shown


def condition(images: Tensor, visible: Tensor, labels: Tensor, known: Tensor, drawn: Tensor) -> Tensor:
    """Conditions (N, 795) of binary images (N, 1, 28, 28) whose pixels are visible where visible (N, 784) is true.

    labels: (N,), given where known (N,) is true; drawn: (N,) bool, whether the pixels are Bernoulli draws.
    """
    seen = (2 * images.flatten(1) - 1) * visible
    return torch.cat([seen, one_hot(labels, seen.dtype) * known[:, None], drawn[:, None].to(seen.dtype)], dim=1)


def training_view(drawn: float, label_shown: float) -> View:
    """Each image with its own random mask. Labels are given with probability `label_shown`; pixels are Bernoulli draws
    with probability `drawn`, and otherwise thresholded at 0.5."""

    def view(part: Split, source: torch.Generator) -> tuple[Tensor, Tensor]:
        chance = torch.rand(2, len(part), generator=source, device=part.images.device)
        grey, is_drawn, known = to_unit(part.images), chance[0] < drawn, chance[1] < label_shown
        threshold = torch.rand(grey.shape, generator=source, device=grey.device)
        images = (grey > torch.where(is_drawn[:, None, None, None], threshold, 0.5)).float()
        visible = draw_masks(len(part), source)
        return images, condition(images, visible, part.labels, known, is_drawn)

    return view


def published_view(split: Split, pixels: Binarised, number: int, label: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) and conditions (N, 795) of the published test: `number` quadrants are visible.

    A seed always gives the same Bernoulli draws.
    """
    source = torch.Generator(split.images.device).manual_seed(seed)
    grey = to_unit(split.images)
    images = (grey >= 0.5).float() if pixels == "thresholded" else torch.bernoulli(grey, generator=source)
    count, device = len(split), grey.device
    flags = [torch.full((count,), flag, device=device) for flag in (label, pixels == "drawn")]
    visible = quadrants_shown(number).to(device).expand(count, -1)
    return images, condition(images, visible, split.labels, *flags)


def veiled(images: Tensor, visible: Tensor) -> Tensor:
    """Images to look at, whose hidden pixels have one light grey; `visible` (bool) broadcasts to their shape."""
    return torch.where(visible, images, VEIL)


def shares(split: Split, images: int | None) -> Split:
    """So many images of a split, always the same ones, with each class in its share; all images for None."""
    if images is None or images >= len(split):
        return split
    by_class = split.labels.argsort(stable=True)
    return split[by_class[torch.arange(images, device=by_class.device) * len(split) // images]]

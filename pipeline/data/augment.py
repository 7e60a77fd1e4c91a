"""Augmentation: copies of training images, each turned, sheared, stretched and shifted by random amounts.

A digit that leans a little more is as likely as the one in the data set. A network that sees such copies overfits the
55,000 training images less. The copies are a little softer than the images, so the last epochs use the images
themselves (train.augment_until).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.splits import SIDE

# Standard deviations at strength 1.
TURN = math.radians(4)
SHEAR = 0.05
STRETCH = 0.03
SHIFT = 0.3 * 2 / SIDE  # 0.3 pixels, as a share of half a picture


def move(images: Tensor, strength: float, source: torch.Generator) -> Tensor:
    """Images (N, 1, 28, 28) uint8, each moved by normally distributed amounts; at strength 0 they don't change.

    The interpolation is bicubic, because bilinear makes digits twice as soft. Pixels from beyond the edge are 0.
    """
    count, device = len(images), images.device
    turn, shear, wide, high, right, down = torch.randn(6, count, generator=source, device=device) * strength
    cosine, sine = (turn * TURN).cos(), (turn * TURN).sin()
    wide, high = 1 + wide * STRETCH, 1 + high * STRETCH
    rows = (wide * cosine, shear * SHEAR - sine, right * SHIFT, sine, high * cosine, down * SHIFT)
    places = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images.float(), places, mode="bicubic", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)

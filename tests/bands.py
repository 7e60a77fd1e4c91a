"""Pictures whose digit is a bright band, and judges whose verdict on them is known."""

import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.measure.judge import Judge, Judges, Reading


class BandJudge(Judge):
    """Reads a digit from the brightest of ten bands; its features are the bands' means, times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def read(self, images: Tensor) -> Reading:
        bands = images.flatten(1)[:, :780].view(-1, 10, 78).mean(-1)
        return Reading(bands * self.scale, bands.argmax(1))


JUDGES = Judges(tolerant=BandJudge(0.5), plain=BandJudge(1))


def banded(per_class: int, seed: int) -> Split:
    """So many pictures of each digit, noisy but for the band."""
    labels = torch.arange(10).repeat(per_class)
    images = torch.randint(0, 120, (len(labels), 784), generator=torch.Generator().manual_seed(seed))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[78 * label : 78 * label + 78] += 130
    return Split(images.view(-1, 1, 28, 28).byte(), labels)

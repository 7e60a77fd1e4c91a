"""Completions by a CVAE that was trained on whole pictures: pseudo-Gibbs sampling (Rezende 2014, appendix F)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.splits import CLASSES, SIDE
from pipeline.model.cvae import CVAE

ROUNDS = 30


@torch.no_grad()
def complete(model: CVAE, image: Tensor, visible: Tensor, digit: int | None, count: int, seed: int) -> Tensor:
    """Completions (count, 28, 28) in [0, 1] of an image (28, 28), visible where `visible` (28, 28) is true.

    Without a digit, each label is tried first, and labels are drawn by how likely the visible part is under each. The
    most likely completions come first.
    """
    source = torch.Generator().manual_seed(seed)
    if digit is None:
        _, costs = _chains(model, image, visible, torch.arange(CLASSES), source)
        labels = torch.multinomial((-costs).softmax(0), count, replacement=True, generator=source)
    else:
        labels = torch.full((count,), digit)
    images, costs = _chains(model, image, visible, labels, source)
    return images[costs.argsort()]


def _chains(
    model: CVAE, image: Tensor, visible: Tensor, labels: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A chain for each label (N,): images (N, 28, 28), and (N,) nats that the visible part and the latents cost.

    Each round encodes the picture, decodes a sample of its latents, and puts what was decoded where nothing is visible.
    """
    z = model.prior().sample(labels, source)
    decoded = model.likelihood.mean(model.decode(z, labels)).view(-1, SIDE, SIDE)
    for _ in range(ROUNDS):
        pictures = torch.where(visible, image, decoded)
        q = model.encode(pictures[:, None], labels)
        z = q.sample(torch.randn(q.mu.shape, generator=source))
        decoded = model.likelihood.mean(model.decode(z, labels)).view(-1, SIDE, SIDE)
    seen = F.binary_cross_entropy(decoded.clamp(1e-6, 1 - 1e-6), image.expand_as(decoded), reduction="none")
    costs = (seen * visible).sum((1, 2)) + model.prior().kl(q, z, labels).sum(1)
    return torch.where(visible, image, decoded).clamp(0, 1), costs

"""What could the rest of this picture be? A CVAE whose condition is what is seen of a picture, and maybe its label.

q(z∣x, seen), a learned prior p(z∣seen) and a decoder of the hidden pixels that sees the visible ones (Sohn 2015). One
model serves all masks: a mask is drawn for each image of a batch. Pixels are black or white throughout.

A condition is a row of numbers for each image: 784 for the pixels (1 ink, −1 blank, 0 hidden), 10 for the label (all 0
where it isn't told) and 1 that says whether pixels are drawn or thresholded. The decoder's outputs for visible
pixels are certain, so that log p(x∣z, seen) is that of the hidden pixels alone, and train.fit, objective.terms and
bound.importance_weighted serve this model as they serve the CVAE.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import likelihood
from pipeline.data import CLASSES, PIXELS, SIDE, Split, to_unit
from pipeline.model import Model, mlp, one_hot
from pipeline.train import View

HALF = SIDE // 2
WIDTH = PIXELS + CLASSES + 1  # of a condition
CERTAIN = 1000.0  # the logit of a visible pixel: log-probability 0 in float32


class Context(NamedTuple):
    """What a Completer makes of its condition: the pixels seen (N, 784), and features of the condition (N, hidden)."""

    seen: Tensor
    features: Tensor


class Completer(Model):
    """The conditional CVAE; without latents (`latent_size` 0) the deterministic network that it is compared with.

    Both read the condition by the same layers and decode by the same layers; z joins in the decoder's first.
    """

    def __init__(self, latent_size: int, hidden: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.reader = mlp(WIDTH, (hidden, hidden))
        self.decoder_in = nn.Linear(hidden, hidden)
        self.decoder = mlp(hidden, (hidden,))
        self.pixels = nn.Linear(hidden, PIXELS)
        self.likelihood = likelihood.build("bernoulli")
        if latent_size:
            self.prior_code = nn.Linear(hidden, 2 * latent_size)
            self.encoder_pixels = nn.Linear(PIXELS, hidden)
            self.encoder_features = nn.Linear(hidden, hidden, bias=False)
            self.encoder = nn.Sequential(*mlp(hidden, (hidden,)), nn.Linear(hidden, 2 * latent_size))
            self.decoder_code = nn.Linear(latent_size, hidden, bias=False)

    def context(self, condition: Tensor) -> Context:
        """A condition (N, 795), read once for encoder, prior and decoder."""
        condition = condition.to(self.dtype)
        return Context(condition[:, :PIXELS], self.reader(condition))

    def prior(self, context: Context) -> tuple[Tensor, Tensor]:
        """p(z∣seen): mu and log_var, each (N, latent)."""
        if not self.latent_size:
            return self._nothing(context)
        mu, log_var = self.prior_code(context.features).to(self.dtype).chunk(2, dim=-1)
        return mu, log_var

    def encode(self, images: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """q(z∣x, seen) of images (N, 1, 28, 28): mu and log_var, each (N, latent), the prior's with what x changes."""
        if not self.latent_size:
            return self._nothing(context)
        x = self.encoder_pixels(images.flatten(1)) + self.encoder_features(context.features)
        step, log_ratio = self.encoder(x.relu()).to(self.dtype).chunk(2, dim=-1)
        mu, log_var = self.prior(context)
        return mu + (log_var / 2).exp() * step, log_var + log_ratio

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """Logits (..., N, 784) for codes z (..., N, latent); those of visible pixels are ±1000."""
        first = self.decoder_in(context.features)
        first = first + self.decoder_code(z) if self.latent_size else first.expand(*z.shape[:-1], -1)
        first = first.flatten(0, -2).relu()
        logits = self.pixels(first + self.decoder(first)).unflatten(0, z.shape[:-1])
        return torch.where(context.seen == 0, logits, CERTAIN * context.seen.to(logits.dtype))

    def _nothing(self, context: Context) -> tuple[Tensor, Tensor]:
        none = context.features.new_zeros(len(context.features), 0, dtype=self.dtype)
        return none, none


def condition(images: Tensor, visible: Tensor, labels: Tensor, known: Tensor, drawn: Tensor) -> Tensor:
    """Conditions (N, 795) of binary images (N, 1, 28, 28) that are seen where visible (N, 784) is true.

    labels: (N,), told where known (N,) is true; drawn: (N,), whether the pixels are Bernoulli draws or thresholded.
    """
    seen = (2 * images.flatten(1) - 1) * visible
    return torch.cat([seen, one_hot(labels, seen.dtype) * known[:, None], drawn[:, None].to(seen.dtype)], dim=1)


def masked(drawn: float, label_shown: float) -> View:
    """The view of training: each image with a mask of its own, its label told with chance `label_shown`, its pixels
    drawn with chance `drawn` or else thresholded at 0.5."""

    def view(part: Split, source: torch.Generator) -> tuple[Tensor, Tensor]:
        chance = torch.rand(2, len(part), generator=source, device=part.images.device)
        grey, is_drawn, known = to_unit(part.images), chance[0] < drawn, chance[1] < label_shown
        threshold = torch.rand(grey.shape, generator=source, device=grey.device)
        images = (grey > torch.where(is_drawn[:, None, None, None], threshold, 0.5)).float()
        visible = draw_masks(len(part), source)
        return images, condition(images, visible, part.labels, known, is_drawn)

    return view


def draw_masks(count: int, source: torch.Generator) -> Tensor:
    """(count, 784) bool, true where visible: of each image quadrants, a half, a block or its surroundings, or cells."""
    device = source.device
    kind = torch.rand(count, 1, 1, generator=source, device=device)
    masks = _quadrants(count, source)
    for share, draw in ((0.45, _halves), (0.35, _blocks), (0.15, _cells)):
        masks = torch.where(kind < share, draw(count, source), masks)
    return masks.flatten(1)


def _quadrants(count: int, source: torch.Generator) -> Tensor:
    """One, two or three quadrants, any of them."""
    order = torch.rand(count, 4, generator=source, device=source.device).argsort(1)
    number = torch.randint(1, 4, (count, 1), generator=source, device=source.device)
    corners = (order < number).view(count, 2, 2)
    return corners.repeat_interleave(HALF, 1).repeat_interleave(HALF, 2)


def _halves(count: int, source: torch.Generator) -> Tensor:
    first = torch.arange(SIDE, device=source.device) < HALF
    halves = torch.stack([side.expand(SIDE, SIDE) for side in (first, ~first, first[:, None], ~first[:, None])])
    return halves[torch.randint(4, (count,), generator=source, device=source.device)]


def _blocks(count: int, source: torch.Generator) -> Tensor:
    """A rectangle of 6 to 22 pixels a side, hidden or alone visible."""
    places = torch.arange(SIDE, device=source.device)
    chance = torch.rand(5, count, 1, generator=source, device=source.device)
    inside = []
    for size, place in (chance[:2], chance[2:4]):
        length = 6 + 17 * size
        start = (SIDE - length) * place
        inside.append((places >= start) & (places < start + length))
    return (inside[0][:, :, None] & inside[1][:, None, :]) ^ (chance[4] < 0.5)[:, :, None]


def _cells(count: int, source: torch.Generator) -> Tensor:
    """Cells of 1, 2, 4 or 7 pixels a side, each visible with the image's own chance."""
    noise = torch.rand(count, SIDE, SIDE, generator=source, device=source.device)
    side = 2 ** torch.randint(4, (count, 1), generator=source, device=source.device)
    side = torch.where(side == 8, 7, side)
    corner = torch.arange(SIDE, device=source.device) // side * side
    rows = noise.gather(1, corner[:, :, None].expand(-1, -1, SIDE))
    return rows.gather(2, corner[:, None, :].expand(-1, SIDE, -1)) < torch.rand(
        count, 1, 1, generator=source, device=source.device
    )


def quadrants_shown(number: int) -> Tensor:
    """(784,) bool: the mask of Sohn 2015 with so many quadrants visible.

    1: the bottom left; 2: the left half; 3: all but the bottom right.
    """
    visible = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    visible[HALF:, :HALF] = True
    if number >= 2:
        visible[:, :HALF] = True
    if number == 3:
        visible[:HALF] = True
    return visible.flatten()


def build(latent_size: int, hidden: int, seed: int) -> Completer:
    """An untrained Completer on the CPU, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Completer(latent_size, hidden)

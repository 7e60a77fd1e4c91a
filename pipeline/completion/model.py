"""What could the rest of this picture be? A CVAE whose condition is what is seen of a picture, and maybe its label.

q(z∣x, seen), a learned prior p(z∣seen) and a decoder of the hidden pixels that sees the visible ones (Sohn 2015). One
model serves all masks: a mask is drawn for each image of a batch. Pixels are black or white throughout.

A condition is a row of numbers for each image: 784 for the pixels (1 ink, −1 blank, 0 hidden), 10 for the label (all 0
where it isn't told) and 1 that says whether pixels are drawn or thresholded. The decoder's outputs for visible
pixels are certain, so that log p(x∣z, seen) is that of the hidden pixels alone, and train.fit, objective.terms and
bound.importance_weighted serve this model as they serve the CVAE.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.params import Number, params
from pipeline.data.splits import CLASSES, PIXELS, SIDE, Split, to_unit
from pipeline.measure.bound import importance_weighted
from pipeline.measure.metrics import mean_distance
from pipeline.model import likelihood
from pipeline.model.cvae import Model, Size
from pipeline.model.gaussian import Normal
from pipeline.model.networks import mlp, one_hot
from pipeline.model.prior import Gaussians, Prior
from pipeline.training.fit import View
from pipeline.training.objective import ELBO

Binarised = Literal["thresholded", "drawn"]

AIM = replace(ELBO, pixels="binary")
SCORING_DRAWS = 100  # k of the bound that completions are ranked by
GUESSES = 10  # completions of which the best counts
VEIL = 0.2  # the grey of what is hidden
LOOKED_AT = 1000  # images whose completions are compared with one another
HALF = SIDE // 2
WIDTH = PIXELS + CLASSES + 1  # of a condition
CERTAIN = 1000.0  # the logit of a visible pixel: log-probability 0 in float32


@params
class CompletionParams:
    """The section `completion` of params.yaml."""

    latent_size: Annotated[int, Field(ge=1, le=PIXELS)]
    hidden: Annotated[Size, Field(description="units of every layer")]
    label_shown: Annotated[
        Number, Field(ge=0, le=1, description="share of training images that the model sees with their label")
    ]
    drawn: Annotated[
        Number,
        Field(ge=0, le=1, description="share whose pixels are Bernoulli draws; the others are thresholded at 0.5"),
    ]
    epochs: Annotated[int, Field(ge=1)]
    network_epochs: Annotated[
        int, Field(ge=1, description="of the deterministic network that the model is compared with")
    ]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0)]
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    ema: Annotated[
        Number | None,
        Field(gt=0, lt=1, description="decay of averaged weights, which are validated and saved; blank: last weights"),
    ]
    seed: Annotated[int, Field(ge=0, le=2**31)]


@params
class EvaluateCompletionParams:
    """The section `evaluate_completion` of params.yaml."""

    images: Annotated[
        int | None, Field(ge=CLASSES, description="test images, each digit in its share; blank: all 10,000")
    ]
    draws: Annotated[int, Field(ge=1, description="k of the importance-weighted bound")]
    seed: Annotated[int, Field(ge=0, le=2**31, description="of drawn pixels, of the bound and of completions")]


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
        self.latent_size, self.hidden = latent_size, hidden
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

    def prior(self) -> Prior:
        """p(z∣seen), a Gaussian for each context."""
        return Gaussians(self.prior_parameters)

    def prior_parameters(self, context: Context) -> Normal:
        """p(z∣seen), (N, latent)."""
        if not self.latent_size:
            return self._nothing(context)
        return Normal(*self.prior_code(context.features).to(self.dtype).chunk(2, dim=-1))

    def encode(self, images: Tensor, context: Context) -> Normal:
        """q(z∣x, seen) of images (N, 1, 28, 28), (N, latent): the prior, changed by what x tells."""
        if not self.latent_size:
            return self._nothing(context)
        x = self.encoder_pixels(images.flatten(1)) + self.encoder_features(context.features)
        step, log_ratio = self.encoder(x.relu()).to(self.dtype).chunk(2, dim=-1)
        p = self.prior_parameters(context)
        return Normal(p.sample(step), p.log_var + log_ratio)

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """Logits (..., N, 784) for codes z (..., N, latent); those of visible pixels are ±1000."""
        logits = self.pixels(self.decode_features(z, context))
        return torch.where(context.seen == 0, logits, CERTAIN * context.seen.to(logits.dtype))

    def decode_features(self, z: Tensor, context: Context) -> Tensor:
        """What all pixels' logits are made of, (..., N, hidden); what the condition adds is the same for all draws."""
        first = self.decoder_in(context.features)
        first = first + self.decoder_code(z) if self.latent_size else first.expand(*z.shape[:-1], -1)
        first = first.flatten(0, -2).relu()
        return (first + self.decoder(first)).unflatten(0, z.shape[:-1])

    def _nothing(self, context: Context) -> Normal:
        none = context.features.new_zeros(len(context.features), 0, dtype=self.dtype)
        return Normal(none, none)


class HiddenAlone(Model):
    """A Completer whose outputs are those of the hidden pixels (784,) bool alone, where every condition hides the same.

    The same bound for fewer products: of three visible quadrants half the time, of one four fifths.
    """

    def __init__(self, whole: Completer, hidden: Tensor) -> None:
        super().__init__()
        self.whole, self.latent_size = whole, whole.latent_size
        self.weight, self.bias = whole.pixels.weight[hidden], whole.pixels.bias[hidden]
        self.likelihood = BinaryPixels(hidden)

    def context(self, condition: Tensor) -> Context:
        return self.whole.context(condition)

    def prior(self) -> Prior:
        return self.whole.prior()

    def encode(self, images: Tensor, context: Context) -> Normal:
        return self.whole.encode(images, context)

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """Logits (..., N, number hidden)."""
        return F.linear(self.whole.decode_features(z, context), self.weight, self.bias)


class BinaryPixels(likelihood.Bernoulli):
    """The Bernoulli likelihood of those of the 784 pixels where `where` (784,) bool is true."""

    def __init__(self, where: Tensor) -> None:
        super().__init__()
        self.where = where

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        return super().log_prob(outputs, pixels[..., self.where])


def log_likelihood(model: Completer, images: Tensor, condition: Tensor, k: int, source: torch.Generator) -> Tensor:
    """The importance-weighted bound on log p(hidden∣seen), (N,) nats, of binary images whose conditions all hide the
    same pixels: bound.importance_weighted's figure."""
    return importance_weighted(HiddenAlone(model, condition[0, :PIXELS] == 0), images, condition, k, source)


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
    """(count, 784) bool, true where visible, in this order: quadrants, a half, a block or all around it, cells.

    Rows come shuffled, so that the kinds need not be; drawing each for its own rows alone takes a third of the time.
    """
    kinds = ((_quadrants, 0.55), (_halves, 0.65), (_blocks, 0.85), (_cells, 1.0))  # up to which share of the rows
    masks, done = [], 0
    for draw, share in kinds:
        end = round(share * count)
        masks.append(draw(end - done, source))
        done = end
    return torch.cat(masks).flatten(1)


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


def named_masks() -> dict[str, Tensor]:
    """What is visible, (28, 28) bool, under masks named by what they hide: halves, a quadrant, all but a quadrant."""
    first = torch.arange(SIDE) < HALF
    top, left = first[:, None].expand(SIDE, SIDE), first.expand(SIDE, SIDE)
    halves = {"top": top, "bottom": ~top, "left": left, "right": ~left}
    quadrants = {f"{a}-{b}": halves[a] & halves[b] for a in ("top", "bottom") for b in ("left", "right")}
    hidden = halves | quadrants
    return {name: ~mask for name, mask in hidden.items()} | {f"all-but-{name}": quadrants[name] for name in quadrants}


def random_block(seed: int) -> Tensor:
    """What is visible, (28, 28) bool, around a hidden rectangle of 6 to 22 pixels a side that `seed` chooses."""
    return ~_rectangles(1, torch.Generator().manual_seed(seed))[0]


def build(latent_size: int, hidden: int, seed: int) -> Completer:
    """An untrained Completer on the CPU, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Completer(latent_size, hidden)


# What the rest could be


class Completions(NamedTuple):
    """Ways to complete one picture, the likeliest first.

    images: (count, 28, 28) in [0, 1], the visible pixels as they are and the expected hidden ones; log_likelihood:
    (count,) nats, the bound on log p(hidden∣seen) of each, its hidden pixels thresholded.
    """

    images: Tensor
    log_likelihood: Tensor


@torch.no_grad()
def guesses(model: Completer, condition: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Expected images (count, N, 784) for conditions (N, 795): each of `count` from a z of its own from the prior."""
    context = model.context(condition)
    prior = model.prior()
    z = torch.stack([prior.sample(context, source) for _ in range(count)])
    return model.likelihood.mean(model.decode(z, context))


def complete(
    model: Completer, image: Tensor, visible: Tensor, digit: int | None, count: int, seed: int = 0
) -> Completions:
    """Completes a thresholded image (28, 28) that is seen where `visible` (28, 28) is true, as a `digit` if told."""
    source = torch.Generator(image.device).manual_seed(seed)
    no = torch.zeros(1, dtype=torch.bool, device=image.device)
    label, known = torch.full((1,), digit or 0, device=image.device), no if digit is None else ~no
    given = condition(image.view(1, 1, SIDE, SIDE), visible.view(1, -1), label, known, no)
    images = guesses(model, given, count, source).view(count, 1, SIDE, SIDE)
    scores = log_likelihood(model, (images >= 0.5).float(), given.expand(count, -1), SCORING_DRAWS, source)
    order = scores.argsort(descending=True)
    return Completions(images[order].squeeze(1), scores[order])


def seen_part(images: Tensor, visible: Tensor) -> Tensor:
    """Images with what is hidden in one light grey, to look at; any shapes that agree."""
    return torch.where(visible, images, VEIL)


# How good completions are


class Reader(Protocol):
    """A judge: what `labels` (N,) it reads in images (N, 1, 28, 28)."""

    def __call__(self, images: Tensor) -> Any: ...


def published_view(split: Split, pixels: Binarised, number: int, label: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) and conditions (N, 795) of the published test: `number` quadrants seen, one fixed draw."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    grey = to_unit(split.images)
    images = (grey >= 0.5).float() if pixels == "thresholded" else torch.bernoulli(grey, generator=source)
    count, device = len(split), grey.device
    flags = [torch.full((count,), flag, device=device) for flag in (label, pixels == "drawn")]
    visible = quadrants_shown(number).to(device).expand(count, -1)
    return images, condition(images, visible, split.labels, *flags)


def shares(split: Split, images: int | None) -> Split:
    """So many images of a split, every class in its share of them, always the same ones; all of them where it has no
    more, or for None."""
    if images is None or images >= len(split):
        return split
    by_class = split.labels.argsort(stable=True)
    return split[by_class[torch.arange(images, device=by_class.device) * len(split) // images]]


class Estimate(NamedTuple):
    """A mean over images, and its standard error."""

    mean: float
    error: float


def negative_log_likelihood(
    model: Completer, split: Split, pixels: Binarised, number: int, label: bool, draws: int, seed: int
) -> Estimate:
    """−log p(hidden∣seen) in nats an image, by the bound with k = `draws`; the network's is exact."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(split, pixels, number, label, seed)
    bound = log_likelihood(model, images, given, draws if model.latent_size else 1, source).double()
    return Estimate(-float(bound.mean()), float(bound.std()) / len(bound) ** 0.5)


def evaluate(
    completer: Completer,
    network: Completer,
    judge: Reader,
    split: Split,
    params: EvaluateCompletionParams,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """All figures, as reports/completion.json holds them; `show` hears of each likelihood as it is there."""
    some, seed = shares(split, params.images), params.seed
    likelihoods: dict[str, dict[str, dict[str, float]]] = {}
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for pixels in ("thresholded", "drawn"):
        for number in ("1", "2", "3"):
            found = dict(_likelihoods(completer, network, some, pixels, int(number), params))
            likelihoods.setdefault(pixels, {})[number] = {name: estimate.mean for name, estimate in found.items()}
            errors.setdefault(pixels, {})[number] = {name: estimate.error for name, estimate in found.items()}
            words = ", ".join(f"{name} {estimate.mean:.2f} ± {estimate.error:.2f}" for name, estimate in found.items())
            show(f"{pixels}, {number} quadrants: {words}")
    return {
        **likelihoods,
        "squared_error": {str(number): squared_errors(completer, network, some, number, seed) for number in (1, 2, 3)},
        "diversity": {str(number): diversity(completer, judge, some, number, seed) for number in (1, 2, 3)},
        "standard_error": errors,
        "protocol": protocol(len(some), len(split), params),
    }


def _likelihoods(
    completer: Completer,
    network: Completer,
    split: Split,
    pixels: Binarised,
    number: int,
    params: EvaluateCompletionParams,
) -> Iterator[tuple[str, Estimate]]:
    for name, model, label in (
        ("cvae", completer, False),
        ("cvae_label", completer, True),
        ("network", network, False),
    ):
        yield name, negative_log_likelihood(model, split, pixels, number, label, params.draws, params.seed)


def protocol(images: int, of: int, params: EvaluateCompletionParams) -> dict[str, Any]:
    """How the figures are measured, in words."""
    return {
        "split": "test",
        "images": images,
        "of": of,
        "unit": "nats per image, -log p(hidden | visible), summed over the hidden pixels",
        "thresholded": "pixel = grey value >= 0.5",
        "drawn": "one fixed Bernoulli draw of each pixel with its grey value as chance",
        "model": "one model for all masks, both kinds of pixels (it is told which), with and without the label",
        "visible": {"1": "bottom left", "2": "left half", "3": "all but bottom right"},
        "cvae": f"importance-weighted bound with k = {params.draws} draws from q",
        "cvae_label": "the same, the label told",
        "network": "exact: the same layers without z, the label not told",
        "squared_error": f"thresholded, expected hidden pixels; the best of {GUESSES} is the one nearest the truth",
        "diversity": f"{GUESSES} completions of each of {min(images, LOOKED_AT):,} images, thresholded",
        "draws": params.draws,
        "seed": params.seed,
    }


def squared_errors(completer: Completer, network: Completer, split: Split, number: int, seed: int) -> dict[str, float]:
    """Squared error over an image's hidden pixels, thresholded: of the network's prediction, of one completion, and of
    the best of ten, which the truth chooses."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(split, "thresholded", number, label=False, seed=seed)
    total = torch.zeros(3, dtype=torch.float64, device=images.device)
    for x, row in zip(images.flatten(1).split(500), given.split(500), strict=True):
        several = (guesses(completer, row, GUESSES, source) - x).square().sum(-1)
        alone = (guesses(network, row, 1, source) - x).square().sum(-1)
        total += torch.stack([alone.sum(), several[0].sum(), several.amin(0).sum()])
    names = ("network", "cvae", f"best_of_{GUESSES}")
    return dict(zip(names, (total / len(split)).tolist(), strict=True))


def diversity(completer: Completer, judge: Reader, split: Split, number: int, seed: int) -> dict[str, float]:
    """How far ten completions of one picture differ, means over up to 1,000 images, every class in its share.

    distance: mean pairwise distance over the hidden pixels ÷ that of the real images over the same pixels, so that 1
    is as if nothing were seen; digits: how many different digits the judge reads among the ten.
    """
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(shares(split, LOOKED_AT), "thresholded", number, label=False, seed=seed)
    hidden = given[0, :PIXELS] == 0
    several = torch.cat([guesses(completer, row, GUESSES, source) for row in given.split(500)], dim=1)
    distances = [mean_distance(rows[:, hidden]) for rows in several.unbind(1)]
    read = judge(several.reshape(-1, 1, SIDE, SIDE)).labels.view(GUESSES, -1)
    digits = (read[None] == torch.arange(CLASSES, device=read.device)[:, None, None]).any(1).sum(0)
    return {
        "distance": sum(distances) / len(distances) / mean_distance(images.flatten(1)[:, hidden]),
        "digits": float(digits.float().mean()),
    }

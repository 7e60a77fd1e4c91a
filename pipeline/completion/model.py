"""A CVAE of the hidden pixels, whose condition is what is visible of a picture and perhaps its label (Sohn 2015).

q(z∣x, visible), a learned prior p(z∣visible), and a decoder of the hidden pixels that sees the visible ones. One model
serves all masks: each image of a batch has its own. All pixels are 0 or 1.

The decoder's outputs for visible pixels are certain, so log p(x∣z, visible) is that of the hidden pixels alone.
Therefore training.fit, objective.terms and bound.importance_weighted work for this model as for the CVAE.
"""

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.params import Number, params
from pipeline.completion.views import WIDTH, condition
from pipeline.data.splits import PIXELS, SIDE
from pipeline.measure.bound import Bound, importance_weighted
from pipeline.model import likelihood
from pipeline.model.cvae import Model, Size
from pipeline.model.gaussian import Normal
from pipeline.model.networks import mlp
from pipeline.model.prior import Gaussians, Prior
from pipeline.training.objective import ELBO

AIM = replace(ELBO, pixels="binary")
SCORING_DRAWS = 100  # k of the bound by which completions are ranked
CERTAIN = 1000.0  # the logit of a visible pixel: log-probability 0 in float32


@params
class CompletionParams:
    """The section `completion` of params.yaml."""

    latent_size: Annotated[int, Field(ge=1, le=PIXELS)]
    hidden: Size
    """units of every layer"""
    label_shown: Annotated[Number, Field(ge=0, le=1)]
    """share of training images that the model sees with their label"""
    drawn: Annotated[Number, Field(ge=0, le=1)]
    """share whose pixels are Bernoulli draws; the others are thresholded at 0.5"""
    epochs: Annotated[int, Field(ge=1)]
    network_epochs: Annotated[int, Field(ge=1)]
    """of the deterministic network that the model is compared with"""
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[Number, Field(gt=0)]
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    ema: Annotated[Number | None, Field(gt=0, lt=1)]
    """decay of averaged weights, which are validated and saved; blank: last weights"""
    seed: Annotated[int, Field(ge=0, le=2**31)]


class Context(NamedTuple):
    """What the parts of a Completer read: the visible pixels (N, 784), and features of the condition (N, hidden)."""

    seen: Tensor
    features: Tensor


class Completer(Model):
    """The conditional VAE; with `latent_size` 0, the deterministic network that it is compared with.

    The encoder, the prior and the decoder share the layers that read the condition. z enters the decoder's first layer.
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
            self.prior_latents = nn.Linear(hidden, 2 * latent_size)
            self.encoder_pixels = nn.Linear(PIXELS, hidden)
            self.encoder_features = nn.Linear(hidden, hidden, bias=False)
            self.encoder = nn.Sequential(*mlp(hidden, (hidden,)), nn.Linear(hidden, 2 * latent_size))
            self.decoder_latents = nn.Linear(latent_size, hidden, bias=False)

    def context(self, condition: Tensor) -> Context:
        """Reads conditions (N, 795) once for encoder, prior and decoder."""
        condition = condition.to(self.dtype)
        return Context(condition[:, :PIXELS], self.reader(condition))

    def prior(self) -> Prior:
        """p(z∣visible), a Gaussian for each context."""
        return Gaussians(self.prior_parameters)

    def prior_parameters(self, context: Context) -> Normal:
        """p(z∣visible), (N, latent)."""
        if not self.latent_size:
            return self._without_latents(context)
        return Normal(*self.prior_latents(context.features).to(self.dtype).chunk(2, dim=-1))

    def encode(self, images: Tensor, context: Context) -> Normal:
        """q(z∣x, visible) of images (N, 1, 28, 28), (N, latent), as a change of the prior."""
        if not self.latent_size:
            return self._without_latents(context)
        x = self.encoder_pixels(images.flatten(1)) + self.encoder_features(context.features)
        step, log_ratio = self.encoder(x.relu()).to(self.dtype).chunk(2, dim=-1)
        p = self.prior_parameters(context)
        return Normal(p.sample(step), p.log_var + log_ratio)

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """Logits (..., N, 784) for latents z (..., N, latent); those of visible pixels are ±1000."""
        logits = self.pixels(self.decode_features(z, context))
        return torch.where(context.seen == 0, logits, CERTAIN * context.seen.to(logits.dtype))

    def decode_features(self, z: Tensor, context: Context) -> Tensor:
        """The last hidden layer (..., N, hidden). The condition's part is computed once for all samples of z."""
        first = self.decoder_in(context.features)
        first = first + self.decoder_latents(z) if self.latent_size else first.expand(*z.shape[:-1], -1)
        first = first.flatten(0, -2).relu()
        return (first + self.decoder(first)).unflatten(0, z.shape[:-1])

    def _without_latents(self, context: Context) -> Normal:
        none = context.features.new_zeros(len(context.features), 0, dtype=self.dtype)
        return Normal(none, none)


class HiddenPixels(likelihood.Bernoulli):
    """The Bernoulli likelihood of those of the 784 pixels where `hidden` (784,) is true."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        return super().log_prob(outputs, pixels[..., self.hidden])


class OneMask(Model):
    """A Completer that decodes the hidden pixels (784,) bool alone, for conditions that all hide the same pixels.

    The same bound in less time: half of it with three visible quadrants, four fifths with one.
    """

    def __init__(self, whole: Completer, hidden: Tensor) -> None:
        super().__init__()
        self.whole, self.latent_size = whole, whole.latent_size
        self.weight, self.bias = whole.pixels.weight[hidden], whole.pixels.bias[hidden]
        self.likelihood = HiddenPixels(hidden)

    def context(self, condition: Tensor) -> Context:
        return self.whole.context(condition)

    def prior(self) -> Prior:
        return self.whole.prior()

    def encode(self, images: Tensor, context: Context) -> Normal:
        return self.whole.encode(images, context)

    def decode(self, z: Tensor, context: Context) -> Tensor:
        """Logits (..., N, number of hidden pixels)."""
        return F.linear(self.whole.decode_features(z, context), self.weight, self.bias)


def build(latent_size: int, hidden: int, seed: int) -> Completer:
    """An untrained Completer on the CPU, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Completer(latent_size, hidden)


def log_likelihood(model: Completer, images: Tensor, condition: Tensor, k: int, source: torch.Generator) -> Bound:
    """The importance-weighted bound on log p(hidden∣visible). All conditions must hide the same pixels."""
    return importance_weighted(OneMask(model, condition[0, :PIXELS] == 0), images, condition, k, source, AIM.kl_weight)


@torch.no_grad()
def sample(model: Completer, condition: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Expected images (count, N, 784) for conditions (N, 795), each from its own sample of the prior."""
    context = model.context(condition)
    prior = model.prior()
    z = torch.stack([prior.sample(context, source) for _ in range(count)])
    return model.likelihood.mean(model.decode(z, context))


class Completions(NamedTuple):
    """Completions of one picture, the most likely first.

    images: (count, 28, 28) in [0, 1]: the visible pixels as they are, and expected hidden ones. log_likelihood:
    (count,) nats, the bound on log p(hidden∣visible) of each with its hidden pixels thresholded.
    """

    images: Tensor
    log_likelihood: Tensor


def complete(
    model: Completer, image: Tensor, visible: Tensor, digit: int | None, count: int, seed: int = 0
) -> Completions:
    """Completes a thresholded image (28, 28), visible where `visible` (28, 28) is true, to a `digit` if given."""
    source = torch.Generator(image.device).manual_seed(seed)
    no = torch.zeros(1, dtype=torch.bool, device=image.device)
    label, known = torch.full((1,), digit or 0, device=image.device), no if digit is None else ~no
    given = condition(image.view(1, 1, SIDE, SIDE), visible.view(1, -1), label, known, no)
    images = sample(model, given, count, source).view(count, 1, SIDE, SIDE)
    binary, each = (images >= 0.5).float(), given.expand(count, -1)
    scores = log_likelihood(model, binary, each, SCORING_DRAWS, source).log_likelihood
    order = scores.argsort(descending=True)
    return Completions(images[order].squeeze(1), scores[order])

"""What is measured after each epoch: both terms on unseen images, and the σ that a likelihood takes from its errors."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.data.splits import PIXELS, Pixels, Split, as_pixels, to_unit
from pipeline.model.cvae import Model
from pipeline.model.likelihood import SigmaOptimal
from pipeline.training import objective

BATCH = 1000
CALIBRATION = 10_000  # training images that sigma_optimal takes its σ from: a small part of an epoch's time

# How a part of a split is shown to a model: images (N, 1, 28, 28), in [0, 1] or as they are stored, and the condition
# of each, (N, ...). Randomness comes from the generator alone.
View = Callable[[Split, torch.Generator], tuple[Tensor, Tensor]]


def labelled(pixels: Pixels) -> View:
    """The CVAE's view: the condition is the label. Grey images stay uint8; the step converts them."""
    if pixels == "grey":
        return lambda part, _: (part.images, part.labels)
    return lambda part, source: (as_pixels(part.images, pixels, source), part.labels)


@torch.no_grad()
def calibrate(model: Model, train: Split, view: View) -> None:
    """Gives sigma_optimal the one σ that all images are measured with. Other likelihoods stay as they are.

    From training images alone, with one draw of z each; the same draws at every call.
    """
    if not isinstance(model.likelihood, SigmaOptimal):
        return
    seen = train[:CALIBRATION]
    total = torch.zeros((), dtype=torch.float64, device=seen.images.device)
    for images, condition, noise in shown(seen, model, view):
        x, y = to_unit(images).to(noise.dtype), model.context(condition)
        mean = model.decode(model.encode(x, y).sample(noise), y).sigmoid()
        total += (x.flatten(1) - mean).square().sum()
    model.likelihood.calibrate((total / (len(seen) * PIXELS)).to(model.dtype))


@torch.no_grad()
def validate(model: Model, split: Split, view: View) -> dict[str, float]:
    """reconstruction, kl and elbo, in nats per image: means over a split; the same at every call.

    With one draw of z per image, in the weights' own precision.
    """
    total = torch.zeros(2, dtype=torch.float64, device=split.images.device)
    for batch in shown(split, model, view):
        terms = objective.terms(model, *batch)
        total += torch.stack([terms.reconstruction.sum(), terms.kl.sum()])
    return with_elbo(*(total / len(split)).tolist())


def with_elbo(reconstruction: float, kl: float) -> dict[str, float]:
    """The figures that `validate` gives."""
    return {"reconstruction": reconstruction, "kl": kl, "elbo": -(reconstruction + kl)}


def shown(split: Split, model: Model, view: View) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A split in order, in batches of images, conditions and noise (B, latent); the same at every call."""
    device = split.images.device
    source = torch.Generator(device).manual_seed(0)
    for begin in range(0, len(split), BATCH):
        images, condition = view(split[begin : begin + BATCH], source)
        noise = torch.randn(len(images), model.latent_size, generator=source, device=device, dtype=model.dtype)
        yield images, condition, noise

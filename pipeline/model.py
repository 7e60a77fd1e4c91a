"""The conditional VAE: an encoder q(z∣x,y), a decoder p(x∣z,y) that hears the label, a prior p(z∣y)."""

import itertools
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import likelihood
from pipeline.data import CLASSES, PIXELS
from pipeline.params import Range

Conditioning = Literal["sum", "mean", "product", "concat"]
Size = Annotated[int, Range(least=1, most=8192)]


@dataclass(frozen=True)
class ModelParams:
    """A preset, and what to change in it: every other value may be null, which is the preset's."""

    preset: Literal["article", "strong"]
    latent_size: Annotated[int, Range(least=1, most=PIXELS)] | None
    encoder_hidden: tuple[Size, ...] | None
    decoder_hidden: tuple[Size, ...] | None
    conditioning: Conditioning | None
    encoder_sees_label: bool | None


@dataclass(frozen=True)
class Architecture:
    """Everything that the shapes of a CVAE depend on."""

    latent_size: int
    encoder_hidden: tuple[int, ...]
    decoder_hidden: tuple[int, ...]
    conditioning: Conditioning
    encoder_sees_label: bool


PRESETS = {
    # The source article's model: 784 → 256 → 8 → (8, 8), the label summed onto the code, the encoder blind to it.
    "article": Architecture(8, (256, 8), (256,), "sum", encoder_sees_label=False),
    "strong": Architecture(16, (512, 512), (512, 512), "concat", encoder_sees_label=True),
}


def resolve(params: ModelParams) -> Architecture:
    """The preset with what `params` changes in it."""
    preset = PRESETS[params.preset]
    chosen = {field.name: getattr(params, field.name) for field in fields(Architecture)}
    return Architecture(**{name: getattr(preset, name) if value is None else value for name, value in chosen.items()})


class Condition(nn.Module):
    """How the decoder hears the label.

    `sum`, `mean` and `product` project the one-hot label by Linear + ReLU to the latent size and combine it with z
    element by element, as the source article does; `concat` puts the one-hot label beside z.
    """

    def __init__(self, kind: Conditioning, latent_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = latent_size + (CLASSES if kind == "concat" else 0)
        self.project = None if kind == "concat" else nn.Sequential(nn.Linear(CLASSES, latent_size), nn.ReLU())

    def forward(self, z: Tensor, one_hot: Tensor) -> Tensor:
        """z (..., N, latent) and one-hot labels (N, 10) to (..., N, width)."""
        if self.project is None:
            return torch.cat([z, one_hot.expand(*z.shape[:-1], CLASSES)], dim=-1)
        label = self.project(one_hot)
        if self.kind == "sum":
            return z + label
        if self.kind == "mean":
            return (z + label) / 2
        return z * label


class Model(nn.Module):
    """What training and checkpoints ask of a model, beside objective.Autoencoder's functions."""

    latent_size: int
    likelihood: likelihood.Bernoulli

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.parameters()).dtype

    def context(self, condition: Tensor) -> Any:
        """What encode, decode and prior are told of the condition."""
        return condition

    def encode(self, images: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """q(z∣x, condition) of images (N, 1, 28, 28): mu and log_var, each (N, latent)."""
        raise NotImplementedError

    def decode(self, z: Tensor, context: Any) -> Tensor:
        """The likelihood's outputs (..., N, 784) for codes z (..., N, latent)."""
        raise NotImplementedError

    def prior(self, context: Any) -> tuple[Tensor, Tensor]:
        """p(z∣condition): mu and log_var, each (N, latent)."""
        raise NotImplementedError


class CVAE(Model):
    """An MLP encoder and decoder around a Gaussian latent code; the condition is the label."""

    def __init__(self, architecture: Architecture, likelihood_name: likelihood.Name = "bernoulli") -> None:
        super().__init__()
        self.architecture = architecture
        self.latent_size = architecture.latent_size
        self.condition = Condition(architecture.conditioning, self.latent_size)
        width = PIXELS + (CLASSES if architecture.encoder_sees_label else 0)
        self.encoder = mlp(width, architecture.encoder_hidden)
        code = (width, *architecture.encoder_hidden)[-1]
        self.mu = nn.Linear(code, self.latent_size)
        self.log_var = nn.Linear(code, self.latent_size)
        self.decoder = mlp(self.condition.width, architecture.decoder_hidden)
        self.pixels = nn.Linear((self.condition.width, *architecture.decoder_hidden)[-1], PIXELS)
        self.likelihood = likelihood.build(likelihood_name)

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """q(z∣x,y) of images (N, 1, 28, 28) with labels (N,): mu and log_var, each (N, latent)."""
        x = images.flatten(1)
        if self.architecture.encoder_sees_label:
            x = torch.cat([x, one_hot(labels, x.dtype)], dim=-1)
        code = self.encoder(x)
        return self.mu(code), self.log_var(code)

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """The likelihood's outputs (..., N, 784) for codes z (..., N, latent) and labels (N,)."""
        joined = self.condition(z, one_hot(labels, z.dtype))
        # Two dimensions, not three: torch multiplies a (draws · N, latent) matrix in 60 % of the time.
        return self.pixels(self.decoder(joined.flatten(0, -2))).unflatten(0, joined.shape[:-1])

    def prior(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """p(z∣y) of labels (N,): mu and log_var, each (N, latent). The same N(0, I) for every label."""
        zero = self.mu.weight.new_zeros(len(labels), self.latent_size)
        return zero, zero


def mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear + ReLU for each hidden size."""
    pairs = itertools.pairwise((width, *hidden))
    return nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,) labels in 0…9 as (N, 10); mixtures of labels (N, 10) as they are."""
    return (labels if labels.ndim == 2 else F.one_hot(labels, CLASSES)).to(dtype)


def build(architecture: Architecture, seed: int, likelihood_name: likelihood.Name = "bernoulli") -> CVAE:
    """An untrained CVAE on the CPU, whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CVAE(architecture, likelihood_name)

"""The conditional VAE: an encoder q(z∣x,y), a decoder p(x∣z,y) that hears the label, a prior p(z∣y)."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.params import Neutral, params
from pipeline.data.splits import CLASSES, PIXELS, SIDE
from pipeline.model import likelihood
from pipeline.model import prior as priors
from pipeline.model.gaussian import Normal

Kind = Literal["mlp", "conv", "resnet"]
Init = Literal["dark", "he", "torch"]
Conditioning = Literal["sum", "mean", "product", "concat"]
Size = Annotated[int, Field(ge=1, le=8192)]
DARK = -2.0  # the logit of MNIST's mean grey value, 0.13
CACHED = 512  # codes whose way through transposed convolutions stays in a processor's cache
MOST_SCALES = 2  # 28 → 14 → 7, which no further halving divides


@params
class ModelParams:
    """The section `model` of params.yaml: a preset, and what to change in it. None: as in the preset."""

    preset: Annotated[
        Literal["article", "strong"], Field(description="strong | article; it sets what is left blank below")
    ]
    architecture: Annotated[
        Kind | None, Field(description="mlp (both presets) | conv | resnet (conv with residual blocks)")
    ]
    latent_size: Annotated[int | None, Field(ge=1, le=PIXELS, description="number of latent dimensions")]
    encoder_hidden: Annotated[
        tuple[Size, ...] | None,
        Field(description="sizes of the dense layers, such as [512, 512]; after convolutions [256]"),
    ]
    decoder_hidden: Annotated[tuple[Size, ...] | None, Field(description="the same for the decoder")]
    channels: Annotated[
        tuple[Size, ...] | None, Field(description="of conv and resnet, at 14 × 14 and 7 × 7 pixels, such as [32, 64]")
    ]
    blocks: Annotated[
        int | None, Field(ge=0, le=64, description="residual blocks at each of these sizes; resnet has 1, conv none")
    ]
    conditioning: Annotated[
        Conditioning | None, Field(description="how the label enters the decoder: sum | mean | product | concat")
    ]
    encoder_sees_label: Annotated[bool | None, Field(description="true | false")]
    init: Annotated[
        Init | None,
        Field(description="first weights: torch (both presets) | he (conv and resnet) | dark (he, with dark pixels)"),
    ]
    prior: Annotated[
        priors.Name,
        Field(description="standard: N(0, I) | class: a learned Gaussian per label | mixture: a VampPrior per label"),
    ]
    prior_components: Annotated[int, Field(ge=1, le=1000, description="pseudo-inputs per label, of mixture")]

    def __post_init__(self) -> None:
        kind = self.architecture or PRESETS[self.preset].architecture
        if kind == "mlp" and (self.channels or self.blocks):
            key = "channels" if self.channels else "blocks"
            value = list(self.channels) if self.channels else self.blocks
            raise ValueError(f"{key} must be null where architecture is mlp, not {value}")
        if kind != "mlp" and self.channels is not None and not 1 <= len(self.channels) <= MOST_SCALES:
            raise ValueError(f"channels must be one or two sizes (for 14 × 14 and 7 × 7), not {list(self.channels)}")
        if (kind == "resnet" and self.blocks == 0) or (kind == "conv" and self.blocks):
            rule = "at least 1 where architecture is resnet" if kind == "resnet" else "null or 0 (resnet has blocks)"
            raise ValueError(f"blocks must be {rule}, not {self.blocks}")


@dataclass(frozen=True)
class Architecture:
    """All that an untrained CVAE is: its shapes, and what its first weights are drawn from.

    encoder_hidden, decoder_hidden: the dense layers. channels, blocks: of the convolutions, at 14 × 14 pixels and at
    7 × 7; none of either in an MLP. init: `initialise`d (`dark`: and `darken`ed), or torch's own.
    """

    latent_size: int
    encoder_hidden: tuple[int, ...]
    decoder_hidden: tuple[int, ...]
    conditioning: Conditioning
    encoder_sees_label: bool
    architecture: Kind = "mlp"
    channels: tuple[int, ...] = ()
    blocks: int = 0
    prior: priors.Name = "standard"
    prior_components: int = 1
    init: Annotated[Init, Neutral("torch")] = "torch"


PRESETS = {
    # The source article's model: 784 → 256 → 8 → (8, 8), the label summed onto the code, the encoder blind to it.
    "article": Architecture(8, (256, 8), (256,), "sum", encoder_sees_label=False),
    "strong": Architecture(16, (512, 512), (512, 512), "concat", encoder_sees_label=True),
}
# What a preset's sizes become where its MLP gives way to convolutions.
CONVOLUTIONS = {
    "conv": {"encoder_hidden": (256,), "decoder_hidden": (256,), "channels": (32, 64), "blocks": 0, "init": "he"},
    "resnet": {"encoder_hidden": (256,), "decoder_hidden": (256,), "channels": (32, 64), "blocks": 1, "init": "he"},
}


def resolve(params: ModelParams) -> Architecture:
    """The preset with what `params` changes in it."""
    preset = PRESETS[params.preset]
    if params.architecture in CONVOLUTIONS:
        preset = replace(preset, architecture=params.architecture, **CONVOLUTIONS[params.architecture])  # type: ignore[arg-type]
    chosen = {field.name: getattr(params, field.name) for field in fields(Architecture)}
    if params.prior != "mixture":
        chosen["prior_components"] = 1
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
    likelihood: likelihood.Likelihood

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.parameters()).dtype

    def context(self, condition: Tensor) -> Any:
        """What encode, decode and the prior's methods are told of the condition."""
        return condition

    def encode(self, images: Tensor, context: Any) -> Normal:
        """q(z∣x, condition) of images (N, 1, 28, 28), (N, latent)."""
        raise NotImplementedError

    def decode(self, z: Tensor, context: Any) -> Tensor:
        """The likelihood's outputs (..., N, 784) for codes z (..., N, latent)."""
        raise NotImplementedError

    def decoder_of_neighbours(self) -> Callable[[Tensor, Any], Tensor] | None:
        """A faster `decode` of many codes (N, latent) of one row of context, where there is one."""
        return None

    def prior(self) -> priors.Prior:
        """p(z∣condition) as the weights have it now."""
        raise NotImplementedError


class Neighbours:
    """A dense decoder, Linear + ReLU and a last Linear, for many inputs that lie close together.

    A unit that is on for all of them is linear there, and one that is off is nothing: only those that turn need the
    whole product of the next layer. For those that are on, the next layer can read what they read, by the product of
    both weights; it does where that costs fewer multiplications. Equal to the layers one after another, up to the
    order of the sums. The weights are those of the moment it is built.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        # (in, out): the rows of the units that count are then gathered as whole rows.
        self.weights = [layer.weight.detach().T.contiguous() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) to (N, out)."""
        read, weight, bias = x.T.contiguous(), self.weights[0], self.biases[0]  # what a layer reads: (in, N)
        for after, after_bias in zip(self.weights[1:], self.biases[1:], strict=True):
            units = torch.addmm(bias[:, None], weight.T, read)
            counts, is_on = ~(units.amax(1) <= 0), units.amin(1) >= 0  # NaN counts
            on, width, inputs = is_on.nonzero().squeeze(1), *read.shape
            if width * (inputs + len(on)) < inputs * len(on):
                turning, through = (counts & ~is_on).nonzero().squeeze(1), after.index_select(0, on)
                read = torch.cat([units.index_select(0, turning).relu_(), read])
                weight = torch.cat([after.index_select(0, turning), weight.index_select(1, on) @ through])
                bias = after_bias + bias[on] @ through
            else:
                rows = counts.nonzero().squeeze(1)
                read, weight, bias = units.index_select(0, rows).relu_(), after.index_select(0, rows), after_bias
        return torch.addmm(bias, read.T, weight)


class CVAE(Model):
    """An encoder and a decoder, dense or convolutional, around a Gaussian latent code; the condition is the label."""

    def __init__(
        self, architecture: Architecture, likelihood_name: likelihood.Name = "bernoulli", sigma: float | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.latent_size = architecture.latent_size
        self.condition = Condition(architecture.conditioning, self.latent_size)
        labels = CLASSES if architecture.encoder_sees_label else 0
        hidden, channels, blocks = architecture.encoder_hidden, architecture.channels, architecture.blocks
        self.encoder: Dense | Convolutions
        self.pixels: Any  # a Linear layer or Deconvolutions
        if architecture.architecture == "mlp":
            self.encoder = Dense(PIXELS + labels, hidden)
            code = (PIXELS + labels, *hidden)[-1]
        else:
            self.encoder = Convolutions(labels, channels, blocks, hidden)
            code = self.encoder.width
        self.mu = nn.Linear(code, self.latent_size)
        self.log_var = nn.Linear(code, self.latent_size)
        hidden = architecture.decoder_hidden
        self.decoder = mlp(self.condition.width, hidden)
        code = (self.condition.width, *hidden)[-1]
        if architecture.architecture == "mlp":
            self.pixels = nn.Linear(code, PIXELS)
        else:
            self.pixels = Deconvolutions(code, channels, blocks)
        self.likelihood = likelihood.build(likelihood_name, sigma)
        self.prior_weights = PriorWeights(architecture)
        if architecture.init != "torch":
            for part in (self.encoder, self.condition, self.decoder, self.pixels):
                initialise(part)
        if architecture.init == "dark":
            darken(self.pixels if isinstance(self.pixels, nn.Linear) else self.pixels.body[-1])
        scale_down(self.encoder)
        scale_down(self.pixels)

    def encode(self, images: Tensor, labels: Tensor) -> Normal:
        """q(z∣x,y) of images (N, 1, 28, 28) with labels (N,), (N, latent)."""
        heard = one_hot(labels, images.dtype) if self.architecture.encoder_sees_label else None
        code = self.encoder(images, heard)
        return Normal(self.mu(code), self.log_var(code))

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """The likelihood's outputs (..., N, 784) for codes z (..., N, latent) and labels (N,)."""
        joined = self.condition(z, one_hot(labels, z.dtype))
        # Two dimensions, not three: torch multiplies a (draws · N, latent) matrix in 60 % of the time.
        return self.pixels(self.decoder(joined.flatten(0, -2))).unflatten(0, joined.shape[:-1])

    def decoder_of_neighbours(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Codes (N, latent) and their one label (1,) to outputs (N, 784), as `decode` gives them.

        Dense layers skip what the codes have in common. Convolutions go by few codes at a time, whose activations stay
        in a processor's cache: three quarters of the time of 4,000.
        """
        if self.architecture.architecture != "mlp":
            return lambda z, label: torch.cat([self.decode(few, label) for few in z.split(CACHED)])
        dense = Neighbours([layer for layer in (*self.decoder, self.pixels) if isinstance(layer, nn.Linear)])
        return lambda z, label: dense(self.condition(z, one_hot(label, z.dtype)))

    def prior(self) -> priors.Prior:
        """p(z∣y) as the weights have it now."""
        weights = self.prior_weights
        if self.architecture.prior == "class":
            return priors.by_label(Normal(weights.mu, weights.log_var))
        if self.architecture.prior == "mixture":
            pictures = weights.pseudo_inputs
            labels = torch.arange(CLASSES, device=pictures.device).repeat_interleave(pictures.shape[1])
            encoded = self.encode(pictures.sigmoid().view(-1, 1, SIDE, SIDE), labels).to(pictures.dtype)
            return priors.Mixtures(Normal(*(part.view(*pictures.shape[:2], -1) for part in encoded)))
        zero = self.mu.weight.new_zeros(CLASSES, self.latent_size)
        return priors.by_label(Normal(zero, zero))


class PriorWeights(nn.Module):
    """What a prior learns: nothing (`standard`), a Gaussian for each label (`class`), or pictures (`mixture`).

    The pictures are a VampPrior's pseudo-inputs, here some for each label: the encoder makes a component of each, so
    that the prior is, like the aggregate posterior it stands for, made of posteriors.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.prior == "class":
            self.mu = nn.Parameter(torch.zeros(CLASSES, architecture.latent_size))
            self.log_var = nn.Parameter(torch.zeros(CLASSES, architecture.latent_size))
        elif architecture.prior == "mixture":
            # Logits of grey values, each different from the others.
            self.pseudo_inputs = nn.Parameter(torch.randn(CLASSES, architecture.prior_components, PIXELS) + DARK)


class Dense(nn.Sequential):
    """Images and labels, side by side, through Linear + ReLU for each hidden size."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(*mlp(width, hidden))

    def forward(self, images: Tensor, heard: Tensor | None) -> Tensor:  # type: ignore[override]
        """(N, 1, 28, 28) and one-hot labels (N, 10), where it may see them, to (N, width)."""
        x = images.flatten(1)
        if heard is not None:
            x = torch.cat([x, heard], dim=-1)
        for layer in self:
            x = layer(x)
        return x


class Residual(nn.Module):
    """x + f(x), f two 3 × 3 convolutions, each after its ReLU (He 2016). Without normalisation: see `scale_down`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def initialise(network: nn.Module) -> None:
    """Draws first weights that keep the size of what passes: N(0, 2 ÷ inputs of a unit), biases 0 (He 2015).

    torch's own are √6 times smaller: what differs between codes then fades with every layer on its way to the pixels,
    and the first epochs go into making it louder.
    """
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                inputs = layer.weight[0].numel()
            elif isinstance(layer, nn.ConvTranspose2d):
                # (in, out, height, width): of a kernel, a pixel of the picture sees each stride-th row and column.
                inputs = layer.weight[:, 0].numel() // math.prod(layer.stride)
            else:
                continue
            layer.weight.normal_(0, math.sqrt(2 / inputs))
            if layer.bias is not None:
                layer.bias.zero_()


def darken(last: nn.Linear | nn.ConvTranspose2d) -> None:
    """Makes the first pictures dark and much alike: weights a third as loud, every bias the logit of MNIST's mean.

    He's weights make random pictures, half of them bright: the first steps go into putting out pixels that are off in
    almost every digit. Where a training has few steps, as with large batches, that is much of it.
    """
    with torch.no_grad():
        last.weight /= 3
        last.bias.fill_(DARK)  # type: ignore[union-attr]


def scale_down(network: nn.Module) -> None:
    """Divides the last weights of each residual block by √(number of blocks): they then add up to a bounded sum.

    In place of a normalisation (after Child 2021): no statistics of a batch, nothing that mixes images or
    members of a population, and less to compute.
    """
    blocks = [part for part in network.modules() if isinstance(part, Residual)]
    with torch.no_grad():
        for block in blocks:
            block.second.weight /= math.sqrt(len(blocks))


class Convolutions(nn.Module):
    """Images by strided convolutions to 14 × 14 and 7 × 7, residual blocks at each, then dense layers.

    It sees the label, where it may, twice: as a bias for each first channel and beside the features.
    """

    def __init__(self, labels: int, channels: tuple[int, ...], blocks: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = halving(1, channels[0])
        self.bias = nn.Linear(labels, channels[0], bias=False) if labels else None
        layers = [*residuals(channels[0], blocks), nn.ReLU()]
        for before, after in itertools.pairwise(channels):
            layers += [halving(before, after), *residuals(after, blocks), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        features = channels[-1] * side(channels) ** 2 + labels
        self.dense = mlp(features, hidden)
        self.width = (features, *hidden)[-1]

    def forward(self, images: Tensor, heard: Tensor | None) -> Tensor:
        """(N, 1, 28, 28) and one-hot labels (N, 10), where it may see them, to (N, width)."""
        x = self.stem(images)
        if self.bias is None or heard is None:
            return self.dense(self.body(x).flatten(1))
        x = self.body(x + self.bias(heard)[..., None, None]).flatten(1)
        return self.dense(torch.cat([x, heard], dim=-1))


class Deconvolutions(nn.Module):
    """The way back: dense to 7 × 7, residual blocks, transposed convolutions to 14 × 14 and to the 784 pixels."""

    def __init__(self, width: int, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.shape = (channels[-1], side(channels), side(channels))
        self.spread = nn.Linear(width, math.prod(self.shape))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((*reversed(channels), 1)):
            doubling = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            layers += [*residuals(before, blocks), nn.ReLU(), doubling]
        self.body = nn.Sequential(*layers)

    def forward(self, code: Tensor) -> Tensor:
        """(..., width) to (..., 784)."""
        x = self.spread(code).view(-1, *self.shape)
        return self.body(x).reshape(*code.shape[:-1], PIXELS)


def halving(before: int, after: int) -> nn.Conv2d:
    """A convolution from a picture to one of half its side."""
    return nn.Conv2d(before, after, 4, stride=2, padding=1)


def residuals(channels: int, blocks: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(blocks)]


def side(channels: tuple[int, ...]) -> int:
    """Pixels along a side of the smallest scale."""
    return SIDE // 2 ** len(channels)


def mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear + ReLU for each hidden size."""
    pairs = itertools.pairwise((width, *hidden))
    return nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,) labels in 0…9 as (N, 10); mixtures of labels (N, 10) as they are."""
    return (labels if labels.ndim == 2 else F.one_hot(labels, CLASSES)).to(dtype)


def build(
    architecture: Architecture, seed: int, likelihood_name: likelihood.Name = "bernoulli", sigma: float | None = None
) -> CVAE:
    """An untrained CVAE on the CPU, whose weights depend on `seed` alone; `sigma` is the gaussian likelihood's.

    In eval mode, which only a training step leaves: it is for the one likelihood that takes its σ from the batch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Convolutions of few channels run faster where a pixel's channels lie together.
        return CVAE(architecture, likelihood_name, sigma).to(memory_format=torch.channels_last).eval()

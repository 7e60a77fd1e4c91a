"""The conditional VAE: an encoder q(z∣x,y), a decoder p(x∣z,y) that is told the label, a prior p(z∣y)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.base.params import Neutral, params, parse
from pipeline.data.splits import CLASSES, PIXELS
from pipeline.model import likelihood
from pipeline.model import prior as priors
from pipeline.model.gaussian import Normal
from pipeline.model.networks import Convolutions, Deconvolutions, Dense, darken, initialise, mlp, one_hot, scale_down

Kind = Literal["mlp", "conv", "resnet"]
Init = Literal["dark", "he", "torch"]
Conditioning = Literal["sum", "mean", "product", "concat"]
Size = Annotated[int, Field(ge=1, le=8192)]
MOST_SCALES = 2  # 28 → 14 → 7, and 7 is odd


@params
class ModelParams:
    """The section `model` of params.yaml: a preset, and what to change in it. None: as in the preset."""

    preset: Literal["article", "strong"]
    """strong | article; it sets what is left blank below"""
    architecture: Kind | None
    """mlp (both presets) | conv | resnet (conv with residual blocks)"""
    latent_size: Annotated[int | None, Field(ge=1, le=PIXELS)]
    """number of latent dimensions"""
    encoder_hidden: tuple[Size, ...] | None
    """sizes of the dense layers, such as [512, 512]; after convolutions [256]"""
    decoder_hidden: tuple[Size, ...] | None
    """the same for the decoder"""
    channels: tuple[Size, ...] | None
    """of conv and resnet, at 14 × 14 and 7 × 7 pixels, such as [32, 64]"""
    blocks: Annotated[int | None, Field(ge=0, le=64)]
    """residual blocks at each of these sizes; resnet has 1, conv none"""
    conditioning: Conditioning | None
    """how the label enters the decoder: sum | mean | product | concat"""
    encoder_sees_label: bool | None
    """true | false"""
    init: Init | None
    """first weights: torch (both presets) | he (conv and resnet) | dark (he, with dark pixels)"""
    prior: priors.Name
    """p(z∣y): docs/treatments.md has the list"""
    prior_components: Annotated[int, Field(ge=1, le=1000)]
    """components per label, of a mixture"""

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
    """All that determines an untrained CVAE, but for its likelihood and seed.

    encoder_hidden, decoder_hidden: dense layers. channels, blocks: of the convolutions, at 14 × 14 and at 7 × 7 pixels;
    an mlp has none. init: torch's own first weights, or networks.initialise (`he`), or that and networks.darken
    (`dark`).
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
    # The source article's model: 784 → 256 → 8 → (8, 8), the label added to the latents, an encoder that can't see it.
    "article": Architecture(8, (256, 8), (256,), "sum", encoder_sees_label=False),
    "strong": Architecture(16, (512, 512), (512, 512), "concat", encoder_sees_label=True),
}
# What a preset becomes with convolutions in place of its mlp.
CONVOLUTIONS = {"encoder_hidden": (256,), "decoder_hidden": (256,), "channels": (32, 64), "init": "he"}


def resolve(params: ModelParams) -> Architecture:
    """The preset, with what `params` changes in it."""
    preset = PRESETS[params.preset]
    if params.architecture in ("conv", "resnet"):
        preset = replace(preset, blocks=int(params.architecture == "resnet"), **CONVOLUTIONS)  # type: ignore[arg-type]
    values = {field.name: getattr(params, field.name) for field in fields(Architecture)}
    if not priors.PRIORS[params.prior].has_components:
        values["prior_components"] = 1
    return Architecture(**{name: getattr(preset, name) if value is None else value for name, value in values.items()})


def as_given(resolved: Mapping[str, Any], today: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` of a run that keeps it resolved: as today, or blank, wherever that gives the same model."""
    given = {**today, **resolved}
    whole = resolve(parse(ModelParams, given, "model"))
    for key in given:
        for shorter in (None, today[key]):
            with suppress(UserError):
                if resolve(parse(ModelParams, given | {key: shorter}, "model")) == whole:
                    given[key] = shorter
    return given


class Condition(nn.Module):
    """How the decoder is told the label.

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
    """What the objective, training, checkpoints and the bound ask of a model."""

    latent_size: int
    likelihood: likelihood.Likelihood

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.parameters()).dtype

    def context(self, condition: Tensor) -> Any:
        """What `encode`, `decode` and the prior read of a condition (N, ...); here the condition itself."""
        return condition

    def weighing(self, condition: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Each image's factor of the KL weight, and its share in the loss, (N,) both; None: 1 for every image."""
        return None

    def encode(self, images: Tensor, context: Any) -> Normal:
        """q(z∣x, condition) of images (N, 1, 28, 28), (N, latent)."""
        raise NotImplementedError

    def decode(self, z: Tensor, context: Any) -> Tensor:
        """The likelihood's outputs (..., N, 784) for latents z (..., N, latent)."""
        raise NotImplementedError

    def prior(self) -> priors.Prior:
        """p(z∣condition) with the present weights."""
        raise NotImplementedError


class CVAE(Model):
    """An encoder and a decoder, dense or convolutional, around Gaussian latents; the condition is the label."""

    def __init__(
        self, architecture: Architecture, likelihood_name: likelihood.Name = "bernoulli", sigma: float | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.latent_size = architecture.latent_size
        self.condition = Condition(architecture.conditioning, self.latent_size)
        labels = CLASSES if architecture.encoder_sees_label else 0
        dense, channels, blocks = architecture.architecture == "mlp", architecture.channels, architecture.blocks
        hidden = architecture.encoder_hidden
        self.encoder = Dense(labels, hidden) if dense else Convolutions(labels, channels, blocks, hidden)
        self.mu = nn.Linear(self.encoder.width, self.latent_size)
        self.log_var = nn.Linear(self.encoder.width, self.latent_size)
        self.decoder = mlp(self.condition.width, architecture.decoder_hidden)
        width = (self.condition.width, *architecture.decoder_hidden)[-1]
        self.pixels: Any = nn.Linear(width, PIXELS) if dense else Deconvolutions(width, channels, blocks)
        self.likelihood = likelihood.build(likelihood_name, sigma)
        self.prior_weights = priors.PRIORS[architecture.prior](self.latent_size, architecture.prior_components)
        if architecture.init != "torch":
            for part in (self.encoder, self.condition, self.decoder, self.pixels):
                initialise(part)
        if architecture.init == "dark":
            darken(self.pixels if isinstance(self.pixels, nn.Linear) else self.pixels.last)
        scale_down(self.encoder)
        scale_down(self.pixels)

    def encode(self, images: Tensor, labels: Tensor) -> Normal:
        """q(z∣x,y) of images (N, 1, 28, 28) with labels (N,), (N, latent)."""
        features = self.encoder(images, one_hot(labels, images.dtype) if self.architecture.encoder_sees_label else None)
        return Normal(self.mu(features), self.log_var(features))

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """The likelihood's outputs (..., N, 784) for latents z (..., N, latent) and labels (N,)."""
        joined = self.condition(z, one_hot(labels, z.dtype))
        # As one matrix (samples · N, latent): torch needs 60 % of the time that it needs with three dimensions.
        return self.pixels(self.decoder(joined.flatten(0, -2))).unflatten(0, joined.shape[:-1])

    def decode_one_image(self, z: Tensor, label: Tensor) -> Tensor:
        """`decode` of many latents (N, latent) that are near each other, as samples of one posterior, and a label (1,).

        A dense decoder skips the units that are off for all of them.
        """
        if not isinstance(self.pixels, nn.Linear):
            return self.decode(z, label)
        layers = [layer for layer in (*self.decoder, self.pixels) if isinstance(layer, nn.Linear)]
        return skip_idle_units(layers, self.condition(z, one_hot(label, z.dtype)))

    def prior(self) -> priors.Prior:
        """p(z∣y) with the present weights."""
        zeros = next(self.parameters()).new_zeros(CLASSES, self.latent_size)
        return self.prior_weights.density(self.encode, zeros)


def skip_idle_units(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """Linear layers with a ReLU between them, (N, in) to (N, out), without the products of units that all N rows have
    off: equal to the layers one after another, up to the order of sums.

    Of a trained decoder a third of each layer is off around one image, and nll takes half the time on a CPU.
    """
    x = F.linear(x, layers[0].weight, layers[0].bias)
    for layer in layers[1:]:
        used = (~(x.amax(0) <= 0)).nonzero().squeeze(1)  # a NaN counts as on
        x = F.linear(x.index_select(1, used).relu_(), layer.weight.index_select(1, used), layer.bias)
    return x


def build(
    architecture: Architecture, seed: int, likelihood_name: likelihood.Name = "bernoulli", sigma: float | None = None
) -> CVAE:
    """An untrained CVAE on the CPU, whose weights depend on `seed` alone; `sigma` is of the gaussian likelihood.

    It is in eval mode, as outside of a training step: sigma_optimal takes its σ from the batch in train mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Convolutions with few channels are faster with the channels of a pixel next to each other.
        return CVAE(architecture, likelihood_name, sigma).to(memory_format=torch.channels_last).eval()

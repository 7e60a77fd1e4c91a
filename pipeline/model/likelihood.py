"""How the decoder's outputs explain pixels.

A likelihood turns the decoder's raw outputs (..., N, 784) into log p(x∣z,y) in nats per image, mean pictures and
samples. It is a module, so that one with weights of its own (a learned σ) trains and is saved with the model.

Only `bernoulli` is a probability on {0, 1}; only `discretized_logistic` is one on the 256 levels of a grey pixel.
The others are densities on real numbers: where they are above 1, the reconstruction is negative.
"""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.gaussian import LOG_2PI

LEVELS = 256
FIRST_SIGMA = 0.25  # of a grey value: about the standard deviation of MNIST's pixels
PACE = 10  # Adam moves a weight by about the learning rate a step; a log σ, which must move by several units, by 10 ×
LEAST_VARIANCE = 1e-6  # of sigma_optimal: a quarter of a grey level, squared; a perfect decoder stays finite


class Likelihood(nn.Module):
    """What every likelihood answers."""

    sums_to_one_on: ClassVar[Literal["binary", "levels", "reals"]] = "reals"  # pixels of which it is a probability

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """Outputs (..., N, 784) and pixels in [0, 1], which expand to that shape, to (..., N) nats per image."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """Outputs (..., 784) to expected pixels in [0, 1]; unless a class says otherwise, their sigmoid."""
        return outputs.float().sigmoid()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outputs (..., 784) to a sample of the pixels."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Each pixel is 1 with probability sigmoid(output).

    On grey pixels x in [0, 1] the same formula is a cross entropy, no normalised density; on binary pixels it is
    the exact log-likelihood (Kingma & Welling 2014, appendix C.1).
    """

    sums_to_one_on = "binary"

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """From logits: sigmoid followed by a logarithm loses everything beyond ±17 in float32."""
        logits = full(outputs)
        return -F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(outputs), generator=generator)


class ContinuousBernoulli(Likelihood):
    """The Bernoulli's formula made a density on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    p(x) = C(λ) λ^x (1 − λ)^(1−x) with λ = sigmoid(η) and C(λ) = 2 artanh(1 − 2λ) / (1 − 2λ). In the logit η this is
    C = η / tanh(η / 2), which needs no λ; near λ = ½ its logarithm is a Taylor series.
    """

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        logits = full(outputs)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none")
        return (log_normaliser(logits) - cross_entropy).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """½ + ½ (coth u − 1/u) with u = η / 2, from the logit η. It equals λ at λ = ½ alone."""
        half = outputs.float() / 2
        near = half.abs() < 0.1
        safe = torch.where(near, 1.0, half)
        series = half / 3 - half**3 / 45 + 2 * half**5 / 945
        return 0.5 + 0.5 * torch.where(near, series, 1 / safe.tanh() - 1 / safe)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of F(x) = (e^{ηx} − 1) / (e^η − 1), written so that e^η can't overflow."""
        logits = outputs.float()
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        steep = logits.abs().clamp(min=1e-6)  # close enough to uniform, without 0 / 0
        falling = -(torch.log1p(uniform * torch.expm1(-steep)) / steep)
        return torch.where(logits > 0, 1 - falling, falling).clamp(0, 1)


def log_normaliser(logits: Tensor) -> Tensor:
    """log C(λ) of the continuous Bernoulli, element by element; its minimum, log 2, is at λ = ½.

    log(η / tanh(η / 2)) is 0 / 0 at η = 0. Near 0 a series to the 6th order replaces it, and the unused branch gets a
    harmless input: a `where` alone would still pass its NaN on to the gradient.
    """
    half = logits.abs() / 2
    near = half < 0.1
    square = torch.where(near, half, 0.0).square()
    series = square / 3 - 7 * square**2 / 90 + 62 * square**3 / 2835
    safe = torch.where(near, 1.0, half)
    return math.log(2) + torch.where(near, series, safe.log() - safe.tanh().log())


class Gaussian(Likelihood):
    """Each pixel is N(sigmoid(output), σ²) with one σ for all pixels, in grey values from 0 to 1."""

    kept: Tensor

    def __init__(self, sigma: float = FIRST_SIGMA) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(math.log(sigma)))

    @property
    def log_sigma(self) -> Tensor:
        """The one log σ, ()."""
        return self.kept

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        return gaussian((pixels - full(outputs).sigmoid()).square(), self.log_sigma)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values below 0 and above 1 are possible."""
        mean = self.mean(outputs)
        return mean + self.log_sigma.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)


class SigmaLearned(Gaussian):
    """The Gaussian whose one σ is a weight like any other (Dai & Wipf 2019)."""

    def __init__(self) -> None:
        super().__init__()
        del self.kept
        self.kept = nn.Parameter(torch.tensor(math.log(FIRST_SIGMA) / PACE))

    @property
    def log_sigma(self) -> Tensor:
        return PACE * self.kept


class SigmaOptimal(Gaussian):
    """The Gaussian whose σ² is the mean squared error, the value that explains best (Rybkin 2021).

    In train mode σ is that of the batch: it has no learning rate and need not converge first. Otherwise σ is one
    number for all images, computed from training images by `fit.calibrate` and saved with the model: with a σ that
    depends on the batch, nll and elbo would not be those of a density.
    """

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        squares = (pixels - full(outputs).sigmoid()).square()
        # No gradient through σ: at the best σ the mean loss has none in it.
        return gaussian(squares, optimal_log_sigma(squares.detach().mean()) if self.training else self.log_sigma)

    def calibrate(self, mean_square: Tensor) -> None:
        """Sets σ from the mean squared error () of pixels."""
        self.kept.copy_(optimal_log_sigma(mean_square))


def optimal_log_sigma(mean_square: Tensor) -> Tensor:
    """log σ of the σ with the highest likelihood of pixels with this mean squared error."""
    return 0.5 * mean_square.clamp(min=LEAST_VARIANCE).log()


def gaussian(squares: Tensor, log_sigma: Tensor) -> Tensor:
    """log N of all pixels from squared distances (..., 784) and one log σ (): (...) nats."""
    return -0.5 * (-2 * log_sigma).exp() * squares.sum(-1) - squares.shape[-1] * (log_sigma + 0.5 * LOG_2PI)


class DiscretizedLogistic(Likelihood):
    """An exact probability for each of the 256 levels of a pixel (Kingma 2016; Salimans 2017, eq. 2).

    A level gets the mass that a logistic around m = 3 sigmoid(output) − 1 has within half a level of it; black and
    white also get all mass beyond them. m ranges from −1 to 2, beyond black and white: with m = 0 half of the mass
    would be lighter than black, and each black pixel would cost a bit. The scale is a trained weight for each of the
    784 places, since some are always black. −log p / (784 log 2) is in bits per dimension and can be compared with
    published work on the same 8-bit images.
    """

    sums_to_one_on = "levels"

    def __init__(self, size: int = 784) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.full((size,), math.log(0.1) / PACE))

    @property
    def log_scale(self) -> Tensor:
        """One for each place, (784,)."""
        return PACE * self.kept

    @staticmethod
    def location(outputs: Tensor) -> Tensor:
        """The mean of each logistic, between −1 and 2."""
        return 3 * outputs.sigmoid() - 1

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """Pixels are rounded to the nearest level, v / 255."""
        location = self.location(full(outputs))
        level = (pixels * (LEVELS - 1)).round().to(location.dtype).expand_as(location)
        per_scale = (-self.log_scale).exp()
        half = 0.5 / (LEVELS - 1)
        distance = level / (LEVELS - 1) - location
        above, below = (distance + half) * per_scale, (distance - half) * per_scale
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b−a}): no difference of two nearly equal numbers
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + (-torch.expm1(-2 * half * per_scale)).log()
        outer = torch.where(level == 0, F.logsigmoid(above), F.logsigmoid(-below))
        return torch.where((level == 0) | (level == LEVELS - 1), outer, inside).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """∫₀¹ P(pixel ≥ t) dt, the sum over levels by the midpoint rule: exact to less than half a level."""
        location, scale = self.location(outputs.float()), self.log_scale.exp()
        return (scale * (F.softplus(location / scale) - F.softplus((location - 1) / scale))).clamp(0, 1)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels v / 255: a sample of the logistic by its inverse, rounded to the nearest level."""
        location = self.location(outputs.float())
        uniform = torch.rand(location.shape, generator=generator, device=location.device)
        values = location + self.log_scale.exp() * uniform.clamp(min=torch.finfo(uniform.dtype).tiny).logit()
        return (values.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def full(outputs: Tensor) -> Tensor:
    """Outputs in a precision fit for a sum of 784 logarithms: bfloat16 becomes float32."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "sigma_learned": SigmaLearned,
    "sigma_optimal": SigmaOptimal,
    "discretized_logistic": DiscretizedLogistic,
}


if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(LIKELIHOODS)]  # the names that params allow


def names_on(pixels: Literal["binary", "levels"]) -> list[str]:
    """The likelihoods whose probabilities of such pixels sum to one."""
    return [name for name, kind in LIKELIHOODS.items() if kind.sums_to_one_on == pixels]


def build(name: Name, sigma: float | None = None) -> Likelihood:
    """The untrained likelihood of that name; `sigma` is of the gaussian alone, which requires it (ValueError)."""
    if name != "gaussian":
        return LIKELIHOODS[name]()
    if sigma is None:
        raise ValueError("the gaussian likelihood needs a sigma (objective.sigma)")
    return Gaussian(sigma)

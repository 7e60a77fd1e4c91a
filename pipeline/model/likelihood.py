"""How the decoder's output explains pixels.

A likelihood turns the decoder's raw outputs (..., N, 784) into log p(x∣z,y) in nats per image, a mean picture and
draws. It is a module, so that one with weights of its own (a learned σ, say) trains and travels with the model.
To add one: write the class, name it in LIKELIHOODS and in `Name`; CONTRIBUTING.md lists the tests it must pass.

Only `bernoulli` is a probability on {0, 1}; only `discretized_logistic` is one on the 256 levels of a grey pixel.
The others are densities on real numbers: where they are above 1, the reconstruction is negative, and rightly so.
"""

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.gaussian import LOG_2PI

Name = Literal[
    "bernoulli", "continuous_bernoulli", "gaussian", "sigma_learned", "sigma_optimal", "discretized_logistic"
]

ON_BINARY_PIXELS = ("bernoulli",)  # those whose probabilities of 0 and 1 sum to one
EXACT_ON_LEVELS = ("discretized_logistic",)  # those whose probabilities of the 256 levels of a pixel sum to one
LEVELS = 256
FACTORS = 112  # a seventh of the pixels: 2^-112 is still a normal number in float32
FIRST_SIGMA = 0.25  # of a grey value: about the standard deviation of MNIST's pixels
PACE = 10  # Adam moves a weight by about its rate a step; a log σ has a way of several units to go, and goes it so
LEAST_VARIANCE = 1e-6  # of sigma_optimal: a quarter of a grey level, squared; a perfect decoder stays finite


class Likelihood(nn.Module):
    """What every likelihood answers."""

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """(..., N, 784) outputs and pixels in [0, 1] that expand to their shape, to (..., N) nats per image."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """(..., 784) outputs to expected pixels in [0, 1]."""
        raise NotImplementedError

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., 784) outputs to a draw of the pixels."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Each pixel is 1 with probability sigmoid(output).

    On grey pixels x in [0, 1] the same formula is a cross entropy, no normalised density; on binary pixels it is
    the exact log-likelihood (Kingma & Welling 2014, appendix C.1).
    """

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """On logits: sigmoid followed by a logarithm loses everything beyond ±17 in float32."""
        logits = full(outputs)
        if torch.compiler.is_compiling():
            return CompiledCrossEntropy.apply(logits, pixels)
        if torch.is_grad_enabled() or logits.shape[-1] % FACTORS:
            return -F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)
        return log_prob_by_products(logits, pixels)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(outputs), generator=generator)


def log_prob_by_products(logits: Tensor, pixels: Tensor) -> Tensor:
    """Bernoulli.log_prob without a gradient, in less than half the time: logits (..., 784) to (...) nats per image.

    log p = Σ x η − max(η, 0) + log sigmoid(|η|). The last factor lies in [½, 1], so that a product of 112 of them is no
    number too small for float32: seven logarithms stand for 784.
    """
    linear = torch.addcmul(logits.clamp_min(0), logits, pixels, value=-1).sum(-1)
    factors = logits.abs().sigmoid_().unflatten(-1, (-1, FACTORS))
    return factors.prod(-1).log_().sum(-1) - linear


class CompiledCrossEntropy(torch.autograd.Function):
    """What Bernoulli.log_prob becomes in compiled code: logits (..., 784) and pixels, no gradient, to (...).

    As log_prob_by_products, but each logarithm stands for the seven pixels of one place in as many parts of the row,
    which a compiler makes one pass over vectors of.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, pixels)
        likely = _by_part(logits.abs().sigmoid())
        linear = _by_part(torch.addcmul(logits.clamp_min(0), logits, pixels, value=-1))
        return (functools.reduce(torch.mul, likely).log() - functools.reduce(torch.add, linear)).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, pixels = ctx.saved_tensors
        return (pixels - logits.sigmoid()) * grad.unsqueeze(-1), None


def _by_part(rows: Tensor) -> tuple[Tensor, ...]:
    """(..., 784) to seven of (..., 112), or to the one of another size."""
    parts = 1 if rows.shape[-1] % FACTORS else rows.shape[-1] // FACTORS
    return rows.chunk(parts, -1)


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
        """½ + ½ (coth u − 1/u) with u = η / 2, in terms of the logit. At λ = ½ it is ½, and not λ anywhere else."""
        half = outputs.float() / 2
        near = half.abs() < 0.1
        safe = torch.where(near, 1.0, half)
        series = half / 3 - half**3 / 45 + 2 * half**5 / 945
        return 0.5 + 0.5 * torch.where(near, series, 1 / safe.tanh() - 1 / safe)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of F(x) = (e^{ηx} − 1) / (e^η − 1), from the side where e^η can't overflow."""
        logits = outputs.float()
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        steep = logits.abs().clamp(min=1e-6)  # as good as uniform, and no 0 / 0
        falling = -(torch.log1p(uniform * torch.expm1(-steep)) / steep)
        return torch.where(logits > 0, 1 - falling, falling).clamp(0, 1)


def log_normaliser(logits: Tensor) -> Tensor:
    """log C(λ) of the continuous Bernoulli, element by element; the least, log 2, at λ = ½.

    log(η / tanh(η / 2)) is 0 / 0 at η = 0. There a series to the 6th order takes over, and the other branch is given
    a harmless input: a `where` alone would still send its NaN back through the gradient.
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

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of the density, which reaches below 0 and above 1."""
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

    While it trains, that of the batch: no rate and no weight of its own has to settle first. Otherwise σ is one
    number for all images, taken from training images by `train.calibrate` and kept in the model's file: with a σ that
    depends on which images happen to be looked at together, nll and elbo would be of no density at all.
    """

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        squares = (pixels - full(outputs).sigmoid()).square()
        # No gradient through σ: at the best σ the mean loss has none in it.
        return gaussian(squares, optimal_log_sigma(squares.detach().mean()) if self.training else self.log_sigma)

    def calibrate(self, mean_square: Tensor) -> None:
        """Takes σ from the mean squared error () of pixels."""
        self.kept.copy_(optimal_log_sigma(mean_square))


def optimal_log_sigma(mean_square: Tensor) -> Tensor:
    """log σ of the σ that explains pixels with this mean squared error best."""
    return 0.5 * mean_square.clamp(min=LEAST_VARIANCE).log()


def gaussian(squares: Tensor, log_sigma: Tensor) -> Tensor:
    """log N of all pixels, from squared distances (..., 784) and one log σ (), to (...) nats."""
    return -0.5 * (-2 * log_sigma).exp() * squares.sum(-1) - squares.shape[-1] * (log_sigma + 0.5 * LOG_2PI)


class DiscretizedLogistic(Likelihood):
    """An exact probability for each of the 256 levels of a pixel (Kingma 2016; Salimans 2017, eq. 2).

    A logistic around m = 3 sigmoid(output) − 1, of which a level gets what lies within half a level of it, the two
    outer levels all beyond them. m reaches beyond black and white: around m = 0 half of the mass would be lighter than
    black, and each black pixel would cost a bit. The scale is one trained weight for each of the 784 places, since
    some are always black. So −log p / (784 log 2) is in bits per dimension, and compares with published work on the
    same 8-bit images.
    """

    def __init__(self, size: int = 784) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.full((size,), math.log(0.1) / PACE))

    @property
    def log_scale(self) -> Tensor:
        """Of each place, (784,)."""
        return PACE * self.kept

    @staticmethod
    def location(outputs: Tensor) -> Tensor:
        """The middle of each logistic, between −1 and 2."""
        return 3 * outputs.sigmoid() - 1

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """Pixels are taken to the nearest level, v / 255."""
        location = self.location(full(outputs))
        level = (pixels * (LEVELS - 1)).round().to(location.dtype).expand_as(location)
        per_scale = (-self.log_scale).exp()
        half = 0.5 / (LEVELS - 1)
        distance = level / (LEVELS - 1) - location
        above, below = (distance + half) * per_scale, (distance - half) * per_scale
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b−a}): no difference of two numbers that are nearly alike
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + (-torch.expm1(-2 * half * per_scale)).log()
        outer = torch.where(level == 0, F.logsigmoid(above), F.logsigmoid(-below))
        return torch.where((level == 0) | (level == LEVELS - 1), outer, inside).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """∫₀¹ P(pixel ≥ t) dt, the sum over levels by the midpoint rule: right to less than half a level."""
        location, scale = self.location(outputs.float()), self.log_scale.exp()
        return (scale * (F.softplus(location / scale) - F.softplus((location - 1) / scale))).clamp(0, 1)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels v / 255: the logistic by its inverse, taken to the nearest level."""
        location = self.location(outputs.float())
        uniform = torch.rand(location.shape, generator=generator, device=location.device)
        drawn = location + self.log_scale.exp() * uniform.clamp(min=torch.finfo(uniform.dtype).tiny).logit()
        return (drawn.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def full(outputs: Tensor) -> Tensor:
    """Outputs in a precision to sum 784 logarithms in: half precision becomes float32."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "sigma_learned": SigmaLearned,
    "sigma_optimal": SigmaOptimal,
    "discretized_logistic": DiscretizedLogistic,
}


def build(name: Name, sigma: float | None = None) -> Likelihood:
    """The likelihood of that name, untrained; `sigma` is the gaussian's alone, which can't do without."""
    if name != "gaussian":
        return LIKELIHOODS[name]()
    if sigma is None:
        raise ValueError("the gaussian likelihood needs a sigma (objective.sigma)")
    return Gaussian(sigma)

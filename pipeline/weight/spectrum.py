"""What each KL weight can give, from the data alone: which latent directions pay, and how many nats they carry.

For each class, λ are the eigenvalues of the images' covariance, measured in nats of the likelihood. A latent direction
pays at weight β only if λ > β. It then carries ½ log(λ ÷ β) nats per image: reverse water-filling, with probabilistic
PCA (Tipping & Bishop 1999) as the decoder (Lucas 2019). docs/spectrum.md derives this and says where it fails.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.base.device import one_thread
from pipeline.base.errors import UserError
from pipeline.data.splits import CLASSES, PIXELS, Pixels, Split, to_unit
from pipeline.model.likelihood import LEAST_VARIANCE
from pipeline.weight import bernoulli

FLOOR = 1e-3  # least p (1 − p) of a pixel: one that is lit in a few images of a class would otherwise count for much
SOLVED = ("bernoulli", "gaussian", "sigma_learned", "sigma_optimal")  # the likelihoods whose spectrum is known
WEIGHTS = tuple(10 ** (step / 20) for step in range(-40, 41))  # of a table or a figure: 0.01 to 100
KNOTS = (0.3, 3.0, 10.0, 20.0)  # weights at which a Bernoulli's own cross entropy is solved
HALVINGS = 100  # of an interval that holds a solution: its ends then meet in float64


@dataclass(frozen=True)
class Spectrum:
    """What models of so many latent dimensions can give.

    eigenvalues: (classes, directions) float64, each row from the largest to the smallest, of the covariance of a
    class's images in the likelihood's metric. shares: (classes,), of all images. pixels: None, or with a σ that
    training chooses, the number of pixels that share it. The eigenvalues are then those of the covariance itself, and
    σ² depends on the weight: it is the mean squared error. excess: (classes, KNOTS), what a Bernoulli's own cross
    entropy adds to the kl. unsettled: classes and knots where it was not solved well.
    """

    eigenvalues: Tensor
    shares: Tensor
    latents: int
    pixels: int | None = None
    excess: Tensor | None = None
    unsettled: tuple[tuple[int, float], ...] = ()

    def rates(self, beta: float) -> Tensor:
        """The expected kl of each class, (classes,) nats per image."""
        rates = 0.5 * (self.eigenvalues[:, : self.latents] / self._level(beta)).log().clamp(min=0).sum(1)
        return rates if self.excess is None else rates + self._excess(self.excess, beta)

    def rate(self, beta: float) -> float:
        """The expected kl, nats per image: the mean over all images."""
        return float(self.shares @ self.rates(beta))

    def actives(self, beta: float) -> Tensor:
        """The number of latent dimensions that each class can use, (classes,)."""
        return (self.eigenvalues[:, : self.latents] > self._level(beta)).sum(1)

    def active(self, beta: float) -> int:
        """The number of latent dimensions that a model can use: that of the class with the most."""
        return int(self.actives(beta).max())

    def collapses(self) -> Tensor:
        """The weight above which each class has collapsed, (classes,)."""
        return self.shares.new_tensor([self._weight(level) for level in self.eigenvalues[:, 0].tolist()])

    def collapse(self) -> float:
        """The weight above which every class has collapsed."""
        return float(self.collapses().max())

    def weight_for(self, nats: float) -> float:
        """The weight at which the expected kl is so many nats per image. Raises UserError where no weight gives it."""
        if not 0 < nats < math.inf:
            raise UserError(f"a budget must be a positive number of nats per image, not {nats}")
        low = high = self.collapse()
        if low == 0:
            raise UserError("no weight gives any kl, because the images of each digit are all alike: use other data")
        while self.rate(low) < nats:
            low, high = low / 10, low
        return _solved(lambda beta: self.rate(beta) - nats, low, high)

    # Water-filling knows a level θ, below which no direction is seen: β times the variance that the likelihood assumes,
    # which is 1 in its own metric.

    def _excess(self, excess: Tensor, beta: float) -> Tensor:
        """Between knots linear in log β, and 0 from the collapse on. Below the first knot it stays the same."""
        found = []
        ends = self.eigenvalues[:, 0].clamp(min=1e-9)  # 0, where all images of a class are alike, has no log
        for end, row in zip(ends.tolist(), excess.tolist(), strict=True):
            at, nats = zip(*sorted(zip((*KNOTS, end), (*row, 0.0), strict=True)), strict=True)
            found.append(np.interp(math.log(beta), np.log(at), nats))
        return self.shares.new_tensor(found)

    def _level(self, beta: float) -> float:
        """θ at a weight. Raises UserError unless the weight is positive."""
        if not 0 < beta < math.inf:
            raise UserError(f"the spectrum needs a KL weight above 0, not {beta}")
        if self.pixels is None:
            return beta
        top = float(self.eigenvalues.max())
        if beta >= self._weight(top):
            return beta * self._variance(top)
        return _solved(lambda level: beta * self._variance(level) - level, 0.0, top)

    def _weight(self, level: float) -> float:
        """The weight at a level θ."""
        return level if self.pixels is None else level / self._variance(level)

    def _variance(self, level: float) -> float:
        """σ²: the mean squared error of a pixel if every direction that pays keeps an error of θ, all others theirs."""
        errors = self.eigenvalues[:, : self.latents].clamp(max=level).sum(1)
        errors = errors + self.eigenvalues[:, self.latents :].sum(1)
        return max(float(self.shares @ errors) / (self.pixels or 1), LEAST_VARIANCE)


def of_split(train: Split, likelihood: str, pixels: Pixels, sigma: float, latents: int, solve: bool = True) -> Spectrum:
    """The spectrum of a split's images. sigma: of the gaussian likelihood.

    solve: a Bernoulli's own cross entropy, in some seconds on two cores. Without, its kl is that of the rule. Raises
    UserError where a class has no image, or the likelihood has no closed form.
    """
    check(likelihood)
    counts = torch.bincount(train.labels, minlength=CLASSES).tolist()
    for digit in (digit for digit, count in enumerate(counts) if count == 0):
        raise UserError(f"digit {digit} has no training images, so its spectrum is unknown: add some, or more data")
    variance = None if likelihood == "bernoulli" else torch.tensor(sigma**2)
    solved = latents if solve and variance is None else None

    def of(digit: int) -> OfClass:
        return of_class(train.of_class(digit).images, pixels, variance, solved)

    # On a CPU a thread for each class. On a GPU one: two must not load torch's linear algebra there at the same time.
    threads = torch.get_num_threads() if train.images.device.type == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool, one_thread():
        found = [*pool.map(of, range(CLASSES))]
    return Spectrum(
        torch.stack([part.eigenvalues for part in found]),
        torch.tensor(counts, dtype=torch.float64) / len(train),
        latents,
        PIXELS if likelihood.startswith("sigma_") else None,
        torch.stack([part.excess for part in found]) if solved else None,
        tuple((digit, knot) for digit, part in enumerate(found) for knot in part.unsettled),
    )


def expected(spectrum: Spectrum, weights: Sequence[float]) -> list[dict[str, float]]:
    """A row for each weight: `kl_weight`, `kl` (nats per image) and `active_units`."""
    return [{"kl_weight": beta, "kl": spectrum.rate(beta), "active_units": spectrum.active(beta)} for beta in weights]


def check(likelihood: str) -> None:
    """Raises UserError if a likelihood's spectrum is not known."""
    if likelihood not in SOLVED:
        raise UserError(
            f"the spectrum has no closed form for objective.likelihood {likelihood}: it knows {', '.join(SOLVED)}"
        )


class OfClass(NamedTuple):
    """eigenvalues: (D,) float64 on the CPU, from the largest to the smallest.

    excess: (KNOTS,), how much more kl a Bernoulli's own cross entropy gives there than the rule. Above the largest
    eigenvalue it is 0, since the collapse is that of the rule. unsettled: those of KNOTS where it was not solved well.
    """

    eigenvalues: Tensor
    excess: Tensor
    unsettled: list[float]


def of_class(images: Tensor, pixels: Pixels, variance: Tensor | None, latents: int | None = None) -> OfClass:
    """The spectrum of the images of one class; with latents, the excess of so many dimensions.

    images: (N, ...) uint8, or in [0, 1], D values each. The covariance is in units of `variance`, or of p (1 − p) for a
    Bernoulli, None, which is the curvature of its cross-entropy at the mean picture p, for grey pixels too. `binary`
    pixels are Bernoulli draws of the images: their variance is that of the images plus the mean of x (1 − x).
    """
    x = to_unit(images.flatten(1)).double()
    size, mean = x.shape[1], x.mean(0)
    varying = (x.amax(0) > x.amin(0)) if pixels == "grey" else mean * (1 - mean) > 0  # all others have eigenvalues of 0
    x, mean = x[:, varying], mean[varying]
    metric = (mean * (1 - mean)).clamp(min=FLOOR) if variance is None else variance.to(x).expand_as(mean)
    scaled = (x - mean) / metric.sqrt()
    covariance = scaled.T @ scaled / len(x)
    if pixels == "binary":
        covariance += torch.diag((x * (1 - x)).mean(0) / metric)
        x = torch.bernoulli(x[: bernoulli.IMAGES], generator=torch.Generator(x.device).manual_seed(0))
    values, directions = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    values = values.clamp(min=0)  # rounding may leave less
    excess, unsettled = torch.zeros(len(KNOTS), dtype=torch.float64), []
    few = x[: bernoulli.IMAGES].float()
    rule = values[:latents].float(), directions[:, :latents].float(), metric.float()
    for place, knot in enumerate(KNOTS if latents else ()):
        if (values > knot).any():
            kl, settled = bernoulli.rate(few, *rule, knot)
            excess[place] = kl - 0.5 * float((values[:latents] / knot).log().clamp(min=0).sum())
            unsettled += [] if settled else [knot]
    return OfClass(torch.cat([values, values.new_zeros(size - len(values))]).cpu(), excess, unsettled)


def _solved(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive below and negative above crosses 0."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2

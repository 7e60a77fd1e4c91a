"""The kl of a Bernoulli VAE with a linear decoder at its optimum, for images of one class.

The rule of spectrum.py is exact to second order around the mean picture. Here the cross entropy itself is minimised:
over the decoder's weights and each image's own posterior in turn, by Newton's method. No encoder and no sampling:
expectations over a Gaussian logit have a closed form, because a sigmoid is nearly a sum of two probits (Monahan &
Stefanski 1992).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

IMAGES = 300  # of a class
CHECKED = 5  # steps of each kind, after which the kl is compared with the one before them
TOLERANCE = 2e-3  # relative change of the kl in so many steps at which it has converged
STEPS = 500  # at most
FARTHEST = 5.0  # that one step may change a logit: a full step of Newton's can overshoot where pixels are nearly sure
PROBITS = ((0.43544203, 0.43526598), (0.56455797, 0.76848125))  # sigmoid(x) is Σ share · Φ(slope · x) to 0.0006
LEAST = 1e-6  # curvature of a pixel
RIDGE = 1e-3  # added to the curvature of the decoder's weights, which is nearly 0 for a pixel that is lit in one image


class State(NamedTuple):
    """decoder: (D, L + 1), each pixel's weights and its bias. Posteriors: mu (N, L) and covariance (N, L, L)."""

    decoder: Tensor
    mu: Tensor
    covariance: Tensor


def rate(images: Tensor, values: Tensor, directions: Tensor, metric: Tensor, beta: float) -> tuple[float, bool]:
    """kl at a weight β, nats per image, and whether it has settled; after STEPS it may still be off.

    images: (N, D) in [0, 1]. values, directions, metric: the largest eigenvalues λ (L,) of the covariance in units of
    `metric` (D,), from the largest on, and their vectors (D, L). The solution of that rule is where it starts.
    """
    paying = min(len(values), int((values > beta).sum()) + 1)
    state = _start(images, values[:paying], directions[:, :paying], metric, beta)
    found = math.nan
    for step in range(1, STEPS + 1):
        state = _with_decoder(images, _with_posteriors(images, state, beta))
        if step % CHECKED == 0:
            former, found = found, _kl(state)
            if abs(found - former) <= TOLERANCE * found:
                return found, True
    return found, False


def _kl(state: State) -> float:
    """Of the posteriors from N(0, I), nats per image."""
    spread = state.covariance.diagonal(dim1=1, dim2=2).sum(1) - torch.logdet(state.covariance)
    return float((spread + state.mu.square().sum(1) - state.mu.shape[1]).mean() / 2)


def _start(images: Tensor, values: Tensor, directions: Tensor, metric: Tensor, beta: float) -> State:
    """Probabilistic PCA: gains √(λ − β) along the eigenvectors, posteriors of variance β ÷ λ."""
    mean = images.mean(0)
    gains = (values - beta).clamp(min=beta / 50).sqrt()  # a direction that does not pay must be able to grow
    weights = directions * gains / metric.sqrt()[:, None]
    mu = ((images - mean) / metric.sqrt()) @ (directions * gains) / (gains.square() + beta)
    covariance = torch.diag(beta / (gains.square() + beta)).expand(len(images), -1, -1)
    return State(torch.cat([weights, mean.logit(1e-4)[:, None]], 1), mu, covariance)


def _with_posteriors(images: Tensor, state: State, beta: float) -> State:
    """A Newton step of each image's posterior."""
    weights = state.decoder[:, :-1]
    outer = _outer(weights)
    p, curvature = _moments(_with_one(state.mu) @ state.decoder.T, state.covariance.flatten(1) @ outer.T)
    precision = (curvature @ outer).view_as(state.covariance) / beta + torch.eye(weights.shape[1]).to(weights)
    covariance = torch.linalg.inv(precision)
    step = torch.bmm(covariance, ((images - p) @ weights / beta - state.mu)[:, :, None]).squeeze(2)
    return State(state.decoder, state.mu + _limited(step, step @ weights.T), covariance)


def _with_decoder(images: Tensor, state: State) -> State:
    """A Newton step of each pixel's weights. By Stein's lemma E[p z] = E[p] μ + E[p (1 − p)] Σ w."""
    z, decoder = _with_one(state.mu), state.decoder
    covariance, size = pad(state.covariance, (0, 1, 0, 1)), decoder.shape[1]
    p, curvature = _moments(z @ decoder.T, state.covariance.flatten(1) @ _outer(decoder[:, :-1]).T)
    spread = (curvature.T @ covariance.flatten(1)).view(-1, size, size)
    slope = (images - p).T @ z - torch.einsum("dij,dj->di", spread, decoder)
    bend = spread + (curvature.T @ _outer(z)).view_as(spread) + RIDGE * torch.eye(size).to(z)
    step = torch.linalg.solve(bend, slope)
    return state._replace(decoder=decoder + _limited(step, step @ z.T))


def _moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """E[p] and E[p (1 − p)] of p = sigmoid(logit), for a logit N(mean, variance).

    E[Φ(a · logit)] = Φ(a · mean ÷ √(1 + a² variance)), and p (1 − p) is the derivative of p.
    """
    p, curvature = torch.zeros_like(mean), torch.zeros_like(mean)
    for share, slope in PROBITS:
        scale = slope * torch.rsqrt(1 + slope**2 * variance)
        at = mean * scale
        p += share / 2 * (1 + torch.erf(at / math.sqrt(2)))
        curvature += share / math.sqrt(2 * math.pi) * scale * torch.exp(-at.square() / 2)
    return p, curvature.clamp(min=LEAST)


def _limited(step: Tensor, change: Tensor) -> Tensor:
    """Rows of a step, shortened so that none of the logits it changes, (rows, …), changes by more than FARTHEST."""
    return step * (FARTHEST / change.abs().amax(1).clamp(min=FARTHEST))[:, None]


def _outer(rows: Tensor) -> Tensor:
    """(N, K²): each row's products with itself."""
    return (rows[:, :, None] * rows[:, None, :]).flatten(1)


def _with_one(mu: Tensor) -> Tensor:
    return torch.cat([mu, torch.ones_like(mu[:, :1])], 1)

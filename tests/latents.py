"""Random numbers, a small model, and a known density over its latents."""

import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density

LABELS = torch.arange(10)


def model(log_var: float = -4.0, mu: float = 20.0) -> CVAE:
    """A small CVAE whose posteriors have this log_var, and means that spread by class (`mu` times the usual)."""
    built = build(Architecture(2, (16,), (16,), "concat", encoder_sees_label=True), 0)
    with torch.no_grad():
        built.mu.weight *= mu
        nn.init.zeros_(built.log_var.weight)
        nn.init.constant_(built.log_var.bias, log_var)
    return built


def density() -> Density:
    """Class 3 is a known mixture of two Gaussians; the others lie at their own digit."""
    weights = torch.tensor([1.0, 0.0]).repeat(10, 1)
    means = LABELS.float()[:, None, None].expand(10, 2, 2).clone()
    roots = (0.01 * torch.eye(2)).expand(10, 2, 2, 2).clone()
    weights[3] = torch.tensor([0.25, 0.75])
    means[3] = torch.tensor([[-4.0, 0.0], [4.0, 2.0]])
    roots[3] = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[0.5, 0.0], [-1.0, 0.3]]])
    return Density(weights, means, roots)


def black_and_white(count: int, seed: int = 0) -> Split:
    """Random images of black and of white pixels: grey, binary and thresholded ones are the same."""
    return Split(255 * torch.randint(0, 2, (count, 1, 28, 28), generator=source(seed)).byte(), torch.arange(count) % 10)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, in float64."""
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)

"""What an evaluation shows of a model, as arrays."""

from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.splits import Pixels, Split, to_unit
from pipeline.measure import bound
from pipeline.model.cvae import CVAE
from pipeline.model.density import Density, posteriors
from pipeline.model.samples import SAMPLERS, Sampler, Shown, decode, rows_of_digits, sample, sheet, traverse

COLUMNS = 10
DIGIT = 5  # the digit of the traversal
REACH = 3.0  # of the traversal, in either direction
STEPS = 11


class Sheets(NamedTuple):
    """Pictures are (H, W) uint8, dark ink on white.

    samples: of the chosen sampler, a row per digit; words says which. samplers: the same of both samplers and of real
    images. reconstructions: images, each beside its reconstruction. traversal: a row per active dimension of z, None
    without any. mu: posterior means (N, latent) of the images with `labels` (N,).
    """

    samples: np.ndarray
    words: str
    samplers: dict[str, np.ndarray]
    reconstructions: np.ndarray
    traversal: np.ndarray | None
    dimensions: list[int]
    mu: np.ndarray
    labels: np.ndarray


def sheets(model: CVAE, density: Density, split: Split, pixels: Pixels, sampler: Sampler, shown: Shown) -> Sheets:
    """All pictures, with the same noise for every model, so that pictures of two models can be compared."""
    digits = rows_of_digits(COLUMNS).to(split.labels.device)
    samplers = {"real": sheet(to_unit(split.images[split.first_rows(COLUMNS)]), COLUMNS)}
    samplers |= {name: sheet(sample(model, density, digits, name, seed=0), COLUMNS) for name in SAMPLERS}

    mu = posteriors(model, split, pixels).mu
    few = split.first_rows(COLUMNS // 2)
    pairs = torch.stack([to_unit(split.images[few]), decode(model, mu[few], split.labels[few])], 1)

    values = torch.linspace(-REACH, REACH, STEPS, device=mu.device)
    dimensions = bound.active_dimensions(mu).tolist()
    moved = [traverse(model, DIGIT, dimension, values) for dimension in dimensions]
    return Sheets(
        samples=sheet(sample(model, density, digits, sampler, 0, shown), COLUMNS),
        words=f"{sampler} sampler" + (", drawn pixels" if shown == "draw" else ""),
        samplers=samplers,
        reconstructions=sheet(pairs, COLUMNS),
        traversal=sheet(torch.cat(moved), STEPS) if moved else None,
        dimensions=dimensions,
        mu=mu.cpu().numpy(),
        labels=split.labels.cpu().numpy(),
    )

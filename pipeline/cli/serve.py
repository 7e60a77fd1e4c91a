"""The packaged model: a request in, images out.

MLflow imports this file from the model's own folder and calls `_load_pyfunc`; no other code of ours does.
"""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.base.errors import UserError
from pipeline.completion import model as completion
from pipeline.data.splits import CLASSES, SIDE
from pipeline.model import samples
from pipeline.stages.saved import Saved, kind, load_completer, load_cvae

if TYPE_CHECKING:
    import pandas as pd


USUAL: samples.Sampler = "fitted"
MOST_COMPLETIONS = 1000


class Generator:
    """A trained model that answers tables: a row is a picture asked for."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.density = saved.density

    def predict(self, frame: "pd.DataFrame", params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002
        """Images (N, 28, 28) float32 in [0, 1] for rows with a column `digit` (0…9).

        An optional column `seed` makes a row's picture repeatable, whatever else the request holds; without it every
        answer is new. An optional column `sampler` is fitted (also the default, since no params.yaml travels with
        the model) or prior.
        Raises UserError for any other value.
        """
        if "digit" not in frame:
            raise UserError("a column `digit` must say which digits are asked for")
        digits = frame["digit"].tolist()
        seeds = frame["seed"].tolist() if "seed" in frame else [secrets.randbits(63) for _ in digits]
        samplers = frame["sampler"].tolist() if "sampler" in frame else [USUAL] * len(digits)
        images = [self._draw(*row) for row in zip(digits, seeds, samplers, strict=True)]
        return np.stack(images) if images else np.empty((0, SIDE, SIDE), np.float32)

    def _draw(self, digit: Any, seed: Any, sampler: str) -> np.ndarray:
        if digit not in range(CLASSES):
            raise UserError(f"digit must be a whole number from 0 to {CLASSES - 1}, not {digit!r}")
        if seed != int(seed) or not 0 <= seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 on, not {seed!r}")
        if sampler not in samples.SAMPLERS:
            raise UserError(f"sampler must be one of {', '.join(samples.SAMPLERS)}, not {sampler!r}")
        label = torch.tensor([int(digit)])
        return samples.sample(self.saved.model, self.density, label, sampler, int(seed))[0, 0].numpy()


class Completer:
    """A trained model that completes pictures."""

    def __init__(self, model: completion.Completer) -> None:
        self.model = model

    def predict(self, pictures: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Completions (N, count, 28, 28) float32 in [0, 1] of pictures (N, 28, 28): ink from 0 to 1, thresholded at
        half, and −1 where hidden.

        params: `count` (8), `digit` to insist on (−1: none), `seed` (0). Those of a picture come likeliest first.
        Raises UserError for a picture that hides everything or nothing, and for any other value.
        """
        given = {"count": 8, "digit": -1, "seed": 0} | (params or {})
        count, digit, seed = (int(given[name]) for name in ("count", "digit", "seed"))
        if not 1 <= count <= MOST_COMPLETIONS:
            raise UserError(f"count must be from 1 to {MOST_COMPLETIONS:,}, not {count:,}")
        if digit not in range(-1, CLASSES):
            raise UserError(f"digit must be from 0 to {CLASSES - 1}, or −1 for none, not {digit}")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 on, not {seed}")
        pictures = np.asarray(pictures, np.float32)
        if pictures.shape[1:] != (SIDE, SIDE):
            raise UserError(f"pictures must be (N, {SIDE}, {SIDE}), not {pictures.shape}")
        hidden = pictures == -1
        if not (hidden | ((pictures >= 0) & (pictures <= 1))).all():
            raise UserError("a pixel must be from 0 to 1, or −1 where it is hidden")
        if (hidden.all((1, 2)) | ~hidden.any((1, 2))).any():
            raise UserError("a picture must hide something, as −1, and show something")
        told = None if digit == -1 else digit
        found = [
            completion.complete(self.model, torch.from_numpy(ink), torch.from_numpy(~veiled), told, count, seed).images
            for ink, veiled in zip((pictures >= 0.5).astype(np.float32), hidden, strict=True)
        ]
        return torch.stack(found).numpy() if found else np.empty((0, count, SIDE, SIDE), np.float32)


def _load_pyfunc(path: str) -> Generator | Completer:
    """What MLflow calls with the path of the weights inside the model's folder."""
    weights = Path(path)
    if kind(weights) == "completion":
        return Completer(load_completer(weights))
    return Generator(load_cvae(weights))

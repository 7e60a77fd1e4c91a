"""The packaged model: it answers requests with images.

MLflow imports this file from the model's own folder and calls `_load_pyfunc`. No other code of ours does.
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
from pipeline.tracking.package import bad_requests

if TYPE_CHECKING:
    import pandas as pd

DEFAULT: samples.Sampler = "fitted"
MOST_ROWS = 10_000  # of a request
MOST_COMPLETIONS = 1000  # of a picture
MOST_PICTURES = 10_000  # pictures × completions of a request
LAST_SEED = 2**63 - 1


class Generator:
    """A trained model that samples one image for each row of a table."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved

    def predict(self, frame: "pd.DataFrame", params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002
        """Images (N, 28, 28) float32 in [0, 1] for rows with a column `digit` (0…9).

        Optional columns: `seed` makes a row's image repeatable, whatever the other rows are; without it every answer
        is new. `sampler` is fitted (default) or prior. Raises UserError for any other value.
        """
        if "digit" not in frame:
            raise UserError("the table needs a column `digit`")
        digits = frame["digit"].tolist()
        if len(digits) > MOST_ROWS:
            raise UserError(f"a request may have {MOST_ROWS:,} rows, not {len(digits):,}")
        seeds = frame["seed"].tolist() if "seed" in frame else [secrets.randbits(63) for _ in digits]
        samplers = frame["sampler"].tolist() if "sampler" in frame else [DEFAULT] * len(digits)
        images = [self._sample(*row) for row in zip(digits, seeds, samplers, strict=True)]
        return np.stack(images) if images else np.empty((0, SIDE, SIDE), np.float32)

    def _sample(self, digit: Any, seed: Any, sampler: str) -> np.ndarray:
        label = torch.tensor([_whole("digit", digit, 0, CLASSES - 1)])
        if sampler not in samples.SAMPLERS:
            raise UserError(f"sampler must be one of {', '.join(samples.SAMPLERS)}, not {sampler!r}")
        number = _whole("seed", seed, 0, LAST_SEED)
        return samples.sample(self.saved.model, self.saved.density, label, sampler, number)[0, 0].numpy()


class Completer:
    """A trained model that completes partly hidden pictures."""

    def __init__(self, model: completion.Completer) -> None:
        self.model = model

    def predict(self, pictures: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Completions (N, count, 28, 28) float32 in [0, 1] of pictures (N, 28, 28), the most likely first.

        A pixel is −1 where hidden, else ink from 0 to 1, which is thresholded at 0.5.
        params: `count` (8), `digit` that it must be (−1: any), `seed` (0).
        Raises UserError for a picture with everything or nothing hidden, and for any other value.
        """
        given = {"count": 8, "digit": -1, "seed": 0} | (params or {})
        count = _whole("count", given["count"], 1, MOST_COMPLETIONS)
        digit = _whole("digit (−1: any)", given["digit"], -1, CLASSES - 1)
        seed = _whole("seed", given["seed"], 0, LAST_SEED)
        pictures = np.asarray(pictures, np.float32)
        if pictures.shape[1:] != (SIDE, SIDE):
            raise UserError(f"pictures must be (N, {SIDE}, {SIDE}), not {pictures.shape}")
        if len(pictures) * count > MOST_PICTURES:
            raise UserError(
                f"a request may ask for {MOST_PICTURES:,} completions in all, not {len(pictures) * count:,}"
            )
        hidden = pictures == -1
        if not (hidden | ((pictures >= 0) & (pictures <= 1))).all():
            raise UserError("a pixel must be from 0 to 1, or −1 where it is hidden")
        if (hidden.all((1, 2)) | ~hidden.any((1, 2))).any():
            raise UserError("each picture needs hidden pixels (−1) and visible ones")
        label = None if digit == -1 else digit
        found = [
            completion.complete(self.model, torch.from_numpy(ink), torch.from_numpy(seen), label, count, seed).images
            for ink, seen in zip((pictures >= 0.5).astype(np.float32), ~hidden, strict=True)
        ]
        return torch.stack(found).numpy() if found else np.empty((0, count, SIDE, SIDE), np.float32)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    try:
        fits = low <= value <= high and value == int(value)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return int(value)


class Served:
    """What MLflow's server asks. A bad request is its own kind of error: any other one gets a stack trace there."""

    def __init__(self, model: Generator | Completer) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """What the model predicts. Raises MlflowException with one sentence, which the server answers with 400."""
        with bad_requests():
            return self.model.predict(data, params)


def _load_pyfunc(path: str) -> Served:
    """MLflow calls this with the path of the weights inside the model's folder."""
    weights = Path(path)
    if kind(weights) == "completion":
        return Served(Completer(load_completer(weights)))
    return Served(Generator(load_cvae(weights)))

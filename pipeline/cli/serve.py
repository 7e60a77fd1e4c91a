"""The packaged model: it answers requests with pictures.

MLflow imports this file from the model's own folder and calls `_load_pyfunc`. No other code of ours does.
"""

import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic.dataclasses
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.params import RULES, parse
from pipeline.base.paths import COMPLETER, CURVE
from pipeline.completion import gibbs
from pipeline.completion import model as completion
from pipeline.completion.masks import named_masks
from pipeline.data.splits import CLASSES, SIDE
from pipeline.model import samples
from pipeline.model.cvae import CVAE
from pipeline.model.density import Density
from pipeline.stages.saved import kind, load_completer, load_curve, load_cvae
from pipeline.tracking.package import answer_by, bad_requests

if TYPE_CHECKING:
    import pandas as pd

MOST, MOST_PICTURES = 100, 1000  # requests that come together, and pictures that they may ask for in all
MODELS = 16  # of the curve that are kept ready
MASKS = named_masks()


def _mask(value: Any) -> Any:
    """Visible pixels (28, 28) bool: the mask of a name, or where a picture is 0. Raises ValueError."""
    if isinstance(value, str):
        if value not in MASKS:
            raise ValueError(f"mask must be 28 rows of 28 numbers (1: hidden), or one of {', '.join(MASKS)}")
        return MASKS[value]
    hidden = _square("mask", value, "numbers (1: hidden), or a name such as top")
    if not ((hidden == 0) | (hidden == 1)).all() or hidden.min() == hidden.max():
        raise ValueError("mask must have 1 where a pixel is hidden, 0 where it is visible, and both somewhere")
    return hidden == 0


def _square(name: str, value: Any, of: str) -> Tensor:
    """Pixels (28, 28) from 0 to 1. Raises ValueError."""
    try:
        pixels = np.array(value)
    except ValueError:  # rows of several lengths
        pixels = np.empty(0)
    fits = pixels.shape == (SIDE, SIDE) and pixels.dtype.kind in "biuf" and ((pixels >= 0) & (pixels <= 1)).all()
    if not fits:
        raise ValueError(f"{name} must be {SIDE} rows of {SIDE} {of}")
    return torch.from_numpy(pixels.astype(np.float32))


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=RULES)
class Request:
    """What a client asks for: samples of a digit, or completions of an image under a mask."""

    digit: Annotated[int | None, Field(ge=0, lt=CLASSES)] = None
    kl_weight: Annotated[float | None, Field(gt=0)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    sampler: samples.Sampler = "fitted"
    count: Annotated[int | None, Field(ge=1, le=MOST_PICTURES)] = None
    image: Annotated[Any, AfterValidator(lambda value: _square("image", value, "numbers from 0 to 1"))] = None
    mask: Annotated[Any, AfterValidator(_mask)] = None

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise ValueError("image and mask are needed together, for completions")
        if self.image is None and self.digit is None:
            raise ValueError("digit is missing: it is needed for samples, as image and mask are for completions")


class Served:
    """A trained model, and what lies beside it in its folder: the curve's network, and the completer."""

    def __init__(self, weights: Path) -> None:
        """weights: of a CVAE, or of a completer alone."""
        folder = weights.parents[1]
        beside = weights if kind(weights) == "completion" else folder / COMPLETER.name
        self.completer = load_completer(beside) if beside.exists() else None
        self.own, self.kl_weight = None, None
        if beside != weights:
            saved = load_cvae(weights)
            self.own, self.kl_weight = (saved.model, saved.density), saved.params["objective"]["kl_weight"]
        self.curve = folder / CURVE.name if (folder / CURVE.name).exists() else None
        if self.curve:
            self.network, self.densities = load_curve(self.curve)
            self.at = lru_cache(MODELS)(self._at)

    def predict(
        self, data: "pd.DataFrame | list[Any]", params: Mapping[str, Any] | None = None  # noqa: ARG002 (MLflow's)
    ) -> list[np.ndarray]:  # fmt: skip
        """An answer for each request: an image (28, 28) float32 in [0, 1]; with `count`, so many (count, 28, 28).

        data: mappings with the fields of Request, or a table with a row for each. A request with a seed always has the
        same answer, whatever the others are. Raises MlflowException, which MLflow's servers answer with 400.
        """
        if not isinstance(data, list):
            data = [row.dropna().to_dict() for _, row in data.rename(columns=str).astype(object).iterrows()]
        with bad_requests():
            return self.answers(data)

    def answers(self, values: list[Any]) -> list[np.ndarray]:
        """The same for mappings. Raises UserError."""
        if len(values) > MOST:
            raise UserError(f"at most {MOST} requests may come at once, not {len(values):,}: `count` asks for more")
        requests = [parse(Request, value, f"inputs[{place}]") for place, value in enumerate(values)]
        if (pictures := sum(request.count or 1 for request in requests)) > MOST_PICTURES:
            raise UserError(f"an answer may have {MOST_PICTURES:,} pictures, not {pictures:,}")
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> np.ndarray:
        count = request.count or 1
        seed = secrets.randbits(63) if request.seed is None else request.seed
        if request.image is None:
            labels = torch.tensor([request.digit] * count)
            images = samples.sample(*self._model(request.kl_weight), labels, request.sampler, seed).squeeze(1)
        elif self.completer is not None and request.kl_weight is None:
            ink = (request.image >= 0.5).float()
            images = completion.complete(self.completer, ink, request.mask, request.digit, count, seed).images
        else:
            model, _ = self._model(request.kl_weight)
            images = gibbs.complete(model, request.image, request.mask, request.digit, count, seed)
        found: np.ndarray = images.numpy()
        return found if request.count else found[0]

    def _model(self, kl_weight: float | None) -> tuple[CVAE, Density]:
        """The model's own, or that of the curve at a weight, and the density of its latents. Raises UserError."""
        if self.own is None:
            raise UserError("this model completes pictures: give image and mask, and no kl_weight")
        if kl_weight is None or kl_weight == self.kl_weight:
            return self.own
        if self.curve is None:
            raise UserError(f"kl_weight must be {self.kl_weight:g}: no curve was trained when this model was promoted")
        return self.at(kl_weight)

    def _at(self, kl_weight: float) -> tuple[CVAE, Density]:
        try:
            return self.network.at(kl_weight), self.densities.at(kl_weight)
        except ValueError as error:
            raise UserError(f"kl_weight {error}") from None


def _load_pyfunc(path: str) -> Served:
    """MLflow calls this with the path of the weights inside the model's folder."""
    served = Served(Path(path))
    answer_by(served.answers)
    return served

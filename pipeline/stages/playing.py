"""What the page to play with holds: a multi-rate CVAE, densities that travel with the KL weight, and runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.polynomial.chebyshev import chebinterpolate
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.base.files import write_text
from pipeline.base.params import Number, flat, load_key
from pipeline.base.paths import BEST, CURVE, CURVE_TABLE, PREPARED, SPECTRUM, STUDY_SHEETS, TRIALS
from pipeline.data.splits import Split
from pipeline.model import multirate
from pipeline.model.density import Densities, Density
from pipeline.model.multirate import MultiRate, Told
from pipeline.model.samples import strip, symmetric_root
from pipeline.show.page import page, png, steps, text
from pipeline.stages.saved import check_curve, load_curve, load_cvae, load_json, load_splits, load_table

TERMS = 20  # polynomials: what a layer is told is then right to 3e-4
OF_DECODER, OF_ENCODER, OF_DENSITY = 15, 11, 12  # bits of a number: pixels to 1e-3, reconstructions to 1e-2
OF_SAMPLES = ("frechet", "class_accuracy", "diversity")
FIGURES = [f"validation/{name}" for name in ("kl", "reconstruction", "active_units")] + [
    f"validation/{sampler}/{name}" for sampler in ("prior", "fitted") for name in OF_SAMPLES
]
OF_USE = {"draw_fitted": "fitted", "draw_prior": "prior"}  # the sampler of each use of the study


CAN_SHOW = {"model.architecture": "mlp", "model.prior": "standard", "objective.likelihood": "bernoulli"}


class NotShown(UserError):
    """The page's program can't draw what this network draws."""


@torch.no_grad()
def network(model: MultiRate) -> dict[str, Any]:
    """The layers as the page reads them. Raises NotShown.

    What a layer is told of the KL weight is a sum of Chebyshev polynomials in log β.
    """
    cvae, (architecture, likelihood, _) = model.cvae, model.settings
    found = flat({"model": architecture, "objective": {"likelihood": likelihood}})
    for key, needed in CAN_SHOW.items():
        if found[key] != needed:
            raise NotShown(f"the page can't show a network with {key} {found[key]}: it needs {needed}")
    parts: dict[str, Any] = {
        "condition": [part for part in cvae.condition.modules() if isinstance(part, Told)],
        "encoder": [part for part in cvae.encoder.modules() if isinstance(part, Told)],
        "mu": cvae.mu,
        "log_var": cvae.log_var,
        "decoder": [part for part in cvae.decoder if isinstance(part, Told)],
        "pixels": cvae.pixels,
    }
    middle, half = np.mean(np.log(model.span)), np.diff(np.log(model.span))[0] / 2

    def told(places: np.ndarray) -> np.ndarray:
        """All scales and shifts, side by side, at places from −1 (the lowest weight) to 1."""
        logs = torch.as_tensor(middle + half * places, dtype=model.dtype)
        context = model.context(multirate.condition(torch.zeros(len(logs)), logs))
        return torch.cat([part for change in context.changes for part in change], 1).double().numpy()

    sums = chebinterpolate(told, TERMS - 1)  # type: ignore[type-var]  # of many functions at once: (TERMS, outputs)
    terms = iter(np.split(sums, np.cumsum(model.sizes)[:-1], axis=1))
    changes = {id(part): (next(terms), next(terms)) for part in cvae.modules() if isinstance(part, Told)}

    def kept(part: Told | list[Told], bits: int) -> Any:
        if isinstance(part, list):
            return [kept(one, bits) for one in part]
        scale, shift = changes[id(part)]
        plain: nn.Linear = part.layer
        weights, bias = plain.weight.detach().numpy(), plain.bias.detach().numpy()
        # (W x + b) · scale + shift: the shift takes the bias in.
        return {"weights": steps(weights.T, bits), "scale": steps(scale, 16), "shift": steps(shift + bias * scale, 16)}

    return {"range": list(model.span), "conditioning": architecture.conditioning} | {
        name: kept(part, OF_DECODER if name in ("condition", "decoder", "pixels") else OF_ENCODER)
        for name, part in parts.items()
    }


def packed(fitted: Densities) -> dict[str, Any]:
    """Densities as the page reads them; of each class also mean and symmetric root of the covariance, for styles.

    Those of every other weight, and of the last: a component changes little from one weight to the next.
    """
    count = len(fitted.kl_weights)
    kept = [*range(0, count - 1, 2), count - 1]
    density = Density(*(part[kept] for part in fitted.stacked))
    means, covariances = density.moments()
    rows, columns = torch.tril_indices(*density.roots.shape[-2:])
    tensors: dict[str, Tensor] = {
        "shares": density.weights,
        "means": density.means,
        "roots": density.roots[..., rows, columns],
        "style_means": means,
        "style_roots": symmetric_root(covariances),
    }
    return {"weights": fitted.kl_weights[kept].tolist()} | {
        name: steps(tensor.numpy(), OF_DENSITY) for name, tensor in tensors.items()
    }


def examples(split: Split) -> list[dict[str, Any]]:
    """One image of each digit, to start a drawing from."""
    images = split.images[split.first_rows(1)]
    return [{"label": digit, "pixels": text(image.numpy().tobytes())} for digit, image in enumerate(images)]


def content(
    model: MultiRate,
    fitted: Densities,
    validation: Split,
    curve: pd.DataFrame,
    spectrum: Mapping[str, Any],
    best: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All that the page reads. Figures are those of validation; curve, spectrum, best: as their stages wrote them."""
    figures = {str(name).removeprefix("validation/"): list(column) for name, column in curve.items()}
    weights = figures["kl_weight"]
    uses = best.get("uses", {})
    intervals = {sampler: uses[use]["interval"] for use, sampler in OF_USE.items() if use in uses}
    return {
        "weight": load_key(Number, "objective", "kl_weight"),
        "network": network(model),
        "densities": packed(fitted),
        "curve": figures,
        "collapse": spectrum.get("collapse"),  # none, for some likelihoods
        "intervals": intervals,
        "examples": examples(validation),
        "runs": list(runs),
        "figures_words": f"Measured at {len(weights)} weights on {len(validation):,} validation images.",
        "about": "Made by dvc repro explore: one multi-rate CVAE, trained on MNIST for all weights at once. Figures "
        "and fitted mixtures between the measured weights are interpolated. Completions are pseudo-Gibbs samples of "
        "the same network (Rezende 2014).",
    }


def write_page(out: Path, more: Mapping[str, Path] | None = None) -> None:
    """Writes the page with the study's trials, and with more models: files by name. Raises UserError."""
    best = load_json(BEST, "run `dvc repro tune` first")
    check_curve(CURVE, best.get("data"), BEST)
    model, fitted = load_curve(CURVE)
    others = [_of_model(name, path, model.latent_size) for name, path in (more or {}).items()]
    (validation,) = load_splits(PREPARED, "validation")
    curve = load_table(CURVE_TABLE, "run `dvc repro curve` first", "kl_weight", *FIGURES)
    spectrum = load_json(SPECTRUM, "run `dvc repro spectrum` first")
    html = page(content(model, fitted, validation, curve, spectrum, best, [*of_study(), *others]))
    write_text(out, html)
    print(f"{out} written, {len(html) / 1e6:.1f} MB: open it in a browser")


def _of_model(name: str, path: Path, latents: int) -> dict[str, Any]:
    model, density, params = load_cvae(path)
    if model.latent_size != latents:
        raise UserError(
            f"{name} has {model.latent_size} latent dimensions, and the page's network {latents}, so they can't have "
            "the same latents: leave it out, or show it by `cvae report --html`"
        )
    words = f"β = {params['objective']['kl_weight']:g}, {name}"
    return {"name": words, "words": "", "given": True, "png": png(strip(model, density))}


def of_study() -> list[dict[str, str]]:
    """The samples of the study's trials, from the lowest weight to the highest; not of those that failed."""
    trials = load_table(TRIALS, "run `dvc repro tune` first", "trial", "validation/fitted/frechet", gaps=True)
    frechet = dict(zip(trials["trial"], trials["validation/fitted/frechet"], strict=True))
    found = []
    for path in STUDY_SHEETS.glob("*.png"):
        number, weight = path.stem.split("_")
        if int(number) in frechet:
            words = f"trial {number}, fitted frechet {frechet[int(number)]:.3g}"
            found.append((float(weight), {"name": f"β = {weight}", "words": words, "png": text(path.read_bytes())}))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]

"""`cvae report`: the headline figures of the last evaluation."""

import json
from pathlib import Path
from typing import Any

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.paths import BEST, DOCTOR, FIGURES, METRICS

OF_SAMPLES = ("class_accuracy", "diversity", "frechet", "coverage")
OF_FIT = ("reconstruction", "kl", "elbo", "nll", "active_units", "bits_per_dimension")


def report() -> None:
    """Show the headline figures of the last evaluation."""
    figures = _read(METRICS)
    if figures is None:
        raise UserError(f"{METRICS} not found: run `dvc repro` first")
    if "protocol" not in figures:
        raise UserError(f"{METRICS} is no evaluation of this project: run `dvc repro evaluate`")
    protocol = figures["protocol"]
    console.table(
        f"Samples, measured on {protocol['images']:,} {protocol['split']} images",
        ("sampler", *OF_SAMPLES),
        [(name, *(figures[name][column] for column in OF_SAMPLES)) for name in ("prior", "fitted", "real")],
        note="real: training images in place of samples, the best that samples could reach",
    )
    fit = [name for name in OF_FIT if name in figures]
    console.table(
        f"Fit, nats per image ({protocol['pixels']} pixels, nll with k = {protocol['nll_draws']})",
        ("β", *fit),
        [(f"{protocol['kl_weight']:g}", *(figures[name] for name in fit))],
    )
    if figures["collapsed"]:
        print("COLLAPSED: the latents are unused, or all samples of a class look alike. Lower the KL weight.\n")
    if diagnosis := _read(DOCTOR):
        print(f"Doctor     {diagnosis['verdict']}: `cvae doctor` shows the figures and what to change")
    if best := _read(BEST):
        found = f"β = {best['kl_weight']:.3g} is best, with {console.figures(best['values'])} on validation"
        print(f"Study      {found} (`cvae promote` writes it into params.yaml)")
    print(
        f"Look at    {FIGURES}/samplers.png: samples of every digit, beside real ones\n"
        "Compare    cvae ui: every run with its curves, figures and samples\n"
        "Try        dvc exp run -S objective.kl_weight=1, then dvc metrics diff"
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file's object; None where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken: delete it and run `dvc repro`")
    return content

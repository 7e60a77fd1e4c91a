"""`cvae weight`: what the KL weight of any loss is in nats per image."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.paths import SPECTRUM
from pipeline.stages.saved import load_json

if TYPE_CHECKING:
    from pipeline.weight.convert import Loss

Over = Literal["sum", "mean"]
Reconstruction = Literal["bce", "mse", "half-mse", "l1"]
ERRORS = {"bce": "BCE", "mse": "squared error", "half-mse": "½ squared error", "l1": "absolute error"}
REDUCED = {"sum": "summed", "mean": "averaged"}


def weight(
    w: Annotated[float | None, typer.Option("--weight", metavar="W", help="the weight as it is written")] = None,
    like: Annotated[str | None, typer.Option(metavar="NAME", help="a known loss; `--like list` shows them")] = None,
    reconstruction: Annotated[Reconstruction | None, typer.Option(help="half-mse: with the factor ½")] = None,
    over_pixels: Annotated[Over | None, typer.Option(help="the reconstruction over an image's values")] = None,
    over_batch: Annotated[Over | None, typer.Option(help="the reconstruction over the batch")] = None,
    kl_over_latents: Annotated[Over | None, typer.Option(help="the KL over latent dimensions")] = None,
    kl_over_batch: Annotated[Over | None, typer.Option(help="the KL over the batch")] = None,
    factor: Annotated[float | None, typer.Option(metavar="F", help="of the KL, such as batch ÷ data set")] = None,
    pixels: Annotated[int | None, typer.Option(min=1, metavar="N", help="values of an image, all colours")] = None,
    latents: Annotated[int | None, typer.Option(min=1, metavar="N", help="latent dimensions")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="images of a batch")] = None,
    sigma: Annotated[float, typer.Option(metavar="S", help="an MSE is also given at this σ of pixels")] = 0.1,
    beta: Annotated[float | None, typer.Option(metavar="B", help="the other way: find the weight with this β")] = None,
    article: Annotated[float | None, typer.Option(metavar="W", help="short for --like article --weight W")] = None,
) -> None:
    """Convert the KL weight of any loss to β, or back.

    β is in nats per image: 1 is the evidence lower bound.
    What is not given is as in the loss of --like. Without --like: a BCE and a KL that are sums, 784 pixels, 16 latents,
    batches of 128.

    \b
    cvae weight --like pytorch-vae
    cvae weight --like list
    cvae weight --weight 0.1 --reconstruction mse --over-pixels mean
    cvae weight --like keras --beta 0.2
    cvae weight --article 1e-5 --batch-size 128
    """
    if like == "list":
        listed(sigma)
        return
    shape = _given(
        reconstruction=reconstruction, over_pixels=over_pixels, over_batch=over_batch,
        kl_over_latents=kl_over_latents, kl_over_batch=kl_over_batch, factor=factor, pixels=pixels, latents=latents,
    )  # fmt: skip
    check({"--weight": w, "--beta": beta, "--article": article}, like, factor, sigma)
    # Without a loss, --beta asks for the article's weight.
    name = "article" if article is not None or (beta is not None and not shape and not like) else like
    loss = assembled(name, shape | _given(weight=article if w is None else w, batch_size=batch_size))
    if beta is not None:
        loss = loss.at(beta)
        print(f"w = {loss.weight:.6g}   (the weight to write in this loss)")
    explain(loss, sigma)
    if name == "article" and not shape and beta is None:
        readings(loss.weight, loss.batch_size, sigma)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def check(ways: Mapping[str, float | None], like: str | None, factor: float | None, sigma: float) -> None:
    """Raises UserError unless the options say one thing, in numbers that a weight can have."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1 or not (given or like) or ("--article" in given and like):
        raise UserError("give one of --weight, --like, --article and --beta; see `cvae weight --help`")
    for name, value in ways.items():
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name} must be a finite number of at least 0, not {value}")
    for name, value in (("--factor", factor), ("--sigma", sigma)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be a finite number above 0, not {value}")


def assembled(name: str | None, changes: Mapping[str, Any]) -> "Loss":
    """The loss of a convention, or one of sums, with the changes. Raises UserError."""
    from pipeline.weight.convert import CONVENTIONS, Loss

    if name is None:
        return replace(Loss(0.0), **changes)
    if name not in CONVENTIONS:
        raise UserError(f"--like {name} is not known: give one of {', '.join(CONVENTIONS)}")
    console.say(f"{name}: {CONVENTIONS[name].said}")
    return replace(CONVENTIONS[name].loss, **changes)


def explain(loss: "Loss", sigma: float) -> None:
    """Prints the loss, its β, the σ that it implies, and why."""
    from pipeline.weight.convert import SPREAD

    beta, first = said(loss.beta), SPREAD[loss.reconstruction]
    if first is None or loss.beta == 0:
        print(f"β = {beta}   (objective.kl_weight)")
    else:
        spread, noun = said(loss.spread or 0.0), "Laplace noise of scale" if loss.reconstruction == "l1" else "σ ="
        print(f"β = {beta}   with {noun} {first:.3g}, where the {ERRORS[loss.reconstruction]} is in nats")
        print(f"β = 1   with {noun} {spread}: as an evidence lower bound, the loss assumes errors of this size")
        print(f"β = {said(loss.beta_at(sigma))}   with {noun} {sigma:g} (--sigma)")
    console.say(why(loss))
    if expectation := expected(loss):
        console.say(expectation)


def why(loss: "Loss") -> str:
    """One sentence: the loss, and where each factor of β comes from."""
    both = loss.over_batch == loss.kl_over_batch  # the batch then weighs both terms alike
    images = "" if both else f"{loss.batch_size} images"
    error = over(loss.over_pixels, f"{loss.pixels:,} values", loss.over_batch, images)
    kl = over(loss.kl_over_latents, f"{loss.latents:,} latents", loss.kl_over_batch, images)
    beta = "w"
    beta += f" · {loss.factor:g}" if loss.factor != 1 else ""
    beta += f" · {loss.pixels}" if loss.over_pixels == "mean" else ""
    beta += f" ÷ {loss.latents}" if loss.kl_over_latents == "mean" else ""
    beta += "" if both else f" {'·' if loss.over_batch == 'mean' else '÷'} {loss.batch_size}"
    hidden = "both terms are reduced alike, so" if beta == "w" else "a mean hides a factor, so"
    return (
        f"The loss is [{ERRORS[loss.reconstruction]}, {error}] + w · [KL, {kl}]: {hidden} β = {beta} = "
        f"{said(loss.beta)} for w = {said(loss.weight)}, where β = 1 is the evidence lower bound."
    )


def expected(loss: "Loss") -> str:
    """What the spectrum of the training images expects of the loss; empty where it was not computed for such a loss."""
    import numpy as np

    from pipeline.data.splits import PIXELS

    if not SPECTRUM.exists():
        return ""
    found = load_json(SPECTRUM, "run `dvc repro spectrum`")
    rows = found.get("expected", [])
    if loss.reconstruction != "bce" or loss.pixels != PIXELS or found.get("likelihood") != "bernoulli" or not rows:
        return ""
    begins = f"The spectrum of the training images ({found['pixels']} pixels, {found['latent_size']} latents)"
    if loss.beta >= found["collapse"]:
        return f"{begins} expects a collapse: no latent pays for itself above β = {said(found['collapse'])}."
    weights = [row["kl_weight"] for row in rows]
    if not weights[0] <= loss.beta <= weights[-1]:
        return ""
    kl = np.interp(math.log(loss.beta), np.log(weights), [row["kl"] for row in rows])
    active = np.interp(math.log(loss.beta), np.log(weights), [row["active_units"] for row in rows])
    return f"{begins} expects a kl of {kl:.1f} nats, and {active:.0f} latents in use."


def over(first: Over, values: str, second: Over, images: str) -> str:
    """`summed over 8 latents and averaged over 128 images`."""
    again = "" if first == second else f"{REDUCED[second]} over "
    return f"{REDUCED[first]} over {values}" + (f" and {again}{images}" if images else "")


def said(value: float) -> str:
    """A weight: two digits after the point, none from 1,000 on, four significant ones where it is small."""
    if 0 < value < 0.1:
        return f"{value:.4g}".replace("e-0", "e-")
    return f"{value:,.0f}" if value >= 1000 or value == 0 else f"{value:.2f}"


def readings(weight: float, batch_size: int, sigma: float) -> None:
    """Prints what the article's weight is under every reading of its text."""
    from pipeline.weight.convert import article_readings

    title = f"The article does not show its criterion: w = {said(weight)} by what it may be"
    note = f"mean: over 784 pixels and {batch_size} images; KL summed or averaged: over these images"
    losses = {name: replace(loss, weight=weight, batch_size=batch_size) for name, loss in article_readings().items()}
    print()
    _table(title, ["criterion, KL"], [([name], loss) for name, loss in losses.items()], sigma, note)


def listed(sigma: float) -> None:
    """Prints all conventions."""
    from pipeline.weight.convert import CONVENTIONS

    rows = [([name, said(loss.weight), loss.reconstruction], loss) for name, (loss, _) in CONVENTIONS.items()]
    title, note = "Known losses, at their own weights and sizes", "docs/weights.md has the sources"
    _table(title, ["name", "w", "error"], rows, sigma, note)


def _table(title: str, headings: list[str], rows: "list[tuple[list[str], Loss]]", sigma: float, note: str) -> None:
    """A row for each loss: its words, β, the σ at which it is 1, and β at another σ; a cross entropy has no σ."""
    cells = []
    for words, loss in rows:
        of_sigma = ["", ""] if loss.spread is None else [f"{loss.spread:.3g}", said(loss.beta_at(sigma))]
        cells.append([*words, said(loss.beta), *of_sigma])
    console.table(title, [*headings, "β", "σ at β = 1", f"β at σ = {sigma:g}"], cells, note)

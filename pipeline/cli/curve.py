"""What every KL weight gives: `cvae spectrum` before training, `cvae curve` and `cvae explore` after one training."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.base import console
from pipeline.base.paths import BEST, CURVE, CURVE_TABLE, EXPLORE, SEEDS

SHOWN = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
COLUMNS = (
    "reconstruction", "kl", "elbo", "active_units", "fitted/frechet", "fitted/class_accuracy", "fitted/diversity",
    "prior/frechet", "prior/class_accuracy", "prior/diversity",
)  # fmt: skip
RUNS = "models to show beside the study's trials: safetensors files, or runs:/RUN_ID of MLflow"


def spectrum(
    nats: Annotated[float | None, typer.Option(metavar="N", help="a budget: say at which weight the kl is N")] = None,
    latents: Annotated[int | None, typer.Option(min=1, metavar="L", help="in place of model.latent_size")] = None,
) -> None:
    """Say what each KL weight can give, before training.

    It trains nothing: docs/spectrum.md says how, and how far it can be trusted.

    \b
    cvae spectrum
    cvae spectrum --nats 20
    """
    from pipeline.base.params import load
    from pipeline.model.cvae import ModelParams, resolve
    from pipeline.stages.spectrum import solved
    from pipeline.training.objective import ObjectiveParams
    from pipeline.weight.spectrum import expected

    aim = load(ObjectiveParams, "objective")
    latents = latents or resolve(load(ModelParams, "model")).latent_size
    found = solved(aim, latents)
    if nats is not None:
        beta = found.weight_for(nats)
        print(f"The expected kl is {nats:g} nats per image at β = {beta:.3g}, with {latents} latents.")
        return
    weights = found.collapses().tolist()
    collapse = [*((str(digit), weight) for digit, weight in enumerate(weights)), ("all", max(weights))]
    console.table("Collapse: the KL weight above which the latents of a class are unused", ("digit", "β"), collapse)
    columns = ("β", "expected kl, nats per image", "active latents")
    rows = expected(found, SHOWN)
    cells = [(f"{row['kl_weight']:g}", round(row["kl"], 2), row["active_units"]) for row in rows]
    console.table(f"With {latents} latents, {aim.likelihood} on {aim.pixels} pixels", columns, cells)
    print(f"A budget: `cvae spectrum --nats 20` ({found.weight_for(20):.3g} here).")


def curve(
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="draw it, with the study's trainings")] = None,
) -> None:
    """Show what one training says of every weight.

    Measured on validation.

    \b
    cvae curve
    cvae curve --out curve.png
    """
    from pipeline.stages.saved import check_curve, load_json, load_table
    from pipeline.weight.curve import best_weights

    if out is not None and SEEDS.exists():
        check_curve(CURVE, load_json(BEST, "run `dvc repro tune` first").get("data"), BEST)
    names = ["kl_weight", *(f"validation/{name}" for name in COLUMNS)]
    table = load_table(CURVE_TABLE, "run `dvc repro curve` first", *names)
    console.table("One network at every KL weight, on validation", ("β", *COLUMNS), table[names].to_numpy().tolist())
    for sampler, weight in best_weights(table).items():
        print(f"Lowest frechet with the {sampler} sampler: β = {weight:g}")
    if out is not None:
        import pandas as pd

        from pipeline.show.curve import curve_figure
        from pipeline.show.style import save

        save(curve_figure(table, dedicated=pd.read_csv(SEEDS) if SEEDS.exists() else None), out)
        print(f"{out} written")


def explore(
    runs: Annotated[list[str] | None, typer.Option("--runs", metavar="MODEL", help=RUNS)] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="the file to write", show_default=False)] = EXPLORE,
) -> None:
    """Write the page that slides the KL weight.

    All runs are drawn from the same latents, so each must have as many as the curve's network.

    \b
    cvae explore
    cvae explore --runs runs:/RUN_ID --runs models/cvae.safetensors
    """
    from pipeline.cli.options import model_file
    from pipeline.stages.playing import write_page

    write_page(out, {name: model_file(name) for name in runs or []})

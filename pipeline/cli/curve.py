"""`cvae curve` shows what one training says of every KL weight."""

from pathlib import Path
from typing import Annotated

import typer

COLUMNS = (
    "reconstruction", "kl", "elbo", "active_units", "fitted/frechet", "fitted/class_accuracy", "fitted/diversity",
    "prior/frechet", "prior/class_accuracy", "prior/diversity",
)  # fmt: skip


def curve(
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="draw it, with the study's trainings")] = None,
) -> None:
    """Show what one training says of every weight.

    Measured on validation.

    \b
    cvae curve
    cvae curve --out curve.png
    """
    from pipeline.base import console
    from pipeline.base.paths import CURVE_TABLE, SEEDS
    from pipeline.stages.saved import load_table
    from pipeline.weight.curve import best_weights

    names = ["kl_weight", *(f"validation/{name}" for name in COLUMNS)]
    table = load_table(CURVE_TABLE, "run `dvc repro curve` first")
    rows = table[names].to_numpy().tolist()
    console.table("One network at every KL weight, on validation", ("β", *COLUMNS), rows)
    for sampler, weight in best_weights(table).items():
        print(f"Lowest frechet with the {sampler} sampler: β = {weight:g}")
    if out is not None:
        import pandas as pd

        from pipeline.show.curve import curve_figure
        from pipeline.show.style import save

        save(curve_figure(table, dedicated=pd.read_csv(SEEDS) if SEEDS.exists() else None), out)
        print(f"{out} written")

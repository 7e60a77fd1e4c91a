"""`cvae explore` writes the page to play with, also with the samples of other runs beside the study's."""

from pathlib import Path
from typing import Annotated

import typer

RUNS = "models to show beside the study's trials: safetensors files, or runs:/RUN_ID of MLflow"


def explore(
    runs: Annotated[list[str] | None, typer.Option("--runs", metavar="MODEL", help=RUNS)] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="the file to write")] = None,
) -> None:
    """Write the page that slides the KL weight.

    All runs are drawn from the same latents, so each must have as many as the curve's network.

    \b
    cvae explore
    cvae explore --runs runs:/RUN_ID --runs models/cvae.safetensors --out mine.html
    """
    from pipeline.base.paths import EXPLORE
    from pipeline.cli.options import model_file
    from pipeline.stages.playing import write_page

    write_page(out or EXPLORE, {name: model_file(name) for name in runs or []})

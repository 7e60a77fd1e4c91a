"""`cvae ui`: MLflow's page on this project's runs."""

from pathlib import Path
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(metavar="N", help="the first port to try")] = 5000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="print the address, and open nothing")] = False,
) -> None:
    """Compare runs in MLflow's page, until Ctrl-C."""
    from pipeline.base.params import load
    from pipeline.tracking import server
    from pipeline.tracking.runs import TrackingParams

    server.ui(Path(), port, not no_browser, load(TrackingParams, "tracking").experiment)

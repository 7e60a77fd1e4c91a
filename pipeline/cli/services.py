"""MLflow, Optuna and DVC's remote: `cvae ui`, `cvae sync` and `cvae doctor --services`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base.addresses import hide, shown
from pipeline.base.errors import UserError


def ui(
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="the first port to try")] = 5000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="print the address, and open nothing")] = False,
    compare: Annotated[str, typer.Option(metavar="STUDY", help="the trials of this study, β against frechet")] = "",
) -> None:
    """Compare runs in MLflow's page, until Ctrl-C.

    \b
    cvae ui                              all runs, the best first
    cvae ui --compare kl-weight-1a2b3c   a study, as `cvae study` names it
    """
    from pipeline.base.params import load
    from pipeline.tracking import server
    from pipeline.tracking.runs import TrackingParams

    server.ui(port, not no_browser, load(TrackingParams, "tracking").experiment, compare)


def sync() -> None:
    """Send MLflow what it could not take before.

    Figures, pictures and models of runs wait in .cvae/outbox while MLflow is away. The next training or evaluation
    sends them too.
    """
    from pipeline.tracking.local import tracking_uri
    from pipeline.tracking.outbox import sync as send

    count = send()
    print(f"{count} records sent to MLflow at {shown(tracking_uri())}" if count else "nothing waits for MLflow")


def services() -> bool:
    """Says what is right or wrong with each server. Returns whether all that is configured can be used."""
    from pipeline.study import storage
    from pipeline.tracking import local

    good = True
    checks = {
        "MLflow": lambda: local.health() + _default("MLFLOW_TRACKING_URI"),
        "Optuna": lambda: storage.health(Path()) + _default("OPTUNA_STORAGE"),
        "DVC": _dvc,
    }
    for name, check in checks.items():
        try:
            mark, said = "✓", check()
        except UserError as error:
            mark, said, good = "✗", str(error), False
        print(hide(f"{mark} {name}: {said}"), flush=True)
    return good


def _default(variable: str) -> str:
    return "" if os.environ.get(variable) else f" ({variable} is not set)"


def _dvc() -> str:
    """DVC's default remote."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from pipeline.base.services import remedy

    try:
        repo = Repo()
    except DvcException as error:
        raise UserError(f"this folder is no DVC project ({error}): run it in the project's folder") from None
    with repo:
        name = repo.config["core"].get("remote")
        if not name:
            return "no default remote: data and models stay here (`dvc remote add --default NAME s3://BUCKET/FOLDER`)"
        try:
            remote = repo.cloud.get_remote(name)
            place = shown(f"{remote.fs.protocol}://{remote.path}" if remote.fs.protocol != "local" else remote.path)
            if remote.fs.protocol == "local":
                Path(remote.path).stat()
            else:
                remote.fs.fs.ls(remote.path.partition("/")[0], refresh=True)
        except Exception as error:  # each kind of remote has errors of its own
            said = " ".join(str(error).split())[:300] or type(error).__name__
            variables = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            todo = remedy(said, variables, "", f"see `dvc remote modify {name}`")
            raise UserError(f"the remote {name} can't be used ({said}): {todo}") from error
    return f"the remote {name} at {place} can be read"

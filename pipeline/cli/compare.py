"""`cvae compare`: headline figures of the workspace, of commits and of DVC experiments, side by side."""

import json
from typing import Annotated, Any

import typer

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.paths import HEADLINE, JUDGE

WORKSPACE = "workspace"


def compare(
    revisions: Annotated[
        list[str] | None, typer.Argument(metavar="[REV]...", help="commits, branches or experiments")
    ] = None,
) -> None:
    """Show headline figures on test, side by side.

    Without names: the workspace, the last commit, and the experiments made from it.

    \b
    cvae compare
    cvae compare main heavier
    """
    names = [WORKSPACE, *(revisions or ["HEAD", *_experiments()])]
    found = {name: _headline(name) for name in names}
    missing = [name for name, figures in found.items() if not figures]
    rows = {name: figures for name, figures in found.items() if figures}
    if not rows:
        raise UserError(f"none of {', '.join(names)} has {HEADLINE}: run `dvc repro evaluate` first")
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    # A figure a row and a revision a column: the ten fit 80 characters so, and a few revisions beside one another.
    console.table(
        "Headline figures on test",
        ("figure", *rows),
        [(column, *(figures.get(column, "–") for figures in rows.values())) for column in columns],
        note=f"no evaluation in {', '.join(missing)}" if missing else "",
    )
    judges = {name: _judge(name) for name in rows}
    if len(set(judges.values())) > 1:
        groups = [[name for name in rows if judges[name] == judge] for judge in dict.fromkeys(judges.values())]
        said = "; ".join(", ".join(group) for group in groups)
        console.warn(f"different judges measured {said}: figures of samples compare within one judge alone")


def _experiments() -> list[str]:
    from dvc.api import exp_show

    return [row["Experiment"] for row in exp_show() if row.get("Experiment")]


def _revision(name: str) -> str | None:
    """As DVC's API names it: None is the workspace."""
    return None if name == WORKSPACE else name


def _headline(name: str) -> dict[str, Any]:
    """The ten figures of a revision; empty where it was not evaluated, or DVC's cache does not hold it."""
    from dvc.api import open as opened
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        with opened(str(HEADLINE), rev=_revision(name)) as file:
            content: dict[str, Any] = json.load(file)
    except RevError:
        raise UserError(f"{name} is no commit, branch or experiment: `dvc exp list` names experiments") from None
    except (DvcException, OSError, ValueError):
        return {}
    return content


def _judge(name: str) -> str | None:
    """The hash of the judge that measured a revision, from its dvc.lock; None where that is not known."""
    from dvc.api import read
    from dvc.exceptions import DvcException
    from ruamel.yaml import YAML

    try:
        lock = YAML(typ="safe", pure=True).load(read("dvc.lock", rev=_revision(name)))
        deps = {dep["path"]: dep["md5"] for dep in lock["stages"]["evaluate"]["deps"] if "md5" in dep}
    except (DvcException, OSError, KeyError, TypeError):
        return None
    return deps.get(str(JUDGE))

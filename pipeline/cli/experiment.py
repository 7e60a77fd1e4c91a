"""`cvae try`: a DVC experiment whose values are checked before anything is changed or removed."""

import copy
import os
import subprocess
from typing import Annotated, Any

import typer

from pipeline.base.errors import UserError


def experiment(
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="such as objective.kl_weight=1")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="the experiment's name")] = None,
    target: Annotated[str, typer.Option(help="the stage to run, with what it needs")] = "evaluate",
) -> None:
    """Train and evaluate with other values.

    It runs as a DVC experiment. The values are checked first: a wrong one changes nothing.

    \b
    cvae try objective.kl_weight=1
    cvae try model.preset=article objective.kl_weight=1 --name article
    """
    from pipeline.base.params import FILE, parse, read
    from pipeline.stages.check import SECTIONS

    content = read()
    changed: dict[str, Any] = copy.deepcopy(content)
    for change in changes:
        section, key, value = _parts(change)
        if section not in content or key not in content[section]:
            raise UserError(f"{section}.{key} is no key of {FILE}")
        changed[section][key] = value
    for section, owner in SECTIONS.items():
        parse(owner, changed[section], f"{FILE}: {section}")
    options = [word for change in changes for word in ("--set-param", change)]
    options += ["--name", name] if name else []
    done = subprocess.run(["dvc", "exp", "run", *options, target], env=_identity() | os.environ)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _identity() -> dict[str, str]:
    """A name for the commits that DVC keeps experiments in, where git has none."""
    known = (subprocess.run(["git", "config", key], capture_output=True) for key in ("user.name", "user.email"))
    if all(found.returncode == 0 for found in known):
        return {}
    return {f"GIT_{who}_{what}": "cvae" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def _parts(change: str) -> tuple[str, str, Any]:
    """`objective.kl_weight=1` as section, key and value."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, equals, text = change.partition("=")
    section, dot, key = path.partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"{change!r} is no change of a value: write SECTION.KEY=VALUE, such as objective.kl_weight=1")
    try:
        return section, key, YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise UserError(f"{change!r}: {text!r} is not a value of YAML") from None

"""`cvae params` and `cvae try`: the values of params.yaml."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.base import console
from pipeline.base.errors import UserError

KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def params(
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema, for editors")] = False,
) -> None:
    """Check every value of params.yaml.

    \b
    cvae params
    cvae params --schema > params.schema.json
    """
    from pipeline.base.params import read
    from pipeline.stages import check

    if schema:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    check.load_all(read())
    print("params.yaml: every value is allowed")


def json_schema() -> dict[str, Any]:
    """What an editor needs to complete and check params.yaml."""
    from pydantic import TypeAdapter

    from pipeline.stages.check import SECTIONS

    sections = {section: _tidied(TypeAdapter(owner).json_schema()) for section, owner in SECTIONS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": sections,
        "required": list(sections),
        "additionalProperties": False,
    }


def _tidied(node: Any) -> Any:
    """Without titles, which repeat names, and with the bounds of `Number` in the schema's words, not pydantic's."""
    if isinstance(node, list):
        return [_tidied(part) for part in node]
    if isinstance(node, dict):
        return {KEYWORDS.get(key, key): _tidied(part) for key, part in node.items() if key != "title"}
    return node


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
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from pipeline.base.files import write_text
    from pipeline.base.params import FILE, read
    from pipeline.stages import check

    content, former = read(), read()
    options = ["--name", name] if name else []
    for change in changes:
        path, equals, text = change.partition("=")
        section, _, key = path.partition(".")
        if not equals:
            raise UserError(f"{change!r} is no change of a value: write it as objective.kl_weight=1")
        if key not in content.get(section, {}):
            raise UserError(f"{path} is no key of params.yaml")
        try:
            content[section][key] = YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise UserError(f"{change!r}: {text!r} is not a value of YAML") from None
        options += ["--set-param", change]
    check.load_all(content)
    before = Path(FILE).read_text(encoding="utf-8")
    if status := _ended(["dvc", "exp", "run", *options, target]):
        is_theirs = read() not in (former, content)  # edited while it trained
        if not is_theirs:
            write_text(FILE, before)
        subprocess.run(["git", "reset", "--quiet", "--", FILE])  # DVC has staged it
        again = " The same command goes on where this one stopped." if status in (130, 143) else ""
        left = "was edited meanwhile, and stays so" if is_theirs else "is as it was"
        console.say(f"{FILE} {left}. `dvc checkout` brings the former model back.{again}")
        raise typer.Exit(status)


def _ended(command: list[str]) -> int:
    """The exit status of DVC, which waits for its stage at Ctrl-C: 130 then, 143 at SIGTERM."""
    process, interrupted = subprocess.Popen(command, env=_identity() | os.environ), 0
    while True:
        try:
            status = process.wait()
            return 128 + interrupted if status and interrupted else status
        except KeyboardInterrupt as stop:
            interrupted = stop.args[0] if stop.args else signal.SIGINT
            if interrupted == signal.SIGTERM:  # Ctrl-C has reached DVC, too
                process.terminate()


def _identity() -> dict[str, str]:
    """A name for the commits that DVC keeps experiments in, where git has none."""
    known = (subprocess.run(["git", "config", key], capture_output=True) for key in ("user.name", "user.email"))
    if all(found.returncode == 0 for found in known):
        return {}
    return {f"GIT_{who}_{what}": "cvae" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

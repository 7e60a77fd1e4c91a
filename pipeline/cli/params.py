"""`cvae params`: check params.yaml, or print its JSON schema."""

import json
from typing import Annotated, Any

import typer

KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def params(
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema, for editors")] = False,
) -> None:
    """Check every value of params.yaml.

    \b
    cvae params
    cvae params --schema > params.schema.json
    """
    from pipeline.base.params import FILE
    from pipeline.stages import check

    if schema:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    check.load_all()
    print(f"{FILE}: every value is allowed")


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
    """Without titles, which repeat names; and with the bounds of `Number`, which pydantic leaves in its own words."""
    if isinstance(node, list):
        return [_tidied(part) for part in node]
    if isinstance(node, dict):
        return {KEYWORDS.get(key, key): _tidied(part) for key, part in node.items() if key != "title"}
    return node

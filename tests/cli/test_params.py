"""params.yaml, its schema, its comments and its recipes agree with the code."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Cvae
from imports import ROOT
from ruamel.yaml import YAML

from pipeline.base.params import SECTIONS, load, parse, plain, read
from pipeline.cli.params import json_schema
from pipeline.stages import check

OWNERS = check.SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_holds_what_its_owner_asks_for_in_the_same_order(section: str) -> None:
    loaded: Any = load(OWNERS[section], section, ROOT / "params.yaml")
    assert list(read(ROOT / "params.yaml")[section]) == list(plain(loaded))
    assert parse(OWNERS[section], plain(loaded), section) == loaded


def test_the_committed_schema_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "params.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "run `cvae params --schema > params.schema.json`"
    assert tuple(committed["properties"]) == SECTIONS == tuple(read(ROOT / "params.yaml"))
    assert committed["properties"]["objective"]["properties"]["sigma"]["exclusiveMinimum"] == 0


@pytest.mark.parametrize("section", SECTIONS)
def test_the_comment_of_a_key_is_its_description(section: str) -> None:
    marked = YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))[section]
    for key, rule in json_schema()["properties"][section]["properties"].items():
        # Of a value on its own line the comment follows it; of a list it follows the key.
        tokens = [token for token in marked.ca.items.get(key, []) if token]
        comment = tokens[0].value.partition("\n")[0].removeprefix("# ") if tokens else ""
        assert comment == rule.get("description", ""), f"{section}.{key}"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_changes_values_to_allowed_ones(recipe: Path) -> None:
    ours = read(ROOT / "params.yaml")
    for section, changes in read(recipe).items():
        assert all(ours[section][key] != value for key, value in changes.items())
        parse(OWNERS[section], ours[section] | changes, section)


def test_old_and_new_yaml_read_the_same_values() -> None:
    """DVC and editors may read YAML 1.1, where 1e-5 is a text; our numbers are numbers in both."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)
    assert old.load(text) == YAML(typ="safe", pure=True).load(text)


def test_one_command_checks_every_value(project: Path, cvae: Cvae) -> None:
    assert cvae("params").out == "params.yaml: every value is allowed\n"
    assert json.loads(cvae("params --schema").out) == json_schema()
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("kl_weight: 0.2 ", "kl_weight: -1 "), encoding="utf-8")
    assert cvae("params").err == (
        "error: params.yaml: objective.kl_weight must be greater than or equal to 0, not -1\n"
    )

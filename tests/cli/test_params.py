"""params.yaml, its schema, its comments and its recipes agree with the code."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from commands import Cvae, assert_refused
from imports import MODULES, ROOT, room
from mypy.build import build
from mypy.modulefinder import BuildSource
from mypy.nodes import MemberExpr, NameExpr
from mypy.options import Options
from mypy.types import Instance, get_proper_type
from ruamel.yaml import YAML

from pipeline.base.params import parse, read, write
from pipeline.cli.values import json_schema
from pipeline.model.cvae import Architecture
from pipeline.stages.check import SECTIONS


def test_the_committed_schema_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "params.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "run `cvae params --schema > params.schema.json`"
    assert tuple(committed["properties"]) == tuple(SECTIONS) == tuple(read(ROOT / "params.yaml"))


def test_the_comment_of_a_key_is_its_description() -> None:
    marked = YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, schema in json_schema()["properties"].items():
        for key, rule in schema["properties"].items():
            # Of a value on its own line the comment follows it; of a list it follows the key.
            tokens = [token for token in marked[section].ca.items.get(key, []) if token]
            comment = tokens[0].value.partition("\n")[0].removeprefix("# ") if tokens else ""
            assert comment == rule.get("description", ""), f"{section}.{key}"


def attributes_read() -> set[tuple[str, str]]:
    """(class, attribute) of each `x.attribute` below cli, by the type that mypy finds for x, but for self's."""
    options = Options()
    options.export_types, options.incremental, options.follow_imports = True, False, "skip"
    options.explicit_package_bases, options.mypy_path = True, [str(ROOT)]
    below = {module: path for module, path in MODULES.items() if room(module) not in ("cli", "show")}
    types = build([BuildSource(str(path), module) for module, path in below.items()], options).types
    found = set()
    for node in types:
        if isinstance(node, MemberExpr) and not (isinstance(node.expr, NameExpr) and node.expr.name == "self"):
            owner = get_proper_type(types.get(node.expr))
            if isinstance(owner, Instance):
                found.add((owner.type.name, node.name))
    return found


def keys_loaded_alone() -> set[tuple[str, str]]:
    """(section, key) of each load_key(rule, section, key) in the package."""
    sources = "".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    return set(re.findall(r'load_key\([^,()]+, "(\w+)", "(\w+)"\)', sources))


@pytest.mark.slow
def test_every_key_is_read() -> None:
    attributes, alone = attributes_read(), keys_loaded_alone()
    shapes = {field.name for field in dataclasses.fields(Architecture)}

    def is_read(section: str, key: str) -> bool:
        # cvae.resolve reads the keys of an Architecture by their names, to make one.
        owner = Architecture if section == "model" and key in shapes else SECTIONS[section]
        return (owner.__name__, key) in attributes or (section, key) in alone

    ours = read(ROOT / "params.yaml")
    assert [f"{section}.{key}" for section in ours for key in ours[section] if not is_read(section, key)] == []


def test_a_recipe_changes_values_to_allowed_ones() -> None:
    ours = read(ROOT / "params.yaml")
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        for section, changes in read(recipe).items():
            assert all(ours[section][key] != value for key, value in changes.items()), recipe
            parse(SECTIONS[section], ours[section] | changes, section)


def test_old_and_new_yaml_read_the_same_values() -> None:
    """DVC and editors may read YAML 1.1, where 1e-5 is a text; our numbers are numbers in both."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)
    assert old.load(text) == YAML(typ="safe", pure=True).load(text)


def test_one_command_checks_every_value(project: Path, cvae: Cvae) -> None:
    assert cvae("params").out == "params.yaml: every value is allowed\n"
    assert json.loads(cvae("params --schema").out) == json_schema()
    write({("sample", "sampler"): "fited"}, project / "params.yaml")
    assert_refused(project, cvae, "params", "must be 'prior' or 'fitted', not 'fited'; did you mean 'fitted'?")

"""dvc.yaml and params.yaml held to the code: nothing read is undeclared, nothing declared is unread."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imports import MODULES, ROOT, closure, room, source
from ruamel.yaml import YAML

from pipeline.base import paths
from pipeline.base.errors import UserError
from pipeline.stages import check

STAGES: dict[str, dict[str, Any]] = {
    name: stage
    for file in ("dvc.yaml", "completion/dvc.yaml")
    for name, stage in YAML(typ="safe").load((ROOT / file).read_text(encoding="utf-8"))["stages"].items()
}
OWNERS = check.SECTIONS
PARAMS: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def nodes(stage: str) -> Iterator[ast.AST]:
    """The source of a stage, and of the modules of stages/ that it imports, directly or not."""
    for module in closure(f"pipeline.stages.{stage}"):
        if room(module) == "stages":
            yield from ast.walk(source(module))


def keys_read(stage: str) -> set[str]:
    """`section` for each load(Owner, "section") of a stage, `section.key` for each load_key(rule, "section", "key").

    Of `data`, whose keys belong to two stages, the keys that the stage reads.
    """
    found, keys = set[str](), set[str]()
    for node in nodes(stage):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("load", "load_key"):
            found.add(".".join(ast.literal_eval(argument) for argument in node.args[1:]))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "params":
            keys.add(f"data.{node.attr}")
    return found - {"data"} | keys if "data" in found else found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_rooms_it_imports(stage: str) -> None:
    """By a room's folder, or by a file of it: every module it imports is below one, and none is declared in vain."""
    needed = {MODULES[module].relative_to(ROOT) for module in closure(f"pipeline.stages.{stage}")}
    declared = {Path(dep) for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/")}
    assert {file for file in needed if not {file, file.parent} & declared} == set()
    assert {dep for dep in declared if not any(dep in (file, file.parent) for file in needed)} == set()


def test_training_needs_five_rooms_alone() -> None:
    rooms = {room(module) for module in closure("pipeline.stages.train")} - {"stages"}
    assert rooms == {"base", "data", "model", "training", "tracking"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])
def test_a_stage_declares_the_params_it_reads(stage: str) -> None:
    assert set(STAGES[stage].get("params", [])) == keys_read(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_files_it_names(stage: str) -> None:
    """Every path that a stage imports from base.paths, or writes as `paths.NAME`, is a dep or an output of it."""
    names = {
        alias.name
        for node in nodes(stage)
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline.base.paths"
        for alias in node.names
    }
    attributes = [node for node in nodes(stage) if isinstance(node, ast.Attribute)]
    names |= {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "paths"}
    declared: set[str] = set()
    for kind in ("deps", "outs", "metrics", "plots"):
        declared |= {next(iter(item)) if isinstance(item, dict) else item for item in STAGES[stage].get(kind, [])}
    if "data.checksums" in keys_read(stage):  # a file that params.yaml names
        declared.remove("${data.checksums}")
    named = {str(getattr(paths, name)) for name in names - {"CHECKPOINTS"}} | {str(paths.CHECKED)}
    assert named == {dep for dep in declared if not dep.startswith("pipeline/")}


def test_a_value_is_refused_before_anything_is_removed() -> None:
    """Every stage waits for the one that checks all values; it has nothing to lose, and no value escapes it."""
    assert all(str(paths.CHECKED) in stage["deps"] for name, stage in STAGES.items() if name != "check")
    assert STAGES["check"]["params"] == [{"params.yaml": None}]
    assert STAGES["check"]["outs"] == [str(paths.CHECKED)]


@pytest.mark.parametrize("section", OWNERS)
def test_a_wrong_value_in_any_section_is_refused(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = next(iter(PARAMS[section]))
    changed = PARAMS | {section: PARAMS[section] | {key: {"no": "value"}}}
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(changed, file)
    with pytest.raises(UserError, match=rf"^params\.yaml: {section}\.{key}.*git show HEAD:params\.yaml > params\.yaml"):
        check.main()
    assert not paths.CHECKED.exists()


def test_right_values_are_said_to_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    check.main()
    assert paths.CHECKED.exists()


def has_main(module: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in source(module).body)


def test_the_stages_are_those_of_the_package() -> None:
    assert set(STAGES) == {
        module.rsplit(".", 1)[1] for module in MODULES if room(module) == "stages" and has_main(module)
    }


def test_what_dvc_caches_is_ignored_by_git() -> None:
    """By the root's .gitignore: DVC's own ones go with a deleted folder, and `git add -A` would then take weights."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    cached = [out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)]
    assert all(any(f"/{out}/".startswith(folder) for folder in ignored if folder.endswith("/")) for out in cached)


def test_dvc_calls_nobody() -> None:
    config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
    assert "analytics = false" in config
    assert "check_update = false" in config

"""The architecture, held by its imports: which room may import which, and what a room may touch."""

import ast
import graphlib
import subprocess
import sys

import pytest
from imports import MODULES, PACKAGE, ROOT, imported, ours, room, source

NUMBERS = ["data", "model", "training", "measure", "weight", "completion", "study"]
# Each room and those that it may import, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "tracking": {"base"},
    "show": {"base"},
    "data": {"base"},
    "model": {"base", "data"},
    "training": {"base", "data", "model"},
    "measure": {"base", "data", "model", "training"},
    "weight": {"base", "data", "model", "training", "measure"},
    "completion": {"base", "data", "model", "training", "measure"},
    "study": {"base", "data", "model", "training", "measure", "weight"},
    "stages": {"base", "tracking", "show", *NUMBERS},
    "cli": {"base", "tracking", "show", "stages", *NUMBERS},
}
# torch.compile and friends stand in one file; a tracker in one room; a params library wherever params are declared.
ONE_ROOM = {"mlflow": "tracking", "optuna": "study", "typer": "cli", "matplotlib": "show", "torchvision": "data"}
ONE_ROOM |= {"distributed": "study", "grpc": "study"}
BARE = {"torch", "numpy", "pandas", "sklearn", "safetensors", "pydantic", "threadpoolctl"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_STAGE = 400, 60, 60  # lines; a stage is a module of stages/ with a `main`


def test_imports_run_down() -> None:
    for module in MODULES:
        assert {room(other) for other in ours(module)} <= MAY_IMPORT[room(module)] | {room(module)}, module


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


def test_rooms_are_the_folders_whose_init_is_a_docstring_alone() -> None:
    inits = {path.parent.name: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("*/__init__.py")}
    assert inits.keys() == MAY_IMPORT.keys()
    assert all(len(init.body) == 1 and isinstance(init.body[0], ast.Expr) for init in inits.values())


@pytest.mark.parametrize(("package", "home"), ONE_ROOM.items())
def test_one_room_knows_a_library(package: str, home: str) -> None:
    assert {room(module) for module in MODULES if package in imported(module)} <= {home}


def test_numbers_need_few_libraries_and_no_path() -> None:
    """All but data/download.py, whose job it is to bring files."""
    for module in MODULES:
        if room(module) in NUMBERS[:-1] and module != "pipeline.data.download":
            foreign = {root for root in imported(module) if not root.startswith("pipeline")}
            assert foreign - sys.stdlib_module_names <= BARE, module
            assert not foreign & {"pathlib", "os", "subprocess", "shutil"}, module


def test_files_and_functions_are_short() -> None:
    long = []
    for module, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        functions = [node for node in ast.walk(source(module)) if isinstance(node, ast.FunctionDef)]
        is_stage = room(module) == "stages" and "main" in {node.name for node in functions}
        if lines > (LONGEST_STAGE if is_stage else LONGEST_FILE):
            long.append(f"{module}: {lines} lines")
        lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
        long += [f"{module}.{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_FUNCTION]
    assert long == []


def test_help_starts_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "heavy = {'torch', 'numpy', 'pandas', 'mlflow', 'optuna', 'matplotlib', 'dvc', 'PIL', 'sklearn'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []

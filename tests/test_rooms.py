"""The architecture, held by its imports: who may import whom, and which room may touch what."""

import graphlib
import subprocess
import sys

import pytest
from imports import MODULES, ROOT, closure, imported, ours

# In the order of the floors: a module imports from the floors below its own, and what is named beside it.
MAY_IMPORT = {
    "errors": "",
    "files": "",
    "params": "errors files",
    "device": "errors",
    "download": "errors files params",
    "data": "errors params",
    "likelihood": "",
    "prior": "",
    "metrics": "",
    "figures": "",
    "pictures": "errors files",
    "model": "data likelihood params prior",
    "objective": "data likelihood params prior",
    "judge": "data device errors files params",
    "augment": "data",
    "train": "augment data device errors likelihood model objective params",
    "completion": "bound checkpoint data likelihood metrics model objective params prior train",
    "kernel": "data errors likelihood model objective train",
    "population": "data device errors kernel likelihood model objective params train",
    "bound": "data model prior",
    "sample": "bound data likelihood model params",
    "checkpoint": "errors files model objective params train",
    "evaluation": "bound data errors likelihood metrics model objective params sample train",
    "tracking": "errors files params",
    "doctor": "bound data evaluation likelihood model objective sample train",
    "article": "bound data errors evaluation model objective population sample train",
    "recording": "checkpoint console files objective tracking train",
    "study": "data errors evaluation files model objective params population sample train",
    "serve": "checkpoint completion data errors sample",
    "console": "errors",
    "examine": "checkpoint console data device doctor errors gallery judge objective params pictures sample tracking",
    "reproduce": "article console data device errors evaluation figures files judge params sample train",
    "gallery": "checkpoint completion data errors judge params pictures sample tracking",
}
OTHER_ROOMS = (
    *("tracking", "study", "recording", "serve", "console", "figures", "pictures", "gallery", "download"),
    *("examine", "reproduce"),
)
NUMBERS = [name for name in MAY_IMPORT if name not in OTHER_ROOMS]
RECORDS = {"mlflow": {"pipeline.tracking"}, "optuna": {"pipeline.study"}, "dvc": set[str]()}
BARE = {"torch", "numpy", "pandas", "sklearn", "safetensors", "threadpoolctl"}  # the last comes with sklearn


def flat_modules() -> list[str]:
    return [name for name in MODULES if name.count(".") == 1 and name != "pipeline.cli"]


@pytest.mark.parametrize("module", flat_modules())
def test_a_module_imports_only_what_its_floor_allows(module: str) -> None:
    allowed = {f"pipeline.{name}" for name in MAY_IMPORT[module.removeprefix("pipeline.")].split()}
    assert ours(module) <= allowed


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if ".stages." in name])
def test_a_stage_imports_neither_another_stage_nor_the_command_line(module: str) -> None:
    others = closure(module) - {module}
    assert not [name for name in others if ".stages." in name or name in ("pipeline.cli", "pipeline.serve")]


@pytest.mark.parametrize(("package", "modules"), RECORDS.items())
def test_records_are_kept_by_one_module_each(package: str, modules: set[str]) -> None:
    assert {module for module in MODULES if package in imported(module)} <= modules


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_room_needs_few_libraries(name: str) -> None:
    foreign = {root for root in imported(f"pipeline.{name}") if not root.startswith("pipeline")}
    lazily = {"ruamel"} if name == "params" else set()  # only where a params.yaml is read
    assert foreign - sys.stdlib_module_names <= BARE | lazily


@pytest.mark.slow
def test_training_and_measuring_run_without_trackers_files_and_figures() -> None:
    """On a bare GPU machine: everything but torch, numpy, pandas, scikit-learn and safetensors is out of reach."""
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'mlflow', 'dvc', 'optuna', 'matplotlib', 'rich', 'ruamel', 'torchvision', 'PIL'}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from pipeline import bound, checkpoint, data, evaluation, judge, model, objective, population, sample, train
split = data.Split(torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8), torch.arange(40) % 10)
settings = train.TrainParams(1, 20, 1e-3, 0.0, None, None, 0.0, 1.0, 0, 'cpu', 'float32', 'never')
run = train.start(
    model.build(model.PRESETS['article'], 0),
    settings,
    torch.device('cpu'),
)
aim = objective.ObjectiveParams(1.0, 'bernoulli', 0.1, 'grey', 'constant', 0.5, 4, 25.0, None, 1, 0.0)
(record,) = train.fit(run, split, split, settings, aim)
sample.fit_density(run.model, split, 'grey', 1, 0)
print(record.epoch)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "1", done.stderr


def test_help_loads_the_standard_library_and_us_alone() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "from pipeline import cli; cli.parser().format_help()\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["pipeline"]

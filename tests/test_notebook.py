"""docs/explore.ipynb: it runs on a small project, and is kept without outputs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from imports import ROOT

from pipeline.base.paths import JUDGE, PREPARED, SMALL
from pipeline.data.splits import Split
from pipeline.measure.judge import Judges
from pipeline.measure.judge import build as build_judge
from pipeline.stages.saved import save_judges, save_splits

CELLS = json.loads((ROOT / "docs/explore.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_has_no_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", str(SMALL)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter starts it
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 28, 28), dtype=torch.uint8, generator=source)
    split = Split(images, torch.arange(300) % 10)
    save_splits(tmp_path / PREPARED, {"train": split, "validation": split[torch.arange(100)]})
    save_judges(tmp_path / JUDGE, Judges(build_judge(0), build_judge(0)), {})
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in CODE:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["rows"].keys() == {0.2, 1.0, 5.0}  # type: ignore[attr-defined]

"""Two `dvc repro` and two studies at once, in one folder: each comes through, or is refused in words."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from drills import SETTINGS, Zygote, assert_sound, assert_tidy, assert_whole_records, left, rows
from imports import ROOT

pytestmark = pytest.mark.slow

STAGE = """
stages:
  train:
    cmd: python -m pipeline.stages.train
    deps: [data/prepared/mnist.safetensors]
    params: [train]
    outs: [models/cvae.safetensors, models/run.json]
    plots: [reports/history.csv]
"""


def test_repros_and_studies_at_once_damage_nothing(prepared: Path, zygote: Zygote, tmp_path: Path) -> None:
    folder, alone = tmp_path / "project", tmp_path / "alone"
    shutil.copytree(prepared, folder)
    shutil.copytree(prepared, alone)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words: dict[str, Any] = {"cwd": folder, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    words["env"] = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True, **words)
    (folder / "dvc.yaml").write_text(STAGE, encoding="utf-8")
    with ThreadPoolExecutor() as pool:
        study = pool.submit(zygote.run, folder, "tune")
        other = subprocess.Popen([sys.executable, "-m", "pipeline.stages.tune"], **words)
        repros = [subprocess.Popen(["dvc", "repro"], **words) for _ in range(2)]
        said = [process.communicate()[0] for process in repros]
        print(other.communicate()[0], *said)
        assert study.result().status == 0, study.result().said
    assert other.returncode == 0
    assert 0 in [process.returncode for process in repros]
    for process, text in zip(repros, said, strict=True):
        assert "Traceback" not in text
        assert process.returncode == 0 or "is busy" in text or "lock" in text
    again = subprocess.run(["dvc", "repro"], **words)
    assert again.returncode == 0, again.stdout
    assert "Running stage" not in again.stdout
    assert zygote.run(alone, "train").status == 0
    assert left(folder) == left(alone)
    assert_whole_records(folder)
    assert_tidy(folder)
    states = rows(folder / "optuna.db", "SELECT state, count(*) FROM trials GROUP BY state")
    assert states == [("COMPLETE", SETTINGS["tune"]["trials"])]
    finished = rows(folder / "mlflow.db", "SELECT count(*) FROM runs WHERE name LIKE 'trial%' AND status = 'FINISHED'")
    assert finished == [(SETTINGS["tune"]["trials"],)]
    assert rows(folder / "optuna.db", "PRAGMA integrity_check") == [("ok",)]
    assert_sound(folder / "mlflow.db")

"""The whole pipeline on small real data: DVC, the stages, MLflow on SQLite, and the command line.

The data is scikit-learn's handwritten digits, enlarged and written as IDX files: real, small, and available offline.
One project runs the pipeline once; each test reads it, or works in a copy of it (`project` of conftest.py).
"""

import contextlib
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from drills import Zygote, digits, publish
from imports import ROOT
from stores import forget

from pipeline.base.params import read, write
from pipeline.cli import main as cli

EPOCHS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_size": 200, "checksums": "SHA256SUMS"},
    "judge": {"epochs": 3, "batch_size": 32},
    "model": {"latent_size": 4, "encoder_hidden": [128], "decoder_hidden": [128]},
    "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.005, "precision": "float32", "device": "cpu"},
    "sample": {"components": 2},
    "evaluate": {"nll_draws": 20, "sample_sets": 2},
    "weight": {"epochs": 5, "batch_size": 64, "learning_rate": 0.005, "points": 3},
    "completion": {"latent_size": 4, "hidden": 64, "epochs": 4, "network_epochs": 3, "batch_size": 32},
    "evaluate_completion": {"images": 200, "draws": 10},
    "tune": {"trials": 5, "epochs": 2, "seeds": 2, "kl_weight": [0.1, 10], "least_class_accuracy": None},
}
UNSET = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME")
# What DVC says when another of its programs has held the project for three seconds, or one of a stage's files
BUSY = re.compile("Unable to acquire lock|is busy")
# Starts a program. A shell that starts tests in the background makes them, and what they start, ignore Ctrl-C.
HEARING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Project:
    """A clone of this repository with small data and small params."""

    folder: Path
    mirror: Path
    programs: Mapping[str, str]  # the environment in which `dvc` and `python` are forked

    @property
    def environment(self) -> dict[str, str]:
        return {**self.programs, "PYTHONPATH": str(self.folder), "CVAE_MNIST_MIRROR": str(self.mirror)}

    def run(self, *command: str, status: int = 0) -> str:
        """What the command prints; its exit status must be `status`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """Runs `dvc repro` and returns the stages that it ran, restored ones not among them."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *options))

    def cvae(self, *words: str, status: int = 0) -> str:
        """What `cvae WORDS` prints, in this process: a new one takes seconds to import what this one has."""
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["cvae", *words])
            patch.setenv("CVAE_MNIST_MIRROR", str(self.mirror))
            for name in UNSET:
                patch.delenv(name, raising=False)
            with pytest.raises(SystemExit) as end:
                cli.main()
            forget()
        assert int(end.value.code or 0) == status, said.getvalue()
        return said.getvalue()

    def copy(self, folder: Path) -> "Project":
        """The same project in another folder."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def change(self, section: str, **values: Any) -> None:
        """Changes values in params.yaml."""
        write({(section, key): value for key, value in values.items()}, self.folder / "params.yaml")

    def params(self) -> Any:
        return read(self.folder / "params.yaml")

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def csv(self, path: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / path)

    def files(self, folder: str) -> set[str]:
        return {path.name for path in (self.folder / folder).iterdir()}

    def query(self, select: str) -> list[Any]:
        """Rows of MLflow's tables."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return database.execute(select).fetchall()

    def runs(self) -> dict[str, dict[str, str | float]]:
        """MLflow's runs by their ids, from its tables: the `status`, `params.*`, `metrics.*` and `tags.*` of each."""
        found: dict[str, dict[str, str | float]] = {
            run: {"status": status} for run, status in self.query("SELECT run_uuid, status FROM runs")
        }
        for kind, table in (("params", "params"), ("metrics", "latest_metrics"), ("tags", "tags")):
            for run, key, value in self.query(f"SELECT run_uuid, key, value FROM {table}"):
                found[run][f"{kind}.{key}"] = value
        return found


def made(base: Path, zygote: Zygote) -> Project:
    """A project below `base` that has run the pipeline once, its results committed."""
    project = Project(base / "clone", base / "mirror", zygote.environment())
    sums = publish(project.mirror, *digits(1797), train=1300)
    shutil.copytree(ROOT / "pipeline", project.folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", project.folder / "recipes")
    for name in (
        ".gitignore", ".dvcignore", "dvc.yaml", "completion/dvc.yaml", "pyproject.toml", "params.yaml", ".dvc/config",
        ".dvc/.gitignore", ".dvc/plots/bars_by_sampler.json", ".dvc/plots/points_by_weight.json",
    ):  # fmt: skip
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project.folder / name)
    (project.folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    for section, values in SETTINGS.items():
        project.change(section, **values)
    project.run("git", "init", "-q")
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Start")
    project.run("dvc", "repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Record the results")
    return project


def restored_files(project: Project) -> list[str]:
    folders = [project.folder / name for name in ("models", "reports")]
    return [str(path.relative_to(project.folder)) for folder in folders for path in sorted(folder.rglob("*.*"))]

"""The front door: a clone on any machine, a folder of any name, and what git must not see."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from imports import ROOT


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_clone_has_the_same_bytes_whatever_git_does_to_line_ends() -> None:
    assert git("check-attr", "eol", "dvc.yaml") == "dvc.yaml: eol: lf\n"


def test_what_commands_write_by_default_is_ignored() -> None:
    written = [f"{name}.png" for name in ("samples", "interpolation", "traversal", "morph", "completions")]
    written += ["dvc_plots/index.html", "mlflow.db", "optuna.db", "models/x.safetensors", "mlartifacts/1/x"]
    assert git("check-ignore", "--no-index", *written).split() == written


def make_setup(folder: Path, *options: str) -> str:
    """What `make setup` says with a `uv` that only notes its words, and where git knows nobody."""
    programs = folder.parent / "bin"
    for name, text in {
        "uv": 'echo "$*" >> .venv/log',
        "python3": 'case $2 in venv) mkdir -p .venv/bin && ln -sf "$0" .venv/bin/python ;; esac',
    }.items():
        programs.mkdir(exist_ok=True)
        (programs / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    nobody = {"HOME": str(folder.parent), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    nobody |= {"PATH": f"{programs}:/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(["make", "setup", *options], cwd=folder, env=nobody, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "ein schöner Ordner"
    project.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    return project


def test_make_sets_up_in_any_folder_and_again_after_a_move(project: Path) -> None:
    assert "installing" in make_setup(project)
    assert "installing" not in make_setup(project)
    assert "--excludes" not in (project / ".venv/log").read_text()
    moved = project.rename(project.with_name("andernorts"))
    shutil.rmtree(moved / ".venv/bin")  # what `venv --clear` does
    assert "installing" in make_setup(moved, "CPU_ONLY=1")
    assert "installing" not in make_setup(moved)
    os.utime(moved / ".venv/ready", (0, 0))  # older than requirements.lock
    make_setup(moved)
    assert (moved / ".venv/log").read_text().count("--excludes") == 2


def test_setup_names_somebody_for_experiments_where_git_knows_nobody(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    assert "change it with git config" in make_setup(project)
    assert git("-C", str(project), "config", "user.name") == "cvae\n"
    git("-C", str(project), "config", "user.name", "Ada")
    (project / ".venv/ready").unlink()
    assert "git config" not in make_setup(project)
    assert git("-C", str(project), "config", "user.name") == "Ada\n"

"""The front door: a clone on any machine, a folder of any name, and what git must not see."""

import os
import shutil
import subprocess
from pathlib import Path

from imports import ROOT


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_clone_has_the_same_bytes_whatever_git_does_to_line_ends() -> None:
    assert git("check-attr", "eol", "dvc.yaml") == "dvc.yaml: eol: lf\n"


def test_what_commands_write_by_default_is_ignored() -> None:
    written = [f"{name}.png" for name in ("samples", "interpolation", "traversal", "morph", "completions")]
    written += ["dvc_plots/index.html", "mlflow.db", "optuna.db", "models/x.safetensors", "mlartifacts/1/x"]
    assert git("check-ignore", "--no-index", *written).split() == written


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_make_sets_up_in_any_folder_and_again_after_a_move(tmp_path: Path) -> None:
    script(tmp_path / "bin/uv", 'echo "$*" >> .venv/log')
    script(tmp_path / "bin/python3", 'case $2 in venv) mkdir -p .venv/bin && ln -s "$0" .venv/bin/python ;; esac')
    project = tmp_path / "ein schöner Ordner"
    project.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])

    def setup(folder: Path, *options: str) -> str:
        done = subprocess.run(
            ["make", "setup", *options], cwd=folder, env={"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "installing" in setup(project)
    assert "installing" not in setup(project)
    assert "--excludes" not in (project / ".venv/log").read_text()
    moved = project.rename(tmp_path / "andernorts")
    shutil.rmtree(moved / ".venv/bin")  # what `venv --clear` does
    assert "installing" in setup(moved, "CPU_ONLY=1")
    assert "installing" not in setup(moved)
    os.utime(moved / ".venv/ready", (0, 0))  # older than requirements.lock
    setup(moved)
    assert (moved / ".venv/log").read_text().count("--excludes") == 2


def test_setup_names_somebody_for_experiments_where_git_knows_nobody(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    script(tmp_path / "bin/uv", "")
    script(tmp_path / "bin/python3", 'case $2 in venv) mkdir -p .venv/bin && ln -sf "$0" .venv/bin/python ;; esac')
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])
    environment = {"PATH": path, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("git", "init", "-q")
    assert "change it with git config" in run("make", "setup")
    assert run("git", "config", "user.name") == "cvae\n"
    run("git", "config", "user.name", "Ada")
    (tmp_path / ".venv/ready").unlink()
    assert "git config" not in run("make", "setup")
    assert run("git", "config", "user.name") == "Ada\n"

"""A full disk, a read-only folder or a cache that can't be written: one clear error, and old outputs stay whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drills import Zygote, assert_sound, assert_words, left
from imports import ROOT
from mounts import can_mount

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a small disk (unshare -rm)"),
]
WHOLE = int(os.environ.get("FAULTS", "0")) >= 1000
SPACE = (4096, 20_000, 60_000, 200_000, 600_000, 2_000_000) if WHOLE else (200_000,)  # bytes
STAGES = ("train", "evaluate", "tune")
PLACES = {
    "train": (".", "models", ".cvae", ".checkpoints", "mlartifacts") if WHOLE else (".", "models"),
    "evaluate": (".", "reports", ".cvae") if WHOLE else ("reports",),
    "tune": (".", "reports", "mlartifacts") if WHOLE else (".",),
}


@pytest.fixture(scope="module")
def done(prepared: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has trained and evaluated."""
    folder = tmp_path_factory.mktemp("done") / "project"
    shutil.copytree(prepared, folder)
    for stage in ("train", "evaluate"):
        assert zygote.run(folder, stage).status == 0
    return folder


def assert_recovers(folder: Path, done: Path, zygote: Zygote, stage: str) -> None:
    """The outputs of before are whole, and the same command comes through when it can write."""
    for name in ("train", "evaluate"):
        assert left(folder, name) == left(done, name)
    ended = zygote.run(folder, stage)
    assert ended.status == 0, ended.said
    for name in ("train", "evaluate"):
        assert left(folder, name) == left(done, name)
    assert_sound(folder / "mlflow.db")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("space", SPACE)
def test_a_full_disk_is_one_line_and_costs_no_old_output(
    done: Path, zygote: Zygote, tmp_path: Path, space: int, stage: str
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done, folder)
    ended = zygote.run(folder, stage, mounts={".": space})
    print(f"{stage}, {space:,} bytes: {ended.status} {ended.said.splitlines()[-1:]}")
    assert_words(ended)
    assert_recovers(folder, done, zygote, stage)


@pytest.mark.parametrize(("stage", "place"), [(stage, place) for stage in STAGES for place in PLACES[stage]])
def test_a_read_only_folder_is_one_line_and_costs_no_old_output(
    done: Path, zygote: Zygote, tmp_path: Path, stage: str, place: str
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done, folder)
    ended = zygote.run(folder, stage, mounts={place: 0})
    print(f"{stage}, {place}: {ended.status} {ended.said.splitlines()[-1:]}")
    assert_words(ended)
    assert_recovers(folder, done, zygote, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_place_for_temporary_files_is_one_line(done: Path, zygote: Zygote, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done, folder)
    ended = zygote.run(folder, stage, mounts={"tmp": 8192}, TMPDIR=str(folder / "tmp"))
    print(f"{stage}: {ended.status} {ended.said.splitlines()[-1:]}")
    assert_words(ended)
    assert_recovers(folder, done, zygote, stage)


def test_caches_that_cannot_be_written_stop_nothing(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done, folder)
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME"), "/proc/none")
    command, environment = [sys.executable, "-m", "pipeline.stages.evaluate"], os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=folder, env=environment | nowhere, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert left(folder, "evaluate") == left(done, "evaluate")

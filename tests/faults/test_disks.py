"""A full disk, a read-only folder or a cache that can't be written: one clear error, and old outputs stay whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drills import WHOLE, Zygote, assert_sound, assert_words, left
from imports import ROOT
from mounts import can_mount

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a small disk (unshare -rm)"),
]
SPACE = (4096, 20_000, 60_000, 200_000, 600_000, 2_000_000) if WHOLE else (200_000,)  # bytes
STAGES = ("train", "evaluate", "tune")
PLACES = {
    "train": (".", "models", ".cvae", ".checkpoints", "mlartifacts") if WHOLE else ("models",),
    "evaluate": (".", "reports", ".cvae") if WHOLE else ("reports",),
    "tune": (".", "reports", "mlartifacts") if WHOLE else (".",),
}
# The mounts are as mounts.confine takes them. Temporary files lie in tmp, where it is one.
FULL = [(stage, {".": space}) for space in SPACE for stage in STAGES]
FULL += [(stage, {"tmp": 8192}) for stage in STAGES[: None if WHOLE else 1]]
READ_ONLY = [(stage, {place: 0}) for stage in STAGES for place in PLACES[stage]]


@pytest.fixture(scope="module")
def done(trained: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has trained and evaluated."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("done") / "project"))
    assert zygote.run(folder, "evaluate").status == 0
    return folder


@pytest.mark.parametrize(("stage", "mounts"), FULL + READ_ONLY, ids=str)
def test_a_full_disk_or_a_read_only_folder_is_one_line_and_costs_no_old_output(
    done: Path, zygote: Zygote, tmp_path: Path, stage: str, mounts: dict[str, int]
) -> None:
    """The outputs of before are whole, and the same command comes through when it can write."""
    folder = Path(shutil.copytree(done, tmp_path / "project"))
    temporary: dict[str, Any] = {"TMPDIR": str(folder / "tmp")} if "tmp" in mounts else {}
    ended = zygote.run(folder, stage, mounts=mounts, **temporary)
    print(f"{stage}, {mounts}: {ended.status} {ended.said.splitlines()[-1:]}")
    assert_words(ended)
    for name in ("train", "evaluate"):
        assert left(folder, name) == left(done, name)
    ended = zygote.run(folder, stage)
    assert ended.status == 0, ended.said
    for name in ("train", "evaluate"):
        assert left(folder, name) == left(done, name)
    assert_sound(folder / "mlflow.db")


def test_caches_that_cannot_be_written_stop_nothing(done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "project"))
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME"), "/proc/none")
    command, environment = [sys.executable, "-m", "pipeline.stages.evaluate"], os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=folder, env=environment | nowhere, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert left(folder, "evaluate") == left(done, "evaluate")

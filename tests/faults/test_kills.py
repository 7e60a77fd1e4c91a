"""A process may be killed at any moment: the same command, run again, ends as if nothing had happened.

`FAULTS=1000 pytest tests/faults` is the whole run; without it, a short one.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drills import Left, Zygote, assert_tidy, assert_whole_records
from imports import ROOT

pytestmark = pytest.mark.slow

FAULTS = int(os.environ.get("FAULTS", "8"))
REPORTS = ("reports/metrics.json", "reports/per_class.csv", "reports/doctor.json", "reports/headline.json")
SEED = int(os.environ.get("FAULTS_SEED", "0"))


def interrupt(folder: Path, zygote: Zygote, stage: str, seconds: float, draw: random.Random) -> int:
    """Runs a stage and ends it, by kill -9 or SIGTERM, until it comes through, 1 to 3 times; returns how often."""
    count = draw.choice([1, 1, 2, 3])
    for number in range(count):
        ended = zygote.run(folder, stage, draw.uniform(0, seconds), draw.choice([signal.SIGKILL, signal.SIGTERM]))
        assert "Traceback" not in ended.said
        if ended.status == 0:
            return number + 1
    ended = zygote.run(folder, stage)
    assert ended.status == 0, ended.said
    return count


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A project whose training nobody disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(prepared, folder)
    ended = zygote.run(folder, "train")
    assert ended.status == 0, ended.said
    assert_whole_records(folder)
    assert_tidy(folder)
    return folder, ended.seconds


def test_a_killed_evaluation_leaves_the_training_finished_and_the_reports_whole(
    undisturbed: tuple[Path, float], zygote: Zygote, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(undisturbed[0], whole)
    seconds = zygote.run(whole, "evaluate").seconds
    expected = {name: (whole / name).read_bytes() for name in REPORTS}
    draw, faults = random.Random(SEED), 0
    while faults < FAULTS / 2:
        folder = tmp_path / f"{faults}"
        shutil.copytree(undisturbed[0], folder)
        faults += interrupt(folder, zygote, "evaluate", seconds, draw)
        assert {name: (folder / name).read_bytes() for name in REPORTS} == expected
        assert_whole_records(folder)
        assert_tidy(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("stage", "output"), [("prepare", "data/prepared/mnist.safetensors")])
def test_a_killed_stage_leaves_no_half_file(
    prepared: Path, zygote: Zygote, tmp_path: Path, stage: str, output: str
) -> None:
    draw, expected = random.Random(SEED), (prepared / output).read_bytes()
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    for _ in range(FAULTS // 4):
        (folder / output).unlink(missing_ok=True)
        zygote.run(folder, stage, draw.uniform(0, 0.3), signal.SIGKILL)
        assert not (folder / output).exists() or (folder / output).read_bytes() == expected
    assert zygote.run(folder, stage).status == 0
    assert (folder / output).read_bytes() == expected
    assert_tidy(folder)


def test_two_trainings_of_the_same_take_turns(prepared: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    command, environment = [sys.executable, "-m", "pipeline.stages.train"], os.environ | {"PYTHONPATH": str(ROOT)}
    words: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **words) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ["waiting for process" in words for words in said].count(True) == 1
    assert not any("going on" in words for words in said)
    assert Left.of(folder) == Left.of(undisturbed[0])
    assert_whole_records(folder)
    assert_tidy(folder)


def test_a_killed_training_ends_like_an_undisturbed_one(
    prepared: Path, undisturbed: tuple[Path, float], zygote: Zygote, tmp_path: Path
) -> None:
    whole, seconds = Left.of(undisturbed[0]), undisturbed[1]
    draw, faults = random.Random(SEED), 0
    while faults < FAULTS:
        folder = tmp_path / f"{faults}"
        shutil.copytree(prepared, folder)
        faults += interrupt(folder, zygote, "train", seconds, draw)
        assert Left.of(folder) == whole
        assert_whole_records(folder)
        assert_tidy(folder)
        shutil.rmtree(folder)

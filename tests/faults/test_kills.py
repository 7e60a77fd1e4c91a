"""A process may be killed at any moment: the same command, run again, ends as if nothing had happened.

`FAULTS=1000 pytest tests/faults` is the whole run; without it, a short one.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drills import SETTINGS, Left, Zygote, assert_tidy, assert_whole_records, rows
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


def test_a_killed_study_keeps_every_finished_training_and_ends_with_its_count(
    prepared: Path, zygote: Zygote, tmp_path: Path
) -> None:
    draw, faults, folder = random.Random(SEED), 0, tmp_path / "project"
    whole = tmp_path / "whole"
    shutil.copytree(prepared, whole)
    seconds = zygote.run(whole, "tune").seconds
    while faults < FAULTS / 2:
        shutil.copytree(prepared, folder)
        kept: dict[tuple[float, str], str] = {}
        for _ in range(draw.choice([1, 2, 3])):
            number = draw.choice([signal.SIGKILL, signal.SIGTERM])
            ended = zygote.run(folder, "tune", draw.uniform(0, seconds), number)
            faults += 1
            assert "Traceback" not in ended.said, ended.said
            found = trained(folder)
            assert kept.items() <= found.items()
            kept = found
            if ended.status == 0:
                break
        ended = zygote.run(folder, "tune")
        assert ended.status == 0, ended.said
        assert kept.items() <= trained(folder).items()
        states = [state for (state,) in rows(folder / "optuna.db", "SELECT state FROM trials")]
        assert states.count("COMPLETE") == SETTINGS["tune"]["trials"]
        assert not {"RUNNING", "WAITING"} & set(states)
        assert rows(folder / "mlflow.db", "SELECT name FROM runs WHERE status = 'RUNNING'") == []
        twice = "SELECT run_uuid, key, step FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
        assert rows(folder / "mlflow.db", twice) == []
        runs = rows(folder / "mlflow.db", "SELECT name FROM runs WHERE status = 'FINISHED' AND name LIKE 'trial%'")
        assert len(runs) == SETTINGS["tune"]["trials"]
        assert_tidy(folder)
        shutil.rmtree(folder)


def trained(folder: Path) -> dict[tuple[float, str], str]:
    """The figures of each finished training of a study, by weight and seed."""
    if not (folder / "optuna.db").exists():
        return {}
    query = """SELECT param_value, key, value_json FROM trial_params JOIN trial_user_attributes USING (trial_id)
        WHERE key LIKE 'figures of seed%'"""
    try:
        return {(weight, seed): figures for weight, seed, figures in rows(folder / "optuna.db", query)}
    except sqlite3.OperationalError:  # no tables yet
        return {}


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

"""Databases that another program locks, and servers that go or refuse in the middle: no work stops, and all arrives."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from drills import LONG, SETTINGS, Ended, Zygote, assert_sound, assert_whole_records, left, more, rows
from imports import ROOT
from servers import Tracking, failing

pytestmark = pytest.mark.slow

WHOLE = int(os.environ.get("FAULTS", "0")) >= 1000
SECONDS = 30.0 if WHOLE else 3.0  # that a database is locked, or a server away


def until(happened: Callable[[], object]) -> None:
    """Waits for it, for a minute at most."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(sqlite3.OperationalError):  # no table yet
            if happened():
                return
        time.sleep(0.005)
    raise AssertionError("it never happened")


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the file."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_locked_mlflow_database_stops_no_training(
    project: Path, zygote: Zygote, undisturbed: tuple[Path, Ended]
) -> None:
    """The training comes to its end while the file is still locked."""
    database = project / "mlflow.db"
    with ThreadPoolExecutor() as pool:
        training = pool.submit(zygote.run, project, "train")
        until(lambda: rows(database, "SELECT * FROM metrics"))
        with locked(database):
            ended = training.result()
    assert ended.status == 0, ended.said
    assert "cvae sync" in ended.said
    more("mlflow.db locked", ended, undisturbed[1])
    assert left(project) == left(undisturbed[0])
    assert zygote.run(project, "evaluate").status == 0
    assert_whole_records(project, LONG)


def test_a_locked_database_of_studies_is_waited_for(prepared: Path, zygote: Zygote, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(prepared, project)
    with ThreadPoolExecutor() as pool:
        study = pool.submit(zygote.run, project, "tune")
        until(lambda: (project / "optuna.db").exists() and rows(project / "optuna.db", "SELECT * FROM trials"))
        with locked(project / "optuna.db"):
            time.sleep(SECONDS)
            assert not study.done()
        ended = study.result()
    assert ended.status == 0, ended.said
    states = rows(project / "optuna.db", "SELECT state, count(*) FROM trials GROUP BY state")
    assert states == [("COMPLETE", SETTINGS["tune"]["trials"])]
    assert_sound(project / "mlflow.db")


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path) -> Iterator[Tracking]:
    """A server whose database is tmp_path/mlflow.db."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    made = Tracking(tmp_path)
    made.start()
    yield made
    made.kill()


def sync(project: Path, address: str) -> None:
    command, environment = [sys.executable, "-m", "pipeline.cli", "sync"], os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=project, env=environment | {"MLFLOW_TRACKING_URI": address}, check=True)


@pytest.mark.parametrize("how", ["killed", "expired"] if WHOLE else ["expired"])
def test_a_server_that_goes_or_refuses_in_the_middle_gets_everything_later(
    project: Path, zygote: Zygote, undisturbed: tuple[Path, Ended], tracking: Tracking, tmp_path: Path, how: str
) -> None:
    """Also what waits when the process has ended: `cvae sync` sends it."""
    database = tmp_path / "mlflow.db"
    with failing(tracking.address, how) as (proxy, fails), ThreadPoolExecutor() as pool:
        address = tracking.address if how == "killed" else proxy
        training = pool.submit(zygote.run, project, "train", MLFLOW_TRACKING_URI=address)
        until(lambda: rows(database, "SELECT * FROM metrics"))
        fails.set()
        if how == "killed":
            tracking.kill()
        ended = training.result()
        assert ended.status == 0, ended.said
        assert "cvae sync" in ended.said
        more(how, ended, undisturbed[1])
        assert left(project) == left(undisturbed[0])
        if how == "killed":
            tracking.start()
        fails.clear()
        sync(project, address)
    assert_whole_records(project, LONG, database)


def test_a_study_goes_on_at_a_server_that_begins_to_hang(
    prepared: Path, zygote: Zygote, tracking: Tracking, tmp_path: Path
) -> None:
    """Each trial is trained and told once, and `cvae sync` sends the rest."""
    project, whole, database = tmp_path / "project", tmp_path / "whole", tmp_path / "mlflow.db"
    for folder in (project, whole):
        shutil.copytree(prepared, folder)
    usual = zygote.run(whole, "tune")
    with failing(tracking.address, "hangs") as (address, hangs), ThreadPoolExecutor() as pool:
        study = pool.submit(zygote.run, project, "tune", MLFLOW_TRACKING_URI=address)
        until(lambda: rows(database, "SELECT * FROM metrics"))
        hangs.set()
        ended = study.result()
        assert ended.status == 0, ended.said
        assert "cvae sync" in ended.said
        more("a study at a server that begins to hang", ended, usual)
        hangs.clear()
        sync(project, address)
    told = "SELECT number, state, value FROM trials LEFT JOIN trial_values USING (trial_id)"
    assert rows(project / "optuna.db", told) == rows(whole / "optuna.db", told)
    assert_sound(database)
    recorded = "SELECT runs.name, runs.status, m.status FROM runs LEFT JOIN logged_models m ON source_run_id = run_uuid"
    assert sorted(rows(database, recorded), key=str) == sorted(rows(whole / "mlflow.db", recorded), key=str)

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
from servers import Tracking, expiring

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


@pytest.mark.parametrize("how", ["killed", "expired"] if WHOLE else ["expired"])
def test_a_server_that_goes_or_refuses_in_the_middle_gets_everything_later(
    project: Path, zygote: Zygote, undisturbed: tuple[Path, Ended], empty_database: Path, tmp_path: Path, how: str
) -> None:
    """Also what waits when the process has ended: `cvae sync` sends it."""
    database, tracking = tmp_path / "mlflow.db", Tracking(tmp_path)
    shutil.copy(empty_database, database)
    tracking.start()
    try:
        with expiring(tracking.address) as (proxy, expired), ThreadPoolExecutor() as pool:
            address = tracking.address if how == "killed" else proxy
            training = pool.submit(zygote.run, project, "train", MLFLOW_TRACKING_URI=address)
            until(lambda: rows(database, "SELECT * FROM metrics"))
            expired.set()
            if how == "killed":
                tracking.kill()
            ended = training.result()
            assert ended.status == 0, ended.said
            assert "cvae sync" in ended.said
            more(how, ended, undisturbed[1])
            assert left(project) == left(undisturbed[0])
            if how == "killed":
                tracking.start()
            expired.clear()
            sync = [sys.executable, "-m", "pipeline.cli", "sync"]
            environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address}
            subprocess.run(sync, cwd=project, env=environment, check=True)
        assert_whole_records(project, LONG, database)
    finally:
        tracking.kill()

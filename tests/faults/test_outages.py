"""Databases that another program locks, and servers that go or refuse in the middle: no work stops, and all arrives."""

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from drills import SETTINGS, WHOLE, Zygote, assert_sound, assert_whole_records, left, rows
from servers import Tracking, failing
from waiting import until

pytestmark = pytest.mark.slow

SECONDS = 30.0 if WHOLE else 1.0  # that the database of studies is locked


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the file."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_locked_mlflow_database_stops_no_training(project: Path, zygote: Zygote, trained: Path) -> None:
    """The training comes to its end while the file is still locked."""
    database = project / "mlflow.db"
    with zygote.held(project, "train") as training:
        until(lambda: rows(database, "SELECT * FROM metrics"))
        with locked(database):
            ended = training.end()
    assert ended.status == 0, ended.said
    assert "cvae sync" in ended.said
    assert left(project) == left(trained)
    assert zygote.run(project, "evaluate").status == 0
    assert_whole_records(project)


def test_a_locked_database_of_studies_is_waited_for(project: Path, zygote: Zygote) -> None:
    with zygote.held(project, "tune") as study:
        until(lambda: rows(project / "optuna.db", "SELECT * FROM trials"))
        with locked(project / "optuna.db"):
            study.gate.touch()
            time.sleep(SECONDS)
            assert not study.running.done()
        ended = study.end()
    assert ended.status == 0, ended.said
    states = rows(project / "optuna.db", "SELECT state, count(*) FROM trials GROUP BY state")
    assert states == [("COMPLETE", SETTINGS["tune"]["trials"])]
    assert_sound(project / "mlflow.db")


def awaiting_a_metric(database: Path) -> Callable[[], None]:
    """Waits for one that is not there yet, when it is called."""
    before = rows(database, "SELECT count(*) FROM metrics")
    return lambda: until(lambda: rows(database, "SELECT count(*) FROM metrics") != before)


@pytest.mark.parametrize("how", ["killed", "expired"] if WHOLE else ["expired"])
def test_a_server_that_goes_or_refuses_in_the_middle_gets_everything_later(
    project: Path, zygote: Zygote, trained: Path, tracking: Tracking, how: str
) -> None:
    """Also what waits when the process has ended: `cvae sync` sends it."""
    database = tracking.folder / "mlflow.db"
    metric_comes = awaiting_a_metric(database)
    with failing(tracking.address, how) as (proxy, fails):
        address = tracking.address if how == "killed" else proxy
        with zygote.held(project, "train", MLFLOW_TRACKING_URI=address) as training:
            metric_comes()
            fails.set()
            if how == "killed":
                tracking.kill()
            ended = training.end()
        assert ended.status == 0, ended.said
        assert "cvae sync" in ended.said
        assert left(project) == left(trained)
        if how == "killed":
            tracking.start()
        fails.clear()
        zygote.sync(project, address)
    assert_whole_records(project, database)


def test_a_study_goes_on_at_a_server_that_begins_to_hang(
    prepared: Path, project: Path, zygote: Zygote, tracking: Tracking, tmp_path: Path
) -> None:
    """Each trial is trained and told once, and `cvae sync` sends the rest."""
    whole, database = shutil.copytree(prepared, tmp_path / "whole"), tracking.folder / "mlflow.db"
    recorded = "SELECT runs.name, runs.status, m.status FROM runs LEFT JOIN logged_models m ON source_run_id = run_uuid"
    before, metric_comes = rows(database, recorded), awaiting_a_metric(database)
    assert zygote.run(whole, "tune").status == 0
    with failing(tracking.address, "hangs") as (address, hangs):
        with zygote.held(project, "tune", MLFLOW_TRACKING_URI=address) as study:
            metric_comes()
            hangs.set()
            ended = study.end()
        assert ended.status == 0, ended.said
        assert "cvae sync" in ended.said
        hangs.clear()
        zygote.sync(project, address)
    told = "SELECT number, state, value FROM trials LEFT JOIN trial_values USING (trial_id)"
    assert rows(project / "optuna.db", told) == rows(whole / "optuna.db", told)
    assert_sound(database)
    assert Counter(rows(database, recorded)) - Counter(before) == Counter(rows(whole / "mlflow.db", recorded))

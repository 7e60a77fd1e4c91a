"""The study on a real PostgreSQL server: left in peace, away for a while, and refused."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drills import Zygote
from imports import ROOT
from postgres import Server
from studies import abandoned, events, finished, having, opened, program, refused, results, states, until_it_says
from waiting import until

from pipeline.base.paths import WORKERS
from pipeline.study import storage
from pipeline.study.search import Began, Ended

pytestmark = pytest.mark.slow


def test_a_study_on_a_server_that_restarts_is_the_one_on_sqlite_and_leaves_the_server_in_peace(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = f"SELECT state FROM pg_stat_activity WHERE datname = '{database}'"
    found, kinds = opened(tmp_path / "there", having(epochs=2)), set()
    for event in events(found):
        if isinstance(event, Began):
            if event.candidate.trial.number == 0:
                with server.away():
                    pass
            continue
        kinds |= set(server.query(connections))  # an open transaction would hold locks for a whole epoch
        assert server.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert kinds == {("idle",)}
    table = found.table()
    assert all(found.strip(trial.number) is not None for trial in found.trials())
    assert server.query("SELECT count(*) FROM trials", database) == [(6,)]
    assert not (tmp_path / "there/optuna.db").exists()
    del found, event
    gc.collect()
    until = time.monotonic() + 60
    while server.query(connections):
        assert time.monotonic() < until
        time.sleep(0.05)
    monkeypatch.delenv("OPTUNA_STORAGE")
    here = finished(tmp_path / "here", having(epochs=2)).table()
    assert table.drop(columns="seconds").equals(here.drop(columns="seconds"))


@pytest.mark.usefixtures("database")
def test_a_process_killed_in_its_turn_blocks_nobody(tmp_path: Path) -> None:
    holder = """
import time
from pathlib import Path
from pipeline.study import storage
with storage.turn(storage.storage_url(Path())):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert len(opened(tmp_path, having(trials=1)).ask(1)) == 1


def test_hearts_beat_by_one_clock_whatever_the_time_zone(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Pacific/Kiritimati")
    trial = abandoned(opened(tmp_path, having(trials=1))).trial
    monkeypatch.setenv("PGTZ", "Pacific/Pago_Pago")
    other = opened(tmp_path, having(trials=1))
    assert other.ask(1) == []
    server.query("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '150 seconds'", database)
    assert [again.trial.params for again in other.ask(1)] == [trial.params]


@pytest.mark.usefixtures("database")
def test_when_its_server_goes_away_a_study_ends_in_one_line_and_continues_later(
    server: Server, zygote: Zygote, tmp_path: Path
) -> None:
    setting = having(trials=6, population=2, epochs=2)
    with program(zygote, tmp_path, trials=6, population=2, epochs=2) as process:
        until_it_says(process, "epoch 3 ")
        with server.away():
            _, errors = process.communicate("go on\n" * 50, timeout=600)
    assert process.returncode == 2
    assert errors.startswith("error: Optuna's database postgresql+psycopg://127.0.0.1")
    assert errors.count("\n") == 1
    assert "secret" not in errors
    known = results(opened(tmp_path, setting))
    assert known
    after = finished(tmp_path, setting)
    assert after.done() == 6
    assert known.items() <= results(after).items()
    assert not list((tmp_path / WORKERS).iterdir())


@pytest.mark.parametrize(
    ("place", "why"), [("database", "timeout"), ("proxied", "deadline_exceeded.*start the server")]
)
def test_on_a_server_that_hangs_a_study_ends_in_one_line_and_continues_later(
    place: str,
    why: str,
    request: pytest.FixtureRequest,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Optuna's proxy does not answer either, while its database does not."""
    busy = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{request.getfixturevalue(place)}' AND state != 'idle'"
    setting = having(trials=6, population=2, epochs=2)
    found = opened(tmp_path, setting)
    going = events(found)
    while not isinstance(next(going), Ended):
        pass
    known = results(opened(tmp_path, setting))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LONGEST_SECONDS", 0.2)
        patch.setattr(storage, "ANSWER_SECONDS", 2)
        patch.setattr(storage, "PATIENCE_SECONDS", 1)
        patch.setattr(found.database, "_seconds", 1, raising=False)
        with refused(why), server.hanging():
            list(going)
    assert not list((tmp_path / WORKERS).iterdir())
    until(lambda: not server.query(busy))  # the proxy does now what it was asked for last, such as to give a turn
    monkeypatch.setattr(storage, "GRACE_SECONDS", 1)
    after = finished(tmp_path, setting)
    assert states(after).count("COMPLETE") == after.done() == 6
    assert "RUNNING" not in states(after)
    assert known
    assert known.items() <= results(after).items()

"""The study on a real PostgreSQL server: left in peace, away for a while, and refused."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from imports import ROOT
from postgres import Server
from studies import SETTING, abandoned, events, finished, having, opened, program, states, until

from pipeline.base.errors import UserError
from pipeline.base.paths import WORKERS
from pipeline.study import storage
from pipeline.study.queue import Candidate, open_study
from pipeline.study.search import Began, Ended, Epoch, losers
from pipeline.study.trials import counts

pytestmark = pytest.mark.slow


def one_line(error: UserError) -> str:
    text = str(error)
    assert "\n" not in text
    assert "secret" not in text
    return text


def test_a_study_on_postgresql_is_the_one_on_sqlite(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = having(epochs=2)
    found = finished(tmp_path / "there", setting)
    table = opened(tmp_path / "there", setting).table()
    assert table.equals(found.table())
    assert all(found.strip(trial.number) is not None for trial in found.trials())
    assert server.query("SELECT count(*) FROM trials", database) == [(6,)]
    assert not (tmp_path / "there/optuna.db").exists()
    monkeypatch.delenv("OPTUNA_STORAGE")
    here = finished(tmp_path / "here", setting).table()
    assert table.drop(columns="seconds").equals(here.drop(columns="seconds"))


@pytest.mark.usefixtures("database")
def test_a_process_killed_in_its_turn_blocks_nobody(tmp_path: Path) -> None:
    found = opened(tmp_path, having(trials=1, epochs=1))
    holder = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.study import storage
with storage.turn(storage.storage_url(Path())):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    with found.at_work():
        assert len(found.ask(1)) == 1


def test_nothing_is_left_in_a_transaction_while_a_population_trains(
    database: str, server: Server, tmp_path: Path
) -> None:
    """An open transaction would hold locks and keep the server from cleaning up for as long as an epoch takes."""
    kinds = set()
    for _ in events(opened(tmp_path, having(trials=3))):
        rows = server.query(f"SELECT state FROM pg_stat_activity WHERE datname = '{database}'")
        kinds |= {state for (state,) in rows}
        assert server.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert kinds == {"idle"}


def test_connections_end_with_the_study(database: str, server: Server, tmp_path: Path) -> None:
    finished(tmp_path, having(trials=1, epochs=1))
    gc.collect()
    for _ in range(100):
        left = server.query(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
        if left == [(0,)]:
            break
    assert left == [(0,)]


def test_hearts_beat_by_one_clock_whatever_the_time_zone(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = having(trials=1, epochs=1)
    zones = ("Pacific/Kiritimati", "Pacific/Pago_Pago")  # 25 hours apart
    for there, here in (zones, zones[::-1]):
        monkeypatch.setenv("PGTZ", there)
        first = opened(tmp_path, setting)
        candidate = abandoned(first, "elsewhere:lock")
        for beaten_again in (False, True):
            if beaten_again:
                first.database.record_heartbeat(candidate.trial._trial_id)
            monkeypatch.setenv("PGTZ", here)
            other = opened(tmp_path, setting)
            assert other.ask(1) == []
            assert states(other)[-1] == "RUNNING"
        server.query("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '150 seconds'", database)
        (again,) = other.ask(1)
        assert again.kl_weight == candidate.kl_weight
        other.put_back([again], KeyboardInterrupt())
        server.query("TRUNCATE studies CASCADE", database)


# Servers that go away


@pytest.mark.usefixtures("database")
def test_when_its_server_goes_away_a_study_ends_in_one_line_and_continues_later(server: Server, tmp_path: Path) -> None:
    setting = having(trials=6, population=2, epochs=2)
    with program(tmp_path, trials=6, population=2, epochs=2) as process:
        until(process, "epoch 3 ")
        server.stop()
        try:
            _, errors = process.communicate("go on\n" * 50, timeout=120)
        finally:
            server.start()
    assert process.returncode == 2
    assert errors.startswith("error: Optuna's database postgresql+psycopg://127.0.0.1")
    assert errors.count("\n") == 1
    assert "secret" not in errors
    values = {trial.number: trial.values for trial in opened(tmp_path, setting).trials() if counts(trial)}
    assert values
    after = finished(tmp_path, setting)
    assert after.done() == 6
    assert all(after.trials()[number].values == found for number, found in values.items())
    assert not list((tmp_path / WORKERS).iterdir())


@pytest.fixture
def called_back(server: Server) -> Iterator[None]:
    yield
    server.start()


@pytest.mark.usefixtures("database", "called_back")
def test_while_its_server_is_away_every_call_ends_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    found = opened(tmp_path, having(trials=2, epochs=1, population=1))
    stream = events(found)
    candidate = next(event.candidate for event in stream if isinstance(event, Epoch))
    candidate.epochs = 2  # what was reported once would not be sent again
    server.stop()
    for touch in (
        found.done,
        found.table,
        found.choose,
        lambda: found.strip(0),
        lambda: found.remember("mlflow_run", "r"),
        lambda: found.report(candidate),
        lambda: losers(found, [candidate], 1),
        lambda: found.tell(candidate, "PRUNED"),
        lambda: found.put_back([candidate], KeyboardInterrupt()),
        lambda: found.ask(1),
        lambda: opened(tmp_path),
    ):
        with pytest.raises(UserError, match=r"Optuna's database .* can't be used") as caught:
            touch()
        one_line(caught.value)
    with pytest.raises(KeyboardInterrupt), closing(stream):  # what ended the search is not hidden by what followed
        raise KeyboardInterrupt


@pytest.mark.usefixtures("database")
def test_a_server_that_was_away_between_two_calls_is_not_missed(server: Server, tmp_path: Path) -> None:
    found = opened(tmp_path, having(trials=2, epochs=2, population=2))
    for event in events(found):
        if isinstance(event, Began):
            server.stop()
            server.start()
    assert found.done() == 2
    assert "FAIL" not in states(found)


def test_a_trial_taken_for_dead_in_another_place_counts_once(database: str, server: Server, tmp_path: Path) -> None:
    """A laptop slept: its trials' hearts stood still, and another machine put them in line again."""
    setting = having(trials=2, epochs=2, population=2)
    found, taken, ended = opened(tmp_path, setting), list[Candidate](), list[int]()
    for event in events(found):
        if isinstance(event, Began):
            event.candidate.trial.set_user_attr("worker", "elsewhere:lock")
        if isinstance(event, Epoch) and event.record.epoch == 1 and not taken:
            server.query("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 day'", database)
            other = opened(tmp_path, setting)
            taken = other.ask(2)
            assert len(taken) == 2
        if isinstance(event, Ended):
            ended.append(event.candidate.number)
        if len(ended) == 2:
            break  # it would now wait for the other machine
    assert sorted(ended) == [0, 1]
    assert states(found) == ["FAIL", "FAIL", "RUNNING", "RUNNING"]
    found.put_back(taken[:1], KeyboardInterrupt())
    found.put_back(taken[:1], KeyboardInterrupt())  # put back already: not once more
    assert states(found) == ["FAIL", "FAIL", "FAIL", "RUNNING", "WAITING"]


# Databases that can't be used


def refused(tmp_path: Path, **environment: str) -> str:
    with pytest.raises(UserError) as caught:
        open_study(SETTING, tmp_path, create=True, environment=environment)
    return one_line(caught.value)


def test_a_database_that_holds_mlflows_tables_is_refused(database: str, server: Server, tmp_path: Path) -> None:
    server.query("CREATE TABLE experiments (experiment_id integer)", database)
    words = refused(tmp_path, OPTUNA_STORAGE=server.url(database))
    assert "is MLflow's database: Optuna needs one of its own, see OPTUNA_STORAGE" in words
    tables = server.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
    assert tables == [("experiments",)]


def test_a_wrong_password_is_one_line_without_it(database: str, server: Server, tmp_path: Path) -> None:
    for password in ("secretive", "top/secret", "a%40secret", "a?secret", "{secret}", "100%secret"):
        words = refused(tmp_path, OPTUNA_STORAGE=server.url(database, password=password))
        assert f"Optuna's database postgresql+psycopg://127.0.0.1:{server.port}/{database} can't be used" in words
    words = refused(tmp_path, OPTUNA_STORAGE=server.url(database, password="a@secret"))
    assert "write an @ in the password as %40" in words
    words = refused(tmp_path, OPTUNA_STORAGE=f"postgresql://127.0.0.1:{server.port}/{database}?password=secrets")
    assert "can't be used" in words


def test_a_user_who_may_make_no_tables_is_told(database: str, server: Server, tmp_path: Path) -> None:
    server.query("DROP ROLE IF EXISTS guest")
    server.query("CREATE ROLE guest LOGIN PASSWORD 'secret'")
    server.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database)
    words = refused(tmp_path, OPTUNA_STORAGE=server.url(database, user="guest"))
    assert "permission denied for schema public" in words


# Optuna leaves the connections of a storage that it refuses to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_tables_of_another_optuna_are_refused_with_the_way_to_upgrade_them(
    database: str, server: Server, tmp_path: Path
) -> None:
    opened(tmp_path)
    server.query("UPDATE alembic_version SET version_num = 'v2.6.0.a'", database)
    server.query("UPDATE version_info SET schema_version = 11, library_version = '2.6.0'", database)
    assert "optuna storage upgrade" in refused(tmp_path, OPTUNA_STORAGE=server.url(database))
    gc.collect()


def test_a_socket_and_a_password_of_any_signs_are_understood(database: str, server: Server, tmp_path: Path) -> None:
    password = "a/?{b}%c:d"
    server.query("DROP ROLE IF EXISTS other")
    server.query(f"CREATE ROLE other SUPERUSER LOGIN PASSWORD '{password}'")
    url = f"postgres://other:{password.replace('%', '%25')}@/{database}?host={server.folder}&port={server.port}"
    found = open_study(having(trials=1), tmp_path, create=True, environment={"OPTUNA_STORAGE": url})
    assert found.done() == 0

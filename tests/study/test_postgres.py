"""The study on a real PostgreSQL server: shared from the first moment, killed, left alone by its server, refused."""

import gc
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from imports import ROOT
from postgres import Server
from test_study import SETTING, abandoned, brought, events, having, opened, program, states

from pipeline.base.errors import UserError
from pipeline.study import storage
from pipeline.study.queue import Candidate, open_study
from pipeline.study.search import Began, Ended, Epoch, losers
from pipeline.study.trials import counts

pytestmark = pytest.mark.slow
COUNT = itertools.count()


@pytest.fixture
def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new, empty database, which OPTUNA_STORAGE names, too."""
    name = f"test_{next(COUNT)}"
    server.query(f"CREATE DATABASE {name}")
    monkeypatch.setenv("OPTUNA_STORAGE", server.url(name))
    return name


def one_line(error: UserError) -> str:
    text = str(error)
    assert "\n" not in text
    assert "secret" not in text
    return text


def test_a_study_is_made_searched_and_read_back(database: str, server: Server, tmp_path: Path) -> None:
    found = brought(tmp_path)
    again = opened(tmp_path)
    assert again.done() == len(again.trials()) == 6
    assert again.table().equals(found.table())
    assert again.table()["validation/fitted/frechet"].notna().all()
    assert again.choose() == found.choose()
    assert all(again.strip(trial.number) is not None for trial in again.trials())
    assert server.query("SELECT count(*) FROM trials", database) == [(6,)]
    assert not (tmp_path / "optuna.db").exists()


@pytest.mark.usefixtures("database")
def test_a_study_on_postgresql_is_the_one_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = brought(tmp_path / "there").table()
    monkeypatch.delenv("OPTUNA_STORAGE")
    here = brought(tmp_path / "here").table()
    assert there.drop(columns="seconds").equals(here.drop(columns="seconds"))


def test_several_processes_share_one_new_database(database: str, server: Server, tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(program(tmp_path, 9, 2, 0.0), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    found = opened(tmp_path, having(trials=9))
    assert found.done() == len(found.trials()) == 9
    assert found.table()["kl_weight"].nunique() == 9
    assert [trial.number for trial in found.trials()] == list(range(9))
    assert int(found.note("workers")) == 3
    assert server.query("SELECT count(*) FROM studies", database) == [(1,)]


@pytest.mark.usefixtures("database")
def test_a_killed_study_goes_on_and_its_count_ends_exact(tmp_path: Path) -> None:
    with subprocess.Popen(program(tmp_path, 6, 2, 0.05), text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 3 "):  # the second batch: something is done, something is not
                break
        process.send_signal(signal.SIGKILL)
    setting = having(trials=6, population=2)
    before = opened(tmp_path, setting)
    done = {trial.number: trial.values for trial in before.trials() if counts(trial)}
    assert "RUNNING" in states(before)
    assert done
    after = brought(tmp_path, setting)
    assert after.done() == 6
    assert not {"RUNNING", "WAITING"} & set(states(after))
    assert all(after.trials()[number].values == values for number, values in done.items())


@pytest.mark.usefixtures("database")
def test_a_process_killed_in_its_turn_holds_nobody_up(tmp_path: Path) -> None:
    opened(tmp_path)
    holder = f"""
import os, sys, time
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
    found = opened(tmp_path, having(trials=1, epochs=1))
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
    brought(tmp_path, having(trials=1, epochs=1))
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


AWAY = """
import sys
sys.path[:0] = [{tests!r} + "/study", {tests!r}, {root!r}]
from pathlib import Path
import test_study as t
from pipeline.base import console
from pipeline.study.search import Epoch
def main():
    found = t.opened(Path({folder!r}), t.having(trials=6, population=2))
    for event in t.events(found):
        if isinstance(event, Epoch):
            print("epoch", event.candidate.number, event.record.epoch, flush=True)
            sys.stdin.readline()
console.run(main)
"""


@pytest.mark.usefixtures("database")
def test_a_server_that_goes_away_is_one_line_and_the_study_goes_on_once_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    text = AWAY.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(tmp_path))
    command, pipe = [sys.executable, "-W", "ignore", "-c", text], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        for line in process.stdout:
            if line.startswith("epoch 3 "):
                break
            process.stdin.write("go on\n")
            process.stdin.flush()
        server.stop()
        try:
            _, errors = process.communicate("go on\n" * 50, timeout=120)
        finally:
            server.start()
    assert process.returncode == 2
    assert errors.startswith("error: Optuna's database postgresql+psycopg://127.0.0.1")
    assert errors.count("\n") == 1
    assert "secret" not in errors
    setting = having(trials=6, population=2)
    before = opened(tmp_path, setting)
    done = {trial.number: trial.values for trial in before.trials() if counts(trial)}
    assert done
    after = brought(tmp_path, setting)
    assert after.done() == 6
    assert not {"RUNNING", "WAITING"} & set(states(after))
    assert all(after.trials()[number].values == values for number, values in done.items())
    assert not list((tmp_path / ".workers").iterdir())


@pytest.fixture
def called_back(server: Server) -> Iterator[None]:
    yield
    server.start()


@pytest.mark.usefixtures("database", "called_back")
def test_while_its_server_is_away_whatever_is_asked_of_a_study_is_one_line(
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
        lambda: found.note("mlflow_run"),
        lambda: found.remember("mlflow_run", "r"),
        lambda: candidate.remember_run("r", "uri"),
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
def test_a_server_that_was_away_for_a_moment_between_two_words_was_not_missed(server: Server, tmp_path: Path) -> None:
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


def test_a_missing_database_is_named(server: Server, tmp_path: Path) -> None:
    assert 'database "nowhere" does not exist' in refused(tmp_path, OPTUNA_STORAGE=server.url("nowhere"))


def test_where_there_is_no_study_nothing_is_made(database: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no study in .* yet: run `cvae tune`") as caught:
        open_study(SETTING, tmp_path, create=False)
    one_line(caught.value)
    assert server.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database) == [(0,)]


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

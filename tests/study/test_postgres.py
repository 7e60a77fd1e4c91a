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
from pipeline.study.queue import counts, open_study
from pipeline.study.search import Began, Epoch, losers

pytestmark = pytest.mark.slow


def test_a_study_on_postgresql_is_the_one_on_sqlite_and_leaves_the_server_in_peace(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open transaction would hold locks and keep the server from cleaning up for as long as an epoch takes."""
    found, kinds = opened(tmp_path / "there", having(epochs=2)), set()
    for _ in events(found):
        kinds |= set(server.query(f"SELECT state FROM pg_stat_activity WHERE datname = '{database}'"))
        assert server.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert kinds == {("idle",)}
    table = found.table()
    assert all(found.strip(trial.number) is not None for trial in found.trials())
    assert server.query("SELECT count(*) FROM trials", database) == [(6,)]
    assert not (tmp_path / "there/optuna.db").exists()
    del found
    gc.collect()
    for _ in range(100):
        left = server.query(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
        if left == [(0,)]:
            break
    assert left == [(0,)]
    monkeypatch.delenv("OPTUNA_STORAGE")
    here = finished(tmp_path / "here", having(epochs=2)).table()
    assert table.drop(columns="seconds").equals(here.drop(columns="seconds"))


@pytest.mark.usefixtures("database")
def test_a_process_killed_in_its_turn_blocks_nobody(tmp_path: Path) -> None:
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
    assert len(opened(tmp_path, having(trials=1)).ask(1)) == 1


@pytest.mark.parametrize("zones", [("Pacific/Kiritimati", "Pacific/Pago_Pago"), ("Pacific/Pago_Pago", "Asia/Tokyo")])
def test_hearts_beat_by_one_clock_whatever_the_time_zone(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zones: tuple[str, str]
) -> None:
    monkeypatch.setenv("PGTZ", zones[0])
    trial = abandoned(opened(tmp_path, having(trials=1))).trial
    monkeypatch.setenv("PGTZ", zones[1])
    other = opened(tmp_path, having(trials=1))
    assert other.ask(1) == []
    server.query("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '150 seconds'", database)
    assert [again.trial.params for again in other.ask(1)] == [trial.params]


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
        found.choose,
        lambda: found.strip(0),
        lambda: found.report(candidate),
        lambda: losers(found, [candidate], [0], 1),
        lambda: found.tell(candidate, "PRUNED"),
        lambda: found.put_back(KeyboardInterrupt()),
        lambda: found.ask(1),
        lambda: opened(tmp_path),
    ):
        with pytest.raises(UserError, match=r"Optuna's database .* can't be used") as caught:
            touch()
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
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


# Databases that can't be used


# Optuna leaves the connections of a storage that it refuses to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_a_wrong_password_or_too_few_rights_are_one_line(database: str, server: Server, tmp_path: Path) -> None:
    server.query("CREATE ROLE guest LOGIN PASSWORD 'secret'")
    server.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database)
    refused = {server.url(database, user="guest"): "permission denied for schema public"}
    refused |= {
        server.url(
            database, password=password
        ): f"postgresql.psycopg://127.0.0.1:{server.port}/{database} can't be used"
        for password in ("secretive", "top/secret", "a%40secret", "a?secret", "{secret}", "100%secret")
    }
    for url, message in refused.items():
        with pytest.raises(UserError, match=message) as caught:
            open_study(SETTING, tmp_path, create=True, environment={"OPTUNA_STORAGE": url})
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        del caught
        gc.collect()

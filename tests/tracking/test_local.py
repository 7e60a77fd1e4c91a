import os
import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest
from drills import Zygote
from filelock import FileLock

from pipeline.base.errors import UserError
from pipeline.tracking import local, package, runs


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("", "sqlite:///{}/mlflow.db"),
        ("sqlite:///runs/other.db", "sqlite:///{}/runs/other.db"),
        ("http://team:5000", "http://team:5000"),
    ],
)
def test_uri_is_the_users_or_a_file_in_the_project(
    variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc/tmp/exps/tmpab12").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/tmpab12")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert local.tracking_uri() == expected.format(tmp_path)


@pytest.mark.usefixtures("root")
def test_a_deleted_experiment_is_an_error_with_its_remedy() -> None:
    client = local.connect(local.tracking_uri())
    number = local.experiment_id(client, "gone")
    client.delete_experiment(number)
    with pytest.raises(UserError, match=rf"restore -x {number}"):
        runs.start("train", "gone")


def test_a_file_that_cannot_be_used_is_an_error_in_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.1)
    path = root / "mlflow.db"

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=rf"{path}.*{words}.*MLFLOW_TRACKING_URI$"):
            runs.start("train", "e", wait=False)

    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused("database is locked")
    path.write_text("no database " * 100)
    refused("not a database")
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE trials (number INTEGER)")
    refused("another program's database")


def leave_wal(path: Path) -> None:
    """What a database leaves that was deleted after its process was killed: SQLite would replay it into a new one."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (deleted)")
        left = path.with_name(f"{path.name}-wal").read_bytes()
    path.unlink()
    path.with_name(f"{path.name}-wal").write_bytes(left)


def test_a_database_that_another_process_makes_is_waited_for(tmp_path: Path, database: Path) -> None:
    path = tmp_path / "mlflow.db"
    with FileLock(f"{path}.lock"):
        waiting = threading.Thread(target=local._create, args=(path,))
        waiting.start()
        waiting.join(0.1)  # without the lock, it would now be making its own
        shutil.copy(database, path)
    waiting.join()
    assert path.read_bytes() == database.read_bytes()


TRAINING = """
import sys
from pipeline.tracking import outbox
from pipeline.tracking.runs import start
outbox.FIRST_SECONDS = outbox.LOCAL_PATIENCE = outbox.FIRST_ANSWER = 600.0
with start("r", "e", wait=False) as run:
    for step in range(20):
        run.metrics({"kl": step}, step)
    sys.exit(0)
"""


@pytest.mark.slow
def test_programs_that_start_together_and_end_at_once_leave_whole_runs_in_one_new_database(
    tmp_path: Path, zygote: Zygote
) -> None:
    leave_wal(tmp_path / "mlflow.db")
    command, surroundings = ["python", "-c", TRAINING], zygote.environment()
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=surroundings, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FAILED",)] * 2  # sys.exit is an exception
        steps = database.execute("SELECT run_uuid, step FROM metrics ORDER BY run_uuid, rowid").fetchall()
        assert [step for _, step in steps] == [*range(20)] * 2
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'e'").fetchone() == (1,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cvae", "mlflow.db"]
    assert list((tmp_path / ".cvae/outbox").iterdir()) == []


def test_a_database_that_cannot_be_written_can_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("w.safetensors").write_bytes(b"weights")
    with runs.start("train", "e", params={"epochs": 3}) as run:
        run.metrics({"kl": 1.0}, step=1)
        run.model("w.safetensors")
    wal = root / "mlflow.db-wal"
    assert wal.stat().st_size > 0  # what was written last is not in the database's own file yet
    before = [path.read_bytes() for path in (root / "mlflow.db", wal)]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != root / "mlflow.db" and access(path, mode))
    found, store = local.named(f"runs:/{run.run_id}")
    assert found.data.params == {"epochs": "3"}
    assert local.history_of(found, store, ["kl"]) == [(1, {"kl": 1.0})]
    assert package.download_model(f"runs:/{run.run_id}").read_bytes() == b"weights"
    assert [path.read_bytes() for path in (root / "mlflow.db", wal)] == before


@pytest.mark.parametrize(
    ("said", "why", "todo"),
    [
        (
            "HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /api/2.0 (Caused by SSLError("
            "SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has "
            "expired (_ssl.c:1006)')))",
            "certificate verify failed: certificate has expired",
            "renew the server's certificate",
        ),
        (
            "API request failed with exception (Caused by SSLError(1, '[SSL: X] certificate verify failed: unable to "
            "get local issuer certificate (_ssl.c:1006)'))",
            "certificate verify failed: unable to get local issuer certificate",
            "name the file of the CA",
        ),
        (
            "API request to endpoint /api/2.0 failed with error code 401 != 200. Response body: 'No.'",
            "error code 401: 'No.'",
            "correct user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        (
            "API request to endpoint /api/2.0 failed with error code 403 != 200. Response body: 'Permission denied'",
            "error code 403: 'Permission denied'",
            "grant the user of MLFLOW_TRACKING_USERNAME",
        ),
    ],
)
def test_of_a_long_message_the_reason_is_said_with_what_to_do(said: str, why: str, todo: str) -> None:
    with pytest.raises(UserError) as refused, local.one_line("https://h"):
        raise ValueError(said)
    assert f"({why}): {todo}" in str(refused.value)

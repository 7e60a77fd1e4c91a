"""The database of studies: its address, and errors in one line without a password."""

import gc
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from studies import SETTING, having, opened, refused

from pipeline.study import storage
from pipeline.study.queue import open_study, read_study


def test_the_database_is_a_file_in_the_users_own_folder(tmp_path: Path) -> None:
    inside = tmp_path / ".dvc/tmp/exps/standalone/tmpab12"
    inside.mkdir(parents=True)
    assert storage.storage_url(inside, {}) == f"sqlite:///{tmp_path.resolve() / 'optuna.db'}"
    open_study(SETTING, inside, create=True)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_optuna_storage_names_another_database() -> None:
    for given, used in {
        "postgres://host/db": "postgresql+psycopg://host/db",
        "postgresql://u:a/{b}@host/db?sslmode=require": "postgresql+psycopg://u:a%2F%7Bb%7D@host/db?sslmode=require",
        "postgresql://u@/db?host=/run/pg": "postgresql+psycopg://u@/db?host=%2Frun%2Fpg",
    }.items():
        assert storage.storage_url(Path(), {"OPTUNA_STORAGE": given}) == used


# Optuna leaves the connections of a storage that it refuses to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE experiments (name TEXT)")
    for url, message in {
        f"sqlite:///{tmp_path}/mlflow.db": "is MLflow's database: Optuna needs one of its own, see OPTUNA_STORAGE",
        f"sqlite:///{tmp_path}/text": "can't be used .*file is not a database",
        "mysql://me:secret@host/db": "OPTUNA_STORAGE mysql://host/db is not sqlite:///FILE, postg",
        "postgresql://me:secret@host:x/db": "OPTUNA_STORAGE postgresql://host:x/db is not sqlite",
        "postgresql://me:a@secret@host/db": "OPTUNA_STORAGE postgresql://host/db: write an @ in .* as %40",
        "postgresql://me:100%secret@127.0.0.1:9/db": "postgresql.psycopg://127.0.0.1:9/db can't be used",
        "postgresql://127.0.0.1:9/db?password=secret": "postgresql.psycopg://127.0.0.1:9/db can't be used",
        "grpc://me:secret@host:x": "OPTUNA_STORAGE grpc://host:x is not sqlite",
        "grpc://127.0.0.1:9": "grpc://127.0.0.1:9 can't be used .unavailable: .*refused",
    }.items():
        with refused(message):
            open_study(SETTING, tmp_path, create=True, environment={"OPTUNA_STORAGE": url})
    gc.collect()


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 2)  # the least that libpq accepts
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        with refused("can't be used .*timeout"):
            open_study(SETTING, tmp_path, create=True, environment={"OPTUNA_STORAGE": url})


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with refused("there is no study in .* yet: run `cvae tune`"):
        open_study(SETTING, tmp_path, create=False)
    assert not list(tmp_path.iterdir())
    opened(tmp_path)
    with refused(r"there is no study kl-weight-\w+ yet .*run `cvae tune`"):
        open_study(having(epochs=9), tmp_path, create=False)


def test_a_database_that_cannot_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = opened(tmp_path).name
    before, access = (tmp_path / "optuna.db").read_bytes(), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "optuna.db" and access(path, mode))
    assert read_study(name, tmp_path).study_name == name
    assert open_study(SETTING, tmp_path, create=False).name == name
    assert (tmp_path / "optuna.db").read_bytes() == before


def test_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, having(study="mine"))
    opened(tmp_path, having(study="mine", trials=99))
    with refused("the study 'mine' has another space, other data or another model"):
        opened(tmp_path, having(study="mine", kl_weight=(0.5, 2.0)))


def test_a_study_whose_database_is_deleted_ends_in_one_line(tmp_path: Path) -> None:
    found = opened(tmp_path)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"optuna.db{suffix}").unlink(missing_ok=True)
    with refused("optuna.db was deleted or replaced during the study: what it held is lost, start again"):
        found.ask(1)
    assert not (tmp_path / "optuna.db").exists()

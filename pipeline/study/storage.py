"""The database of studies: its address, its lock, its errors in one line, and which processes work on it.

On this machine a locked file says that a process lives, on other machines heartbeats do.
"""

import logging
import os
import re
import socket
import sqlite3
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from pipeline.base.addresses import for_reading, shown, sqlite_path
from pipeline.base.errors import UserError
from pipeline.base.files import home
from pipeline.base.params import digest
from pipeline.base.services import remedy
from pipeline.study.proxy import SCHEME, Proxy
from pipeline.study.proxy import turn as turn_of

DATABASE = "optuna.db"
HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 120  # a trial whose last heartbeat is older is taken for dead
PATIENCE_SECONDS = 60  # how long we wait while another process locks a SQLite file, and for a proxy's answer
ANSWER_SECONDS = 10  # how long we wait for a server to answer
LONGEST_SECONDS = 120.0  # how long PostgreSQL may take for a statement, or another process for its turn

Storage = RDBStorage | Proxy


class NoStudy(UserError):
    """There is no such study in its database."""


def storage_url(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """OPTUNA_STORAGE, or else the SQLite file optuna.db in the user's project folder; SQLite paths are absolute.

    Raises UserError for another kind of database: heartbeats need SQLite, PostgreSQL or our use of Optuna's proxy.
    """
    url = environment.get("OPTUNA_STORAGE") or f"sqlite:///{DATABASE}"
    if url.startswith("sqlite:///"):
        return f"sqlite:///{home(root) / url.removeprefix('sqlite:///')}"
    if re.match(r"postgres(ql)?(\+psycopg)?://", url):
        with suppress(ValueError, ArgumentError):  # a port that is not a number, an unclosed bracket
            parsed = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
            if "@" in (parsed.host or ""):  # the rest of a password would be looked up as a host name
                raise UserError(f"OPTUNA_STORAGE {shown(url)}: write an @ in the password as %40")
            return parsed.render_as_string(hide_password=False)
    if re.fullmatch(rf"{SCHEME}[\w.-]+(:\d{{1,5}})?/?", url):
        return url
    raise UserError(
        f"OPTUNA_STORAGE {shown(url)} is not sqlite:///FILE, postgresql://USER@HOST/DATABASE or {SCHEME}HOST:PORT"
    )


def open_storage(url: str, retry: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> Storage:
    """Optuna's storage at `url`, whose tables are made where there are none. Call it inside `turn` and `one_line`.

    `retry` is called for each trial whose heartbeats have stopped.
    """
    if url.startswith(SCHEME):
        return _proxy(url, retry)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # an interrupted query is logged with its traceback
    path = sqlite_path(url)
    if path is not None and not (path.exists() and path.stat().st_size):
        for leftover in ("-wal", "-shm"):  # of a deleted database: SQLite would replay them into the new one
            path.with_name(path.name + leftover).unlink(missing_ok=True)
    storage = RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": PATIENCE_SECONDS}} if path else {"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=retry,
    )
    _translate_errors(storage.engine, url)
    weakref.finalize(storage, storage.engine.dispose)  # closes the connections to a server
    if path is not None:
        with closing(sqlite3.connect(path, PATIENCE_SECONDS)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers need not wait for a writer; kept in the file
    return storage


def has_studies(url: str) -> bool:
    """Whether the database has Optuna's tables; a SQLite file is not created. Raises UserError for MLflow's."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return False
    if url.startswith(SCHEME):
        return True  # the proxy has made them
    with _connected(url) as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
    if "experiments" in tables and "studies" not in tables:  # see optuna/optuna#2866
        raise UserError(f"{shown(url)} is MLflow's database: Optuna needs one of its own, see OPTUNA_STORAGE")
    return "studies" in tables


def health(root: Path) -> str:
    """What is right with the server or file of studies, in words; raises UserError with what is wrong."""
    url = for_reading(storage_url(root))
    with one_line(url), quiet():
        if not has_studies(url):
            return f"{shown(url)} has no tables yet: the first `cvae tune` makes them"
        count = len(open_storage(url).get_all_studies())
    return f"{shown(url)} has {count} {'study' if count == 1 else 'studies'}"


@contextmanager
def turn(url: str) -> Iterator[None]:
    """Holds a lock that only one process at a time can have, of all that use this database."""
    path = sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
        return
    if url.startswith(SCHEME):
        with closing(_proxy(url)) as proxy, turn_of(proxy, GRACE_SECONDS):
            yield
        return
    with _connected(url) as connection:  # the lock ends with the connection, so a killed process blocks nobody
        key = int(digest("cvae study"), 16) % 2**63
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        yield


@contextmanager
def lock_file(folder: Path) -> Iterator[str]:
    """Locks a new file in `folder` while this process works; yields the worker's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.lock"
    try:
        with FileLock(path):
            yield worker(path)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def beating(database: Storage, live: Collection[int]) -> Iterator[None]:
    """Sends heartbeats of the trials with the ids `live` from a thread; the collection may change meanwhile."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(HEARTBEAT_SECONDS):
            for trial_id in list(live):
                with suppress(Exception):  # one missed heartbeat must not end a training
                    database.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def machine() -> str:
    """A name of this machine."""
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def worker(path: Path) -> str:
    """A name of the process that locks the file at `path`: its machine, the file's folder, the path.

    Containers of one machine may share its name, and have other folders at the same path.
    """
    folder = path.parent.stat()
    return f"{machine()}-{folder.st_dev:x}-{folder.st_ino:x}:{path}"


def is_dead(name: str | None) -> bool | None:
    """Whether a worker's process has ended; None where this machine can't tell.

    A running trial without a worker belongs to a process that died while asking, since asking is done under a lock.
    """
    if name is None:
        return True
    path = Path(name.partition(":")[2])
    try:
        if name != worker(path):
            return None
        if not path.exists():
            return True
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return True
    except Timeout:
        return False
    except OSError:  # a folder that only another machine has, or another user's file
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Optuna's warnings about experimental features, heartbeats, which we send ourselves, and a low target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage|PedAnovaImportanceEvaluator")
        yield


@contextmanager
def one_line(url: str) -> Iterator[None]:
    """Turns every error of opening a database into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise _unusable(url, f"{error.name} is not installed") from error
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise _unusable(url, getattr(cause, "orig", cause)) from error
    except RuntimeError as error:  # tables of another Optuna; the message says how to upgrade them
        raise _unusable(url, error) from error


@contextmanager
def _connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection of its own, outside of any transaction."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    _translate_errors(engine, url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def _translate_errors(engine: sqlalchemy.Engine, url: str) -> None:
    """Makes each database error of this engine a UserError; prepares connections to PostgreSQL."""

    @sqlalchemy.event.listens_for(engine, "handle_error")
    def _(context: sqlalchemy.ExceptionContext) -> UserError | None:
        known = context.sqlalchemy_exception
        # Optuna handles IntegrityError itself. A stale connection, found before its use, is replaced.
        if known is None or isinstance(known, IntegrityError) or context.is_pre_ping:
            return None
        return _unusable(url, context.original_exception)

    if engine.dialect.name == "postgresql":
        engine.dispose()  # connections from before have none of the following

        @sqlalchemy.event.listens_for(engine, "do_connect")
        def _(_dialect: Any, _record: Any, words: Any, options: dict[str, Any]) -> Any:
            return _limited().connect(*words, **{"connect_timeout": ANSWER_SECONDS} | options)

        @sqlalchemy.event.listens_for(engine, "connect")
        def _(connection: Any, _: Any) -> None:
            # Optuna compares heartbeats in the session's local time: all sessions use UTC.
            connection.execute("SET TIME ZONE 'UTC'")
            connection.commit()


def _limited() -> Any:
    """psycopg's connection, whose statements have a deadline: a server that hangs would be waited for without end."""
    import psycopg

    class Limited(psycopg.Connection[Any]):
        def wait(self, *given: Any, **named: Any) -> Any:
            try:
                return super().wait(*given, **{"timeout": LONGEST_SECONDS} | named)
            except psycopg.OperationalError as error:
                if error.sqlstate is None:  # not from the server: a rollback would be waited for, too
                    self.pgconn.finish()
                raise

    return Limited


def _proxy(url: str, retry: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> Proxy:
    with quiet():
        return Proxy(url, lambda reason: _unusable(url, reason), PATIENCE_SECONDS, GRACE_SECONDS, retry)


def _unusable(url: str, reason: Any) -> UserError:
    said, upgrade = " ".join(str(reason).split())[:300], "optuna storage upgrade --storage ADDRESS"
    todo = remedy(said, "OPTUNA_STORAGE", upgrade, "see OPTUNA_STORAGE")
    return UserError(f"Optuna's database {shown(url)} can't be used ({said}): {todo}")

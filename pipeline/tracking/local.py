"""The store that runs are kept in: its address, MLflow's client for it, a new SQLite database, and reading runs.

mlflow is imported inside functions only: the import takes seconds.
"""

import logging
import os
import re
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
CONNECT_SECONDS = 10.0
LOCK_SECONDS = 10.0  # how long another program may hold the SQLite file before this is an error

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with the next line: gives a dead server up after 2–3 s
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # MLflow would log tracebacks; errors are shown here, in one line each
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a lock file in the folder does not belong to the model
}


# The address


def tracking_uri(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file mlflow.db in the user's project folder. SQLite paths are absolute."""
    uri = environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{home(root) / path}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def shown(uri: str) -> str:
    """The URI without its password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


# The client


def connect(uri: str) -> Any:
    """An MlflowClient for the store. A SQLite database that does not exist is created first.

    Raises UserError if the store cannot be used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it reports every retry
    with one_line(uri):
        path = sqlite_path(uri)
        if path is not None:
            _create(path)
            _check(path)
        from mlflow import MlflowClient

        return MlflowClient(uri)


def check(uri: str) -> None:
    """Raises UserError if the store cannot be used, as far as that shows within seconds and without mlflow."""
    path = sqlite_path(uri)
    if path is not None and _has_content(path):
        _check(path)
    if is_server(uri):
        with one_line(uri), suppress(urllib.error.HTTPError, ssl.SSLError):  # an answer, too
            urllib.request.urlopen(f"{shown(uri)}/health", timeout=CONNECT_SECONDS).close()


def _create(path: Path) -> None:
    """A new SQLite file with MLflow's tables, complete or not at all; nothing if the file exists.

    MLflow itself creates the tables one by one under the final name, which fails when several processes start at
    once. Leftovers of a deleted database (-wal, -shm) go first: SQLite would replay them into the new one.
    """
    if _has_content(path):
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        if not _has_content(path):
            for leftover in ("-wal", "-shm"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)
            with replacing(path) as part:
                _create_tables(part)
        lock.unlink(missing_ok=True)  # later processes look at the database file only


def _create_tables(path: Path) -> None:
    """MLflow's tables, and WAL mode, which makes writing twice as fast."""
    from mlflow import db
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unsynced(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    upgrade: Any = db.upgrade.callback  # what `mlflow db upgrade` runs: about 300 statements
    event.listen(Engine, "connect", unsynced)  # one fsync instead of 300: 1 s instead of 5
    try:
        upgrade(f"sqlite:///{path}")
    finally:
        event.remove(Engine, "connect", unsynced)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _check(path: Path) -> None:
    """Raises UserError for a file on which MLflow would fail only after minutes of retries."""
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        remedy = "another program holds it" if "locked" in str(error) else "move it away to start a new one"
        raise UserError(f"{path} can't be used as MLflow's database ({error}): {remedy}") from None
    if not {"alembic_version", "experiments", "runs"} <= names:
        raise UserError(f"{path} is another program's database, not MLflow's: name another in MLFLOW_TRACKING_URI")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turns any error of a store that cannot be used into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = "start the server or unset MLFLOW_TRACKING_URI" if is_server(uri) else "see MLFLOW_TRACKING_URI"
        raise UserError(f"MLflow at {shown(uri)} can't be used ({reason(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """What went wrong, in a few words. MLflow's own messages contain the whole request."""
    text = " ".join(str(error).split())
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    if system:
        return system[1]
    if isinstance(error, TimeoutError) or "timed out" in text or "timeout" in text:
        return "no answer in time"
    return text[:200] or type(error).__name__


# Experiments and runs


def experiment(client: Any, name: str) -> str:
    """The id of the experiment `name`, which is created if needed. Several processes may do so at once.

    With SQLite, artifacts lie beside the database, at an absolute address; a server decides for itself.
    Raises UserError if the experiment was deleted, because MLflow keeps the name reserved.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(client.tracking_uri)
        location = None if path is None else path.with_name(ARTIFACTS).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted: run `mlflow experiments restore -x {found.experiment_id}`, "
            "or set another name in params.yaml: tracking.experiment"
        )
    return str(found.experiment_id)


def find(client: Any, run_id: str) -> Any:
    """The run with that id; None if it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def vanished(uri: str) -> bool:
    """Whether this is a SQLite file that does not exist: opening it would create it."""
    path = sqlite_path(uri)
    return path is not None and not path.exists()


def named(uri: str, root: Path) -> tuple[Any, Any]:
    """The client and the run of `runs:/<run id>` in today's store. Raises UserError if there is no such run."""
    at = tracking_uri(root)
    match = re.fullmatch(r"runs:/([0-9a-f]+)(/model)?/?", uri)
    if match is None:
        raise UserError(f"{uri!r} names no run: write runs:/ and the run's id")
    client = None if vanished(at) else connect(at)
    with one_line(at):
        run = client and find(client, match[1])
    if not run:
        raise UserError(f"there is no run {match[1]} in MLflow at {shown(at)}")
    return client, run


@dataclass(frozen=True)
class Recorded:
    """The content of an MLflow run. history: one row per step, with the last value of each requested metric."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    history: list[dict[str, float]]
    has_model: bool


def recorded(uri: str, root: Path, curves: Sequence[str]) -> Recorded:
    """Reads the run at `runs:/<run id>`, with the whole history of the metrics in `curves`.

    Raises UserError if there is no such run.
    """
    client, run = named(uri, root)
    rows: dict[int, dict[str, float]] = {}
    with one_line(client.tracking_uri):
        for name in curves:
            for point in client.get_metric_history(run.info.run_id, name):
                rows.setdefault(point.step, {})[name] = point.value
    return Recorded(
        name=run.info.run_name,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        history=[rows[step] for step in sorted(rows)],
        has_model=bool(run.outputs and run.outputs.model_outputs),
    )

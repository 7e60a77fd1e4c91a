"""The store that runs are kept in: its address, MLflow's client for it, a new SQLite database, and reading runs.

mlflow is imported inside functions only: the import takes seconds.
"""

import logging
import os
import re
import sqlite3
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.addresses import for_reading, hide, shown, sqlite_path
from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing
from pipeline.base.params import FILE, read
from pipeline.base.services import remedy, within
from pipeline.tracking.page import best_first

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
KEY = "run_key"  # the tag by which a run is found whose id nobody has been told
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # the deadline of a look-up
LOCK_SECONDS = 10.0  # how long another program may hold the SQLite file before this is an error

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a request whose answer was lost may have created a run: see records.py
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # MLflow would log tracebacks; errors are shown here, in one line each
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a lock file in the folder does not belong to the model
}

_copies: set[Path] = set()  # of databases that can't be written


# The address


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file mlflow.db in the user's project folder. SQLite paths are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    uri = re.sub("^postgres(ql)?://", "postgresql+psycopg://", uri)  # the driver that the extra `postgres` installs
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{home() / path}"


def reading_uri() -> str:
    """`tracking_uri`, or a copy of its SQLite file if that can't be written: for what only reads."""
    uri = tracking_uri()
    path, copy = sqlite_path(uri), sqlite_path(for_reading(uri))
    if path is None or copy is None or copy == path:
        return uri
    with one_line(uri):
        _follow(copy, path)
    _copies.add(copy)
    return f"sqlite:///{copy}"


# The client


def connect(uri: str) -> Any:
    """An MlflowClient for the store. A SQLite database that does not exist is created first.

    Raises UserError if the store cannot be used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it reports every retry
    path = sqlite_path(uri)
    was_there = path is not None and path.parent.exists()
    check(uri)
    with one_line(uri):
        from mlflow import MlflowClient  # takes seconds

        if was_there and not path.parent.exists():  # type: ignore[union-attr]
            raise FileNotFoundError("its folder was moved or deleted")  # MLflow would make it anew
        if path is not None and not _has_content(path):
            _create(path)
        if path is not None and path not in _copies:
            _follow(path, path)
        return MlflowClient(uri)


def health() -> str:
    """What is right with the store and its artifacts, in words; raises UserError with what is wrong."""
    uri = reading_uri()
    path = sqlite_path(uri)
    if path is not None and not _has_content(path):
        return f"{shown(uri)} is not there yet: the first training makes it"
    client = connect(uri)
    with one_line(uri):
        from mlflow.artifacts import list_artifacts

        experiments = within(READ_SECONDS, client.search_experiments)
        place = experiments[0].artifact_location if experiments else ""
        if place and not place.startswith(("/", "file:")):
            within(READ_SECONDS, lambda: list_artifacts(place, tracking_uri=uri))
    if uri.startswith("http") and not all(os.environ.get(name, "").isascii() for name in LOGIN):
        raise UserError(
            f"MLflow at {shown(uri)} takes no artifacts: user and password must be ASCII ({', '.join(LOGIN)})"
        )
    files = f", artifacts at {shown(place)} can be read" if place else ""
    return f"{shown(uri)} has {len(experiments)} experiment{'s' * (len(experiments) != 1)}{files}"


def check(uri: str) -> None:
    """Raises UserError if the store cannot be used, as far as that shows within seconds and without mlflow."""
    path = sqlite_path(uri)
    with one_line(uri):
        if path is not None and _has_content(path):
            with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
                names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                database.execute("BEGIN IMMEDIATE")  # fails while another program holds the file
            if not {"alembic_version", "experiments", "runs"} <= names:
                raise ValueError("another program's database")
        if uri.startswith("http"):
            try:
                within(CONNECT_SECONDS, lambda: urllib.request.urlopen(f"{shown(uri)}/health", timeout=10).close())
            except urllib.error.URLError as error:
                if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
                    raise  # it gave no answer at all


def _create(path: Path) -> None:
    """A new SQLite file with MLflow's tables, complete or not at all. Several processes may do so at once.

    MLflow itself creates the tables one by one under the final name, which fails when several processes start at
    once. Leftovers of a deleted database (-wal, -shm) go first: SQLite would replay them into the new one.
    """
    from filelock import FileLock
    from mlflow import db

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        if not _has_content(path):
            for leftover in ("-wal", "-shm"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)
            with replacing(path) as part:
                upgrade: Any = db.upgrade.callback  # what `mlflow db upgrade` runs
                upgrade(f"sqlite:///{part}")
                with closing(sqlite3.connect(part)) as database:
                    database.execute("PRAGMA journal_mode=WAL")  # makes writing twice as fast
        lock.unlink(missing_ok=True)  # later processes look at the database file only


def _follow(path: Path, original: Path) -> None:
    """Lets the addresses of artifacts follow a database that was moved or copied; MLflow stores them absolute."""
    here = original.absolute().with_name(ARTIFACTS).as_uri()
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database, suppress(sqlite3.OperationalError), database:
        places = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (place,) in places:
            if place == here or not str(place).endswith(f"/{ARTIFACTS}") or not place.startswith("file:"):
                continue
            for table, column in LOCATIONS:
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                known = f"WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                database.execute(f"{moved} {known}", (here, len(place) + 1, place, len(place) + 1, f"{place}/"))


def is_there(uri: str) -> bool:
    """Whether the store is there to be read: `connect` would create a SQLite file."""
    path = sqlite_path(uri)
    return path is None or _has_content(path)


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
        otherwise = "free or move the file, or name another store in MLFLOW_TRACKING_URI"
        if sqlite_path(uri) is None:
            otherwise = "start the server or unset MLFLOW_TRACKING_URI"
        said = reason(error)
        login = " and ".join(LOGIN) if uri.startswith("http") and "@" not in uri else ""
        todo = remedy(said, "MLFLOW_TRACKING_URI", "mlflow db upgrade ADDRESS", otherwise, login)
        raise UserError(f"MLflow at {shown(uri)} can't be used ({said}): {todo}") from error


def reason(error: Exception) -> str:
    """What went wrong, in a few words. MLflow's own messages contain the whole request."""
    text = hide(" ".join(str(error).split())).replace(" != 200. Response body", "")
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]>]+)|\[SSL: \w+\] (.+?)\.? \(_ssl", text)
    if system:
        return system[1] or system[2]
    if isinstance(error, TimeoutError) or "timed out" in text or "timeout" in text:
        return "no answer in time"
    inner = re.search(r"\(Caused by (.+)\)|failed with (?:exception )?(.+)", text)
    return (inner[1] or inner[2] if inner else text)[:200] or type(error).__name__


# Experiments and runs


def experiment_id(client: Any, name: str) -> str:
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
            number = str(client.create_experiment(name, artifact_location=location))
            best_first(client, number)  # the view, for those who start MLflow's page themselves
            return number
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


def find(uri: str, run_id: str, key: str = "") -> Any:
    """The run with that id, or with that key (records.py); None if it, or the SQLite file, is not there or deleted.

    Raises UserError if the store cannot be used.
    """
    if not is_there(uri):
        return None
    client = connect(uri)
    with one_line(uri):
        return within(READ_SECONDS, lambda: look_up(client, run_id, key))


def by_key(client: Any, experiments: list[str], key: str) -> Any:
    """The run with this key; None if there is none."""
    return next(iter(client.search_runs(experiments, f"tags.{KEY} = '{key}'", max_results=1)), None)


def look_up(client: Any, run_id: str, key: str) -> Any:
    """The same at a store that is there. Raises whatever MLflow raises."""
    try:
        if not run_id and key:
            return by_key(client, [experiment.experiment_id for experiment in client.search_experiments()], key)
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def named(uri: str) -> tuple[Any, str]:
    """The run of `runs:/<run id>` in today's store, and that store's address for reading.

    Raises UserError if there is no such run.
    """
    match = re.fullmatch(r"runs:/([0-9a-f]+)(/[\w-]+)?/?", uri)
    if match is None:
        raise UserError(f"{uri!r} names no run: write runs:/ and the run's id")
    store = reading_uri()
    run = find(store, match[1])
    if run is None:
        raise UserError(f"there is no run {match[1]} in MLflow at {shown(tracking_uri())}")
    return run, store


def model_of(run: Any) -> str:
    """The id of the logged model that the run made; empty if none."""
    return run.outputs.model_outputs[-1].model_id if run.outputs and run.outputs.model_outputs else ""


def below(store: str, run: Any) -> list[Any]:
    """The runs whose parent is this one."""
    with one_line(store):
        of_run = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        return list(connect(store).search_runs([run.info.experiment_id], of_run))


def artifact(run: Any, store: str, name: str, folder: Path) -> Path | None:
    """A file of the run's artifacts, fetched into `folder`; None if it has none of that name."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException, OSError):
        return Path(download_artifacts(f"{run.info.artifact_uri}/{name}", dst_path=str(folder), tracking_uri=store))
    return None


def params_of(run: Any, store: str) -> dict[str, dict[str, Any]]:
    """The sections of the run's artifact params.yaml; none if it has none."""
    with tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        path = artifact(run, store, FILE, Path(folder))
        return read(path) if path else {}


def history_of(run: Any, store: str, names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """The steps of a run, each with the last value of each metric in `names` that it has."""
    rows: dict[int, dict[str, float]] = {}
    with one_line(store):
        for name in names:
            for point in connect(store).get_metric_history(run.info.run_id, name):
                rows.setdefault(point.step, {})[name] = point.value
    return sorted(rows.items())

"""MLflow: runs and what they record, and a training that goes on while the record can't be kept.

The only module that imports mlflow, and only inside functions: the import takes seconds. Everything goes through
MlflowClient with explicit run ids, so that a study's parent and children can be open at once in one process. Use it
from one thread.

What can't be sent (the server is down, the database is locked) waits in order and is sent later, at the latest when
the run ends; only a store that can't be reached at the start is an error.
"""

import getpass
import http.client
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing
from pipeline.base.params import params

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
MODEL = "model"
SERVER_NEEDS = ("torch", "numpy", "pydantic", "safetensors", "pandas")  # what serve.py imports, seen from outside

LONGEST_PARAM = 6000  # MLflow's limits, in characters
LONGEST_TAG = 8000
LONGEST_DIGEST = 36

PAUSE_SECONDS = 10.0  # at least this long nothing is tried after a failure
PAUSE_FACTOR = 10  # … and so many times as long as the failure took: an outage costs at most a tenth of the time
CATCH_UP_SECONDS = 5.0  # the longest that sending what has waited holds up a call
LOCK_SECONDS = 10.0  # the longest that another program may hold a SQLite file at the start

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with the next line, a dead server is given up after 2–3 s
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # MLflow logs tracebacks; what goes wrong is said here, in one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a lock file that happens to lie around is no part of the model
}

Warn = Callable[[str], None]
Served = Literal["samples", "completions"]  # what a packaged model answers requests with


@params
class TrackingParams:
    """The section `tracking` of params.yaml."""

    experiment: Annotated[str, Field(description="name of the MLflow experiment")]


class Terminated(SystemExit):
    """SIGTERM, as an exception: `with` and `finally` blocks run before the process ends."""


# Where runs are kept


def tracking_uri(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite file mlflow.db in the user's project folder; SQLite paths absolute."""
    uri = environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{home(root) / path}"


def experiment(client: Any, name: str) -> str:
    """The id of the experiment of that name, which is created where there is none; safe against others doing the same.

    In a SQLite store its artifacts go beside the database, by an absolute address; a server chooses for itself.
    Raises UserError where the experiment was deleted, since MLflow keeps the name taken.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = _sqlite_path(client.tracking_uri)
        location = None if path is None else path.with_name(ARTIFACTS).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted: `mlflow experiments restore -x {found.experiment_id}` brings "
            "it back, or name another one in params.yaml: tracking.experiment"
        )
    return str(found.experiment_id)


# Runs


@contextmanager
def start(
    name: str,
    experiment: str,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    parent: str | None = None,
    root: Path = Path(),
    warn: Warn | None = None,
) -> Iterator["Run"]:
    """A new run, which ends as FINISHED, FAILED at an exception, or KILLED by Ctrl-C or SIGTERM.

    `parent` is the run id that the UI shows it under. `warn` gets one line where records can't be sent (default:
    stderr). Raises UserError where the store can't be used; not for a run with a parent, whose store has worked
    before: its creation then waits like any other record, and its `run_id` is empty until then.
    """
    store = _Store.at(tracking_uri(root))
    run = Run(store, warn or _to_stderr, name)
    context = _context_tags(root) | ({"mlflow.parentRunId": parent} if parent else {}) | dict(tags or {})
    create = partial(run._create, experiment, _texts(context, LONGEST_TAG))
    if parent:
        run._put(create)
    else:
        with _one_line(store.uri):
            create()
    with _recording(run):
        run.params(params or {})
        yield run


@contextmanager
def resume(
    run_id: str,
    uri: str,
    name: str,
    experiment: str,
    *,
    tags: Mapping[str, Any] | None = None,
    root: Path = Path(),
    warn: Warn | None = None,
) -> Iterator["Run"]:
    """Reopens a run that `start` made, to add to it; it ends as with `start`.

    Where the run isn't there any more (the user deleted mlflow.db, or the run), a new one of that name and experiment
    is started in today's store, with a warning. Raises UserError where the store at `uri` can't be used.
    """
    warn = warn or _to_stderr
    found = _find(run_id, uri)
    if found is None:
        warn(f"MLflow run {run_id} isn't at {_shown(uri)} any more: a new run gets what comes now")
        with start(name, experiment, tags=tags, root=root, warn=warn) as run:
            yield run
        return
    store = _Store.at(uri)
    run = Run(store, warn, found.info.run_name, run_id, found.info.experiment_id)
    if found.outputs and found.outputs.model_outputs:
        run.model_id = found.outputs.model_outputs[-1].model_id
    with _one_line(uri):
        store.client.update_run(run_id, status="RUNNING")
    with _recording(run):
        run.tags(tags or {})
        yield run


class Run:
    """An open run; `start` and `resume` make it. No method raises because of the store: see this module's docstring."""

    def __init__(self, store: "_Store", warn: Warn, name: str, run_id: str = "", experiment_id: str = "") -> None:
        self.run_id, self.experiment_id, self.name = run_id, experiment_id, name
        self.uri = store.uri
        self.model_id: str | None = None
        self.refused = 0
        self._store, self._client, self._warn = store, store.client, warn
        self._has_gap = False

    def metrics(self, values: Mapping[str, float], step: int, of_model: bool = False) -> None:
        """One request for all of them; `of_model` links them to the run's logged model, too.

        A value that isn't finite is left out (MLflow would draw inf as 1.8e308, and NaN as 0): the curve has a gap,
        and at the first one a line warns and the tag `not_finite` says which metric and step.
        """
        from mlflow.entities import Metric

        at = _now()
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        lost = ", ".join(f"{name} at step {step}" for name in values if name not in finite)
        if lost and not self._has_gap:
            self._has_gap = True
            self._warn(f"not a finite number, left out of MLflow: {lost}")
            self.tags({"not_finite": lost})

        def send() -> None:
            model_id = self.model_id if of_model else None
            entries = [Metric(name, value, at, step, model_id=model_id) for name, value in finite.items()]
            self._client.log_batch(self.run_id, metrics=entries, synchronous=True)

        if finite:
            self._put(send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat names to values, cut at MLflow's limit. MLflow refuses a second, different value for a name."""
        from mlflow.entities import Param

        entries = [Param(name, text) for name, text in _texts(values, LONGEST_PARAM).items()]
        if entries:
            self._put(lambda: self._client.log_batch(self.run_id, params=entries, synchronous=True))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Names to texts, which replace earlier ones."""
        from mlflow.entities import RunTag

        entries = [RunTag(name, text) for name, text in _texts(values, LONGEST_TAG).items()]
        if entries:
            self._put(lambda: self._client.log_batch(self.run_id, tags=entries, synchronous=True))

    def image(self, key: str, image: "np.ndarray", step: int) -> None:
        """A picture, (H, W) or (H, W, 3) uint8; those of one key become a tile with a slider over the steps."""
        if image.dtype != "uint8" or image.ndim not in (2, 3):
            raise ValueError(f"image {key!r} must be (H, W) or (H, W, 3) uint8, not {image.shape} {image.dtype}")
        picture, at = image.copy(), _now()
        self._put(
            lambda: self._client.log_image(self.run_id, picture, key=key, step=step, timestamp=at, synchronous=True)
        )

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """A file, as it is now, in the run's artifacts: under `folder`, or at the top."""
        kept = tempfile.TemporaryDirectory(prefix="cvae-")
        copy = shutil.copy2(path, kept.name)
        self._put(lambda: self._client.log_artifact(self.run_id, copy, folder), kept)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """A table that the UI's evaluation view shows, as the artifact `<name>.json`.

        The same layout as MLflow's log_table, but a second table of that name replaces the first: log_table would
        append its rows.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        file, content = f"{name}.json", frame.to_json(orient="split", index=False, date_format="iso")

        def send() -> None:
            self._client.log_text(self.run_id, content, file)
            listed = json.loads(self._client.get_run(self.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
            entry = {"path": file, "type": "table"}
            if entry not in listed:
                self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*listed, entry]))

        self._put(send)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data that the run read: `source` is a path or URL, `context` its use ("train", "test")."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        remote = urlsplit(source).scheme in ("http", "https")
        address = json.dumps({"url" if remote else "uri": source})
        data = Dataset(name, digest[:LONGEST_DIGEST], "http" if remote else "local", address)
        entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
        self._put(lambda: self._client.log_inputs(self.run_id, [entry]))

    def model(self, weights: Path | str, served: Served = "samples") -> None:
        """The packaged model `runs:/<run id>/model`: weights, this package's code, and what to install for them.

        It holds no pickle: serve.py reads the safetensors file. `model_id` is set once it is sent.
        """
        kept = tempfile.TemporaryDirectory(prefix="cvae-")
        folder = Path(kept.name) / MODEL
        _package(folder, Path(weights), served)
        made: list[str] = []  # what a failed try has created already

        def send() -> None:
            from mlflow.entities import LoggedModelOutput

            if not made:
                made.append(self._client.create_logged_model(self.experiment_id, MODEL, self.run_id).model_id)
                _sign(folder, self.run_id, made[0])
            self._client.log_model_artifacts(made[0], str(folder))
            self._client.finalize_logged_model(made[0], "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(made[0], step=0)])
            self.model_id = made[0]

        self._put(send, kept)

    def _create(self, experiment_name: str, tags: dict[str, str]) -> None:
        self.experiment_id = experiment(self._client, experiment_name)
        self.run_id = self._client.create_run(self.experiment_id, tags=tags, run_name=self.name).info.run_id

    def _put(self, send: Callable[[], Any], kept: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._store.put(_Record(self, send, kept), self._warn)

    def _end(self, status: str) -> None:
        at = _now()
        self._store.pending.append(_Record(self, lambda: self._client.set_terminated(self.run_id, status, at)))
        self._store.send(self._warn)
        unsent = sum(record.run is self for record in self._store.pending)
        if unsent:
            self._warn(
                f"MLflow at {_shown(self.uri)} still doesn't answer: {unsent} records of run {self.name} stay unsent; "
                "reports/history.csv holds the figures"
            )
        if self.refused > 1:
            self._warn(f"MLflow refused {self.refused} records of run {self.name}")


def tag(run_id: str, values: Mapping[str, Any], uris: Sequence[str], warn: Warn) -> None:
    """Tags a run that has ended and leaves it ended, in the first store that has it; a warning where none has."""
    for uri in uris:
        with suppress(UserError):
            found = _find(run_id, uri)
            if found is not None:
                run = Run(_Store.at(uri), warn, found.info.run_name, run_id, found.info.experiment_id)
                run.tags(values)
                return
    warn(f"MLflow run {run_id} isn't at {' or '.join(map(_shown, uris))}: nothing is tagged there")


def close(run_id: str, root: Path = Path()) -> None:
    """Ends a run as FAILED that a killed process left open; nothing where it has ended, or isn't there."""
    uri = tracking_uri(root)
    with suppress(UserError):
        found = _find(run_id, uri)
        if found is not None and found.info.status == "RUNNING":
            Run(_Store.at(uri), _to_stderr, found.info.run_name, run_id, found.info.experiment_id)._end("FAILED")


class SideBySide:
    """Runs that are open at once, by a number each, in whatever order they begin and end; `side_by_side` makes it."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Run, ExitStack]] = {}

    def begin(self, number: int, context: AbstractContextManager[Run]) -> Run:
        """Enters what `start` or `resume` gave."""
        stack = ExitStack()
        run = stack.enter_context(context)
        self._open[number] = run, stack
        return run

    def __getitem__(self, number: int) -> Run:
        return self._open[number][0]

    def end(self, number: int, error: BaseException | None = None) -> None:
        """Ends a run well, or as `error` would."""
        _, stack = self._open.pop(number)
        stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


@contextmanager
def side_by_side() -> Iterator[SideBySide]:
    """Those still open at the end, or at an exception, end with it."""
    runs = SideBySide()
    error: BaseException | None = None
    try:
        yield runs
    except BaseException as raised:
        error = raised
        raise
    finally:
        for number in list(runs._open):
            runs.end(number, error)


@dataclass
class _Record:
    run: Run
    send: Callable[[], Any]
    kept: tempfile.TemporaryDirectory[str] | None = None  # the files it needs, copied


class _Store:
    """One MLflow store, and what it is still to be told, in order.

    All runs of a process share it: a server that is down is asked once for all of them.
    """

    _open: dict[str, "_Store"] = {}  # noqa: RUF012 (by URI)

    def __init__(self, uri: str) -> None:
        self.uri, self.client = uri, _client(uri)
        self.pending: deque[_Record] = deque()
        self._down = False
        self._closed_until = 0.0

    @classmethod
    def at(cls, uri: str) -> "_Store":
        if uri not in cls._open:
            cls._open[uri] = cls(uri)
        return cls._open[uri]

    def put(self, record: _Record, warn: Warn) -> None:
        """Sends the record and those before it, or keeps them while the store is taken to be down."""
        self.pending.append(record)
        if time.monotonic() >= self._closed_until:
            self.send(warn, CATCH_UP_SECONDS)

    def send(self, warn: Warn, seconds: float = math.inf) -> None:
        """Sends what is pending, for about so long, until the store fails."""
        began, sent = time.monotonic(), 0
        while self.pending and (sent == 0 or time.monotonic() - began < seconds):
            record, tried = self.pending[0], time.monotonic()
            try:
                record.send()
            except Exception as error:
                if not _is_refusal(error):
                    self._closed_until = time.monotonic() + max(
                        PAUSE_SECONDS, PAUSE_FACTOR * (time.monotonic() - tried)
                    )
                    if not self._down:
                        warn(f"MLflow at {_shown(self.uri)} fails ({_reason(error)}): records wait, the work goes on")
                    self._down = True
                    return
                record.run.refused += 1
                if record.run.refused == 1:
                    warn(f"MLflow refused a record of run {record.run.name}: {_reason(error)}")
            self.pending.popleft()
            sent += 1
            if record.kept:
                record.kept.cleanup()
        if self._down and not self.pending:
            self._down = False
            warn(f"MLflow at {_shown(self.uri)} answers again: all that waited is sent ({sent} records)")


@contextmanager
def _recording(run: Run) -> Iterator[None]:
    status = "FAILED"
    with _sigterm_raises():
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        finally:
            run._end(status)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Terminated, where nobody else has decided what it does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _find(run_id: str, uri: str) -> Any:
    """The run at `uri`, or None where there is none (any more)."""
    path = _sqlite_path(uri)
    if path is not None and not path.exists():
        return None  # opening it would create it, maybe on a path of another machine
    store = _Store.at(uri)
    from mlflow.exceptions import MlflowException

    with _one_line(uri):
        try:
            run = store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return run if run.info.lifecycle_stage == "active" else None


def _context_tags(root: Path) -> dict[str, str]:
    """Who runs what from which commit, and for which stage and experiment of DVC."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError, ImportError):  # a container's user need not have a name
        tags["mlflow.user"] = getpass.getuser()
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
        commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", lines, re.MULTILINE)
        if commit:
            dirty = any(not line.startswith("#") for line in lines.splitlines())
            tags |= {"mlflow.source.git.commit": commit[1], "git_commit": commit[1], "git_dirty": str(dirty).lower()}
    for variable in ("DVC_STAGE", "DVC_EXP_NAME"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags


def _package(folder: Path, weights: Path, served: Served) -> None:
    """An MLflow model folder without pickles: a request in, pictures out."""
    from mlflow import pyfunc

    signature, example = _interface(served)
    pyfunc.save_model(
        str(folder),
        loader_module="pipeline.cli.serve",
        data_path=str(weights),
        code_paths=[str(Path(__file__).parents[1])],
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in SERVER_NEEDS],
        signature=signature,
        input_example=example,
    )


def _interface(served: Served) -> tuple[Any, Any]:
    """The signature of a packaged model, and an example of a request: what serve.py reads."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    if served == "completions":
        pictures = TensorSpec(np.dtype("float32"), (-1, 28, 28))
        completions = TensorSpec(np.dtype("float32"), (-1, -1, 28, 28))
        params = [ParamSpec(name, DataType.long, usual) for name, usual in (("count", 8), ("digit", -1), ("seed", 0))]
        half = np.zeros((1, 28, 28), np.float32)
        half[:, :14] = -1
        return ModelSignature(Schema([pictures]), Schema([completions]), ParamSchema(params)), half
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.long, "digit"),
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(DataType.string, "sampler", required=False),
    ]
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, 28, 28))])
    return ModelSignature(Schema(inputs), outputs), pd.DataFrame({"digit": [3], "seed": [0]})


def _sign(folder: Path, run_id: str, model_id: str) -> None:
    """Writes into a model folder which run and logged model it belongs to."""
    from mlflow.models import Model

    description = Model.load(str(folder))
    description.run_id, description.model_uuid, description.model_id = run_id, model_id, model_id
    description.artifact_path = MODEL
    description.save(str(folder / "MLmodel"))


# Stores


def _client(uri: str) -> Any:
    """An MlflowClient of a store that can be used, brought up where it is a SQLite file that isn't there yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every retry
    with _one_line(uri):
        path = _sqlite_path(uri)
        if path is not None:
            _bring_up(path)
            _check(path)
        from mlflow import MlflowClient

        return MlflowClient(uri)


def _bring_up(path: Path) -> None:
    """A new SQLite file, with MLflow's tables and in WAL mode (twice as fast), whole or not at all.

    MLflow itself creates the tables one by one under the file's own name, where processes that start together trip
    over one another.
    """
    if _has_content(path):
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        if not _has_content(path):
            with replacing(path) as part:
                _create_tables(part)
        lock.unlink(missing_ok=True)  # the file that is there now is what later processes go by


def _create_tables(path: Path) -> None:
    from mlflow import db
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unsynced(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    upgrade: Any = db.upgrade.callback  # what `mlflow db upgrade` runs: about 300 statements
    event.listen(Engine, "connect", unsynced)  # one fsync, not 300: 1 s instead of 5
    try:
        upgrade(f"sqlite:///{path}")
    finally:
        event.remove(Engine, "connect", unsynced)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _check(path: Path) -> None:
    """Raises UserError for a file that MLflow would stumble over, after minutes of retries."""
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        busy = "another program holds it" if "locked" in str(error) else "move it away to start a new one"
        raise UserError(f"{path} can't be used as MLflow's database ({error}): {busy}") from None
    if not {"alembic_version", "experiments", "runs"} <= names:
        raise UserError(f"{path} is another program's database, not MLflow's: name another in MLFLOW_TRACKING_URI")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


@contextmanager
def _one_line(uri: str) -> Iterator[None]:
    """Turns whatever a store that can't be used raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = "start the server or unset MLFLOW_TRACKING_URI" if _is_server(uri) else "see MLFLOW_TRACKING_URI"
        raise UserError(f"MLflow at {_shown(uri)} can't be used ({_reason(error)}): {remedy}") from error


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered, and would answer the same again: such a record must not hold up the others."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
        return error.error_code in final
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (400, 404, 413)
    return isinstance(error, ValueError | TypeError | UserError)


def _reason(error: Exception) -> str:
    """What went wrong, in a few words: MLflow's own messages hold the whole request."""
    text = " ".join(str(error).split())
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    if system:
        return system[1]
    if "timed out" in text or "timeout" in text:
        return "no answer in time"
    return text[:200] or type(error).__name__


def _shown(uri: str) -> str:
    """The URI without the password it may carry."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {name: str(value)[:longest] for name, value in values.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


# For people


def ui(root: Path, port: int = 5000, open_browser: bool = True, experiment_name: str | None = None) -> None:
    """Shows the runs in a browser: MLflow's server on this machine alone, until Ctrl-C; the next free port if taken.

    Where MLFLOW_TRACKING_URI names a server, it only opens that one. `experiment_name` says what to show first.
    """
    uri = tracking_uri(root)
    client = _client(uri)
    with _one_line(uri):
        found = client.get_experiment_by_name(experiment_name) if experiment_name else None
    # a new browser would open MLflow's view for language models
    page = f"/#/experiments{f'/{found.experiment_id}' if found else ''}?workflowType=machine_learning"
    if _is_server(uri):
        _show(uri.rstrip("/") + page, open_browser)
        return
    path = _sqlite_path(uri)
    # no proxy for artifacts: its addresses (mlflow-artifacts:/…) would be of no use to runs straight on the database
    artifacts = ["--default-artifact-root", path.with_name(ARTIFACTS).as_uri()] if path else []
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--no-serve-artifacts", *artifacts]
    command += ["--host", "127.0.0.1", "--workers", "1", "--port"]
    while not _served(command, port := _free_port(port), page, open_browser):
        port += 1  # taken by another program while the server was starting


def _served(command: Sequence[str], port: int, page: str, open_browser: bool) -> bool:
    """Whether the server had the port to itself; then it has served until Ctrl-C. Raises UserError where it failed."""
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with tempfile.TemporaryFile("w+") as log, _sigterm_raises():
        # a session of its own: Ctrl-C reaches us alone, and we end the server with all its children
        server = subprocess.Popen(
            [*command, str(port)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait(server, address)
            if server.poll() is not None:  # another program's answer
                raise ChildProcessError
            _show(address + page, open_browser)
            print("Ctrl-C ends it", flush=True)
            server.wait()
            raise UserError(f"MLflow's server ended: {_last_line(log)}")
        except ChildProcessError:
            if _says(log, "address already in use"):
                return False
            raise UserError(f"MLflow's server didn't start: {_last_line(log)}") from None
        except KeyboardInterrupt:
            return True
        finally:
            _end_session(server)


def download_model(uri: str, root: Path) -> Path:
    """The weights of the run at `runs:/<run id>`, as `models/<run id>.safetensors` in the user's project folder.

    Raises UserError where there is no such run, or no model in it.
    """
    at = tracking_uri(root)
    run_id, run = _named(uri, at)
    if not (run.outputs and run.outputs.model_outputs):
        raise UserError(f"run {run_id} holds no model: it may have ended before its training did")
    with _one_line(at), tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        from mlflow.artifacts import download_artifacts

        model = _Store.at(at).client.get_logged_model(run.outputs.model_outputs[-1].model_id)
        data = download_artifacts(f"{model.artifact_location}/data", dst_path=folder, tracking_uri=at)
        weights = sorted(Path(data).rglob("*.safetensors"))
        if not weights:
            raise UserError(f"the model of run {run_id} isn't one of this project: it holds no safetensors file")
        target = home(root) / "models" / f"{run_id}.safetensors"
        with replacing(target) as part:
            shutil.copy(weights[0], part)
    return target


@dataclass(frozen=True)
class Recorded:
    """What an MLflow run holds. history: a row a step with the last value of each metric asked for, in order."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    history: list[dict[str, float]]
    has_model: bool


def recorded(uri: str, root: Path, curves: Sequence[str]) -> Recorded:
    """The run at `runs:/<run id>`, with the whole history of the metrics in `curves`.

    Raises UserError where there is no such run.
    """
    at = tracking_uri(root)
    run_id, run = _named(uri, at)
    rows: dict[int, dict[str, float]] = {}
    with _one_line(at):
        for name in curves:
            for point in _Store.at(at).client.get_metric_history(run_id, name):
                rows.setdefault(point.step, {})[name] = point.value
    return Recorded(
        name=run.info.run_name,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        history=[rows[step] for step in sorted(rows)],
        has_model=bool(run.outputs and run.outputs.model_outputs),
    )


def _named(uri: str, at: str) -> tuple[str, Any]:
    """Id and run of `runs:/<run id>` in the store `at`."""
    match = re.fullmatch(rf"runs:/([0-9a-f]+)(/{MODEL})?/?", uri)
    if match is None:
        raise UserError(f"{uri!r} names no run: write runs:/ and the run's id")
    run = _find(match[1], at)
    if run is None:
        raise UserError(f"there is no run {match[1]} in MLflow at {_shown(at)}")
    return match[1], run


def _show(url: str, open_browser: bool) -> None:
    print(f"MLflow: {url}", flush=True)
    if open_browser:
        webbrowser.open(url)


def _free_port(first: int) -> int:
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(("127.0.0.1", port))
            return port
    raise UserError(f"no free port from {first} on: name another one")


def _wait(server: subprocess.Popen[bytes], address: str, seconds: float = 120) -> None:
    """Until the server answers. Raises ChildProcessError where it ends or takes too long."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not asked for this machine
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        # Before the server listens, a connection to its port may meet itself, and reads its own question.
        with suppress(OSError, http.client.HTTPException), opener.open(f"{address}/health", timeout=5):
            return
        time.sleep(0.1)
    raise ChildProcessError


def _end_session(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _says(log: Any, words: str) -> bool:
    log.seek(0)
    return words in log.read().lower()


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1] if lines else "it said nothing"

"""Runs of MLflow and what they record. A training goes on while its records cannot be sent: see outbox.py.

Everything goes through MlflowClient with explicit run ids, so that a study's parent and its children can be open at
once in one process. mlflow is imported inside functions only: the import takes seconds.
"""

import getpass
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.params import params
from pipeline.tracking import local
from pipeline.tracking.local import one_line, shown, tracking_uri
from pipeline.tracking.outbox import Outbox, Record, Sender, Warn
from pipeline.tracking.package import MODEL, Served, pack, sign

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LONGEST_PARAM = 6000  # MLflow's limits, in characters
LONGEST_TAG = 8000
LONGEST_DIGEST = 36


@params
class TrackingParams:
    """The section `tracking` of params.yaml."""

    experiment: Annotated[str, Field(description="name of the MLflow experiment")]


class Terminated(SystemExit):
    """SIGTERM as an exception, so that `with` and `finally` blocks run before the process ends."""


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
    """A new run. It ends as FINISHED, as FAILED after an exception, or as KILLED after Ctrl-C or SIGTERM.

    `parent` is the run id under which the UI shows it. `warn` gets one line when records cannot be sent (default:
    stderr). Raises UserError if the store cannot be used. A run with a parent raises nothing, because its store has
    worked before: its creation waits like any other record, and `run_id` is empty until then.
    """
    run = Run(Outbox.at(tracking_uri(root)), name, warn)
    context = _context_tags(root) | ({"mlflow.parentRunId": parent} if parent else {}) | dict(tags or {})
    create = partial(run._create, experiment, _texts(context, LONGEST_TAG))
    if parent:
        run._put(create)
    else:
        with one_line(run.uri):
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
    """Opens a run again that `start` made at `uri`, to add to it. It ends like a run of `start`.

    If the run or its SQLite file was deleted, a new run with that name and experiment is started in today's store,
    and a line warns. Raises UserError if the store at `uri` cannot be used.
    """
    found = _find(run_id, uri)
    if found is None:
        (warn or _to_stderr)(f"MLflow run {run_id} is no longer at {shown(uri)}: a new run takes the records")
        with start(name, experiment, tags=tags, root=root, warn=warn) as run:
            yield run
        return
    run = Run(Outbox.at(uri), found.info.run_name, warn, found)
    with one_line(uri):
        run._client.update_run(run_id, status="RUNNING")
    with _recording(run):
        run.tags(tags or {})
        yield run


class Run(Sender):
    """An open run, made by `start` or `resume`. The store's failures raise nothing: see outbox.py."""

    def __init__(self, outbox: Outbox, name: str, warn: Warn | None = None, found: Any = None) -> None:
        self.name, self.warn, self.refused = name, warn or _to_stderr, 0
        self.run_id: str = found.info.run_id if found else ""
        self.experiment_id: str = found.info.experiment_id if found else ""
        models = found.outputs.model_outputs if found and found.outputs else []
        self.model_id: str | None = models[-1].model_id if models else None
        self.uri = outbox.uri
        self._outbox, self._client = outbox, outbox.client
        self._has_gap = False

    def metrics(self, values: Mapping[str, float], step: int, of_model: bool = False) -> None:
        """One request for all of them. `of_model` also links them to the run's logged model.

        A value that is not finite is left out, because MLflow would draw inf as 1.8e308 and NaN as 0. The first one
        is reported in a warning and in the tag `not_finite`.
        """
        at = _now()
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        lost = ", ".join(f"{name} at step {step}" for name in values if name not in finite)
        if lost and not self._has_gap:
            self._has_gap = True
            self.warn(f"not a finite number, left out of MLflow: {lost}")
            self.tags({"not_finite": lost})

        def send() -> None:
            from mlflow.entities import Metric

            model_id = self.model_id if of_model else None
            entries = [Metric(name, value, at, step, model_id=model_id) for name, value in finite.items()]
            self._client.log_batch(self.run_id, metrics=entries, synchronous=True)

        self._put(send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat names to values, cut at MLflow's limit. MLflow refuses a second, different value for a name."""

        def send() -> None:
            from mlflow.entities import Param

            entries = [Param(name, text) for name, text in _texts(values, LONGEST_PARAM).items()]
            self._client.log_batch(self.run_id, params=entries, synchronous=True)

        self._put(send)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Names to texts, which replace earlier ones."""
        self._put(partial(self._tag, values))

    def image(self, key: str, image: "np.ndarray", step: int) -> None:
        """A picture, (H, W) or (H, W, 3) uint8. Pictures with one key become a tile with a slider over the steps."""
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
        """A table for the UI's evaluation view, as the artifact `<name>.json`. It replaces an earlier one.

        The layout is that of MLflow's log_table, which would append the rows instead.
        """
        file, content = f"{name}.json", frame.to_json(orient="split", index=False, date_format="iso")

        def send() -> None:
            from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

            self._client.log_text(self.run_id, content, file)
            listed = json.loads(self._client.get_run(self.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
            entry = {"path": file, "type": "table"}
            if entry not in listed:
                self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*listed, entry]))

        self._put(send)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data that the run read: `source` is a path or URL, `context` its use ("train", "test")."""
        remote = urlsplit(source).scheme in ("http", "https")
        address = json.dumps({"url" if remote else "uri": source})

        def send() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(name, digest[:LONGEST_DIGEST], "http" if remote else "local", address)
            entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
            self._client.log_inputs(self.run_id, [entry])

        self._put(send)

    def model(self, weights: Path | str, served: Served = "samples") -> None:
        """The packaged model `runs:/<run id>/model` with these weights. `model_id` is set once it is sent."""
        kept = tempfile.TemporaryDirectory(prefix="cvae-")
        copy, folder = shutil.copy2(weights, kept.name), Path(kept.name) / MODEL
        made: list[str] = []  # what a failed attempt has created already

        def send() -> None:
            from mlflow.entities import LoggedModelOutput

            if not folder.exists():
                pack(folder, Path(copy), served)
            if not made:
                made.append(self._client.create_logged_model(self.experiment_id, MODEL, self.run_id).model_id)
                sign(folder, self.run_id, made[0])
            self._client.log_model_artifacts(made[0], str(folder))
            self._client.finalize_logged_model(made[0], "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(made[0], step=0)])
            self.model_id = made[0]

        self._put(send, kept)

    def _create(self, experiment: str, tags: dict[str, str]) -> None:
        self.experiment_id = local.experiment(self._client, experiment)
        self.run_id = self._client.create_run(self.experiment_id, tags=tags, run_name=self.name).info.run_id

    def _tag(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(name, text) for name, text in _texts(values, LONGEST_TAG).items()]
        self._client.log_batch(self.run_id, tags=entries, synchronous=True)

    def _put(self, send: Callable[[], Any], kept: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        self._outbox.put(Record(self, send, kept))

    def _end(self, status: str) -> None:
        at = _now()
        self._outbox.pending.append(Record(self, lambda: self._client.set_terminated(self.run_id, status, at)))
        self._outbox.send()
        unsent = sum(record.sender is self for record in self._outbox.pending)
        if unsent:
            self.warn(
                f"MLflow at {shown(self.uri)} still doesn't answer: {unsent} records of run {self.name} stay unsent; "
                "reports/history.csv holds the figures"
            )
        if self.refused > 1:
            self.warn(f"MLflow refused {self.refused} records of run {self.name}")


def tag(run_id: str, values: Mapping[str, Any], uris: Sequence[str], warn: Warn) -> None:
    """Tags a run that has ended, in the first store that has it. The run stays ended. Warns if no store has it."""
    for uri in uris:
        with suppress(UserError):
            found = _find(run_id, uri)
            if found is not None:
                Run(Outbox.at(uri), found.info.run_name, warn, found).tags(values)
                return
    warn(f"MLflow run {run_id} is not at {' or '.join(map(shown, uris))}: it gets no tag")


def close(run_id: str, root: Path = Path()) -> None:
    """Ends a run as FAILED that a killed process left open. Does nothing if it has ended or does not exist."""
    uri = tracking_uri(root)
    with suppress(UserError):
        found = _find(run_id, uri)
        if found is not None and found.info.status == "RUNNING":
            Run(Outbox.at(uri), found.info.run_name, found=found)._end("FAILED")


class SideBySide:
    """Runs that are open at once, each with a number, and begin and end in any order.

    Runs still open at the end of the `with` block end with it, in the same way.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[Run, ExitStack]] = {}

    def begin(self, number: int, context: AbstractContextManager[Run]) -> Run:
        """Enters the context that `start` or `resume` returned."""
        stack = ExitStack()
        run = stack.enter_context(context)
        self._open[number] = run, stack
        return run

    def __getitem__(self, number: int) -> Run:
        return self._open[number][0]

    def end(self, number: int, error: BaseException | None = None) -> None:
        """Ends a run, as if its block had raised `error` if there is one."""
        _, stack = self._open.pop(number)
        stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        for number in list(self._open):
            self.end(number, error)


def _find(run_id: str, uri: str) -> Any:
    if local.vanished(uri):
        return None
    client = Outbox.at(uri).client
    with one_line(uri):
        return local.find(client, run_id)


@contextmanager
def _recording(run: Run) -> Iterator[None]:
    status = "FAILED"
    with sigterm_raises():
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        finally:
            run._end(status)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Terminated, unless the process handles it in another way already."""
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


def _context_tags(root: Path) -> dict[str, str]:
    """Who runs what from which commit, and for which stage and experiment of DVC."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
        commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", lines, re.MULTILINE)
        if commit:
            dirty = any(not line.startswith("#") for line in lines.splitlines())
            tags |= {"mlflow.source.git.commit": commit[1], "git_dirty": str(dirty).lower()}
    for variable in ("DVC_STAGE", "DVC_EXP_NAME"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags


def _texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {name: str(value)[:longest] for name, value in values.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)

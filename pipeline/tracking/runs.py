"""Runs of MLflow and what they record. A training goes on while its records cannot be sent: see outbox.py.

Everything goes through MlflowClient with explicit run ids, so that a study's parent and its children can be open at
once in one process. mlflow is imported inside functions only: the import takes seconds.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.base.errors import UserError
from pipeline.base.params import params
from pipeline.tracking import local
from pipeline.tracking.local import one_line, shown, tracking_uri
from pipeline.tracking.outbox import Outbox, Record, Send, Sender, Warn
from pipeline.tracking.package import MODEL, Served, pack, sign, warm_up
from pipeline.tracking.process import Terminated, context_tags, sigterm_raises

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LONGEST_PARAM = 6000  # MLflow's limits, in characters
LONGEST_TAG = 8000
LONGEST_DIGEST = 36

KEY = "run_key"  # the tag by which a run is found whose id nobody has been told


@params
class TrackingParams:
    """The section `tracking` of params.yaml."""

    experiment: str
    """name of the MLflow experiment"""


@contextmanager
def start(
    name: str,
    experiment: str,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    parent: str | None = None,
    key: str = "",
    wait: bool = True,
    root: Path = Path(),
    warn: Warn | None = None,
) -> Iterator["Run"]:
    """A new run. It ends as FINISHED, as FAILED after an exception, or as KILLED after Ctrl-C or SIGTERM.

    parent: the run id under which the UI shows it. key: that of an interrupted run, which then goes on.
    wait: whether to wait until the store has created the run, and to raise its errors. Without it, `run_id` is empty
    at first, and an error that shows late is a warning. So it is with a parent, whose store has worked before.
    warn: gets one line when records cannot be sent (default: stderr). Raises UserError if the store cannot be used.
    """
    run = Run(Outbox.at(tracking_uri(root)), name, warn, key)
    context = context_tags(root) | ({"mlflow.parentRunId": parent} if parent else {}) | dict(tags or {})
    create = partial(run._create, experiment, _texts(context, LONGEST_TAG))
    if parent:
        run._put(create)
        run.wait_for_id()
    elif wait:
        with one_line(run.uri):
            run._outbox.ask(create)
    else:
        local.check(run.uri)
        run._put(create)
        run._put(lambda _client: warm_up())
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
    run = Run(Outbox.at(uri), found.info.run_name, warn)
    with one_line(uri):
        run._outbox.ask(partial(run._go_on, found))
    with _recording(run):
        run.tags(tags or {})
        yield run


class Run(Sender):
    """An open run, made by `start` or `resume`. The store's failures raise nothing: see outbox.py.

    run_id: empty until the store has created the run. key: ours, known at once; a tag of the run.
    """

    def __init__(self, outbox: Outbox, name: str, warn: Warn | None, key: str = "") -> None:
        self.name, self.warn, self.refused = name, warn or _to_stderr, 0
        self._goes_on, self.key = bool(key), key or uuid4().hex
        self.run_id, self.experiment_id = "", ""
        self.model_id: str | None = None
        self.uri, self._outbox = outbox.uri, outbox
        self._has_gap = False

    def wait_for_id(self) -> str:
        """The run id, as soon as it is known; empty while the store is down."""
        self._outbox.wait(lambda: bool(self.run_id))
        return self.run_id

    def metrics(self, values: Mapping[str, float], step: int, of_model: bool = False) -> None:
        """One request for all of them. `of_model` also links them to the run's logged model.

        In a run that `start` opened by its key, a step that was recorded before the interruption is not sent again.
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

        def send(client: Any) -> None:
            from mlflow.entities import Metric

            if self._goes_on and any(
                point.step == step for point in client.get_metric_history(self.run_id, min(finite))
            ):
                return
            model_id = self.model_id if of_model else None
            entries = [Metric(name, value, at, step, model_id=model_id) for name, value in finite.items()]
            client.log_batch(self.run_id, metrics=entries, synchronous=True)

        if finite:
            self._put(send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat names to values, cut at MLflow's limit. MLflow refuses a second, different value for a name."""

        def send(client: Any) -> None:
            from mlflow.entities import Param

            entries = [Param(name, text) for name, text in _texts(values, LONGEST_PARAM).items()]
            client.log_batch(self.run_id, params=entries, synchronous=True)

        self._put(send)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Names to texts, which replace earlier ones."""
        self._put(lambda client: _tag(client, self.run_id, values))

    def image(self, key: str, image: "np.ndarray", step: int) -> None:
        """A picture, (H, W) or (H, W, 3) uint8. Pictures with one key become a tile with a slider over the steps."""
        picture, at = image.copy(), _now()
        self._put(
            lambda client: client.log_image(self.run_id, picture, key=key, step=step, timestamp=at, synchronous=True)
        )

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """A file, as it is now, in the run's artifacts: under `folder`, or at the top."""
        kept = tempfile.TemporaryDirectory(prefix="cvae-")
        copy = shutil.copy2(path, kept.name)
        self._put(lambda client: client.log_artifact(self.run_id, copy, folder), kept)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """The run's table for the UI's evaluation view, as the artifact `<name>.json`. It replaces an earlier one.

        The layout is that of MLflow's log_table, which would append the rows instead.
        """
        content = frame.to_json(orient="split", index=False, date_format="iso")
        listed = json.dumps([{"path": f"{name}.json", "type": "table"}])

        def send(client: Any) -> None:
            client.log_text(self.run_id, content, f"{name}.json")
            client.set_tag(self.run_id, "mlflow.loggedArtifacts", listed)

        self._put(send)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data that the run read: `source` is a path, `context` its use ("train", "test")."""
        address = json.dumps({"uri": source})

        def send(client: Any) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(name, digest[:LONGEST_DIGEST], "local", address)
            entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
            client.log_inputs(self.run_id, [entry])

        self._put(send)

    def model(self, weights: Path | str, served: Served = "samples") -> None:
        """The packaged model `runs:/<run id>/model` with these weights. `model_id` is set once it is sent."""
        kept = tempfile.TemporaryDirectory(prefix="cvae-")
        copy, folder = shutil.copy2(weights, kept.name), Path(kept.name) / MODEL
        made: list[str] = []  # what a failed attempt has created already

        def send(client: Any) -> None:
            from mlflow.entities import LoggedModelOutput

            if not folder.exists():
                pack(folder, Path(copy), served)
            if not made:
                made.append(client.create_logged_model(self.experiment_id, MODEL, self.run_id).model_id)
                sign(folder, self.run_id, made[0])
            client.log_model_artifacts(made[0], str(folder))
            client.finalize_logged_model(made[0], "READY")
            client.log_outputs(self.run_id, [LoggedModelOutput(made[0], step=0)])
            self.model_id = made[0]

        self._put(send, kept)

    def _create(self, experiment: str, tags: dict[str, str], client: Any) -> None:
        """Creates the run, or goes on with one of its key: of a killed process, or of a request without answer."""
        self.experiment_id = local.experiment(client, experiment)
        found = client.search_runs([self.experiment_id], f"tags.{KEY} = '{self.key}'", max_results=1)
        if found:
            self._go_on(found[0], client)
            return
        if self._goes_on:
            self.warn(f"the interrupted run is no longer in MLflow at {shown(self.uri)}: a new run takes the records")
        created = client.create_run(self.experiment_id, tags=tags | {KEY: self.key}, run_name=self.name)
        self.run_id = created.info.run_id

    def _go_on(self, found: Any, client: Any) -> None:
        client.update_run(found.info.run_id, status="RUNNING")
        self.run_id, self.experiment_id = found.info.run_id, found.info.experiment_id
        if found.outputs and found.outputs.model_outputs:
            self.model_id = found.outputs.model_outputs[-1].model_id

    def _put(self, send: Send, kept: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        self._outbox.put(Record(self, send, kept))

    def _end(self, status: str) -> None:
        at = _now()
        self._put(lambda client: client.set_terminated(self.run_id, status, at))
        if self._outbox.users > 0:  # the last run to end waits for the records of all
            return
        left = self._outbox.flush()
        if left:
            self.warn(
                f"MLflow at {shown(self.uri)} still doesn't answer: {left} records stay unsent; "
                "reports/history.csv holds the figures"
            )
        if self.refused > 1:
            self.warn(f"MLflow refused {self.refused} records of run {self.name}")


def tag(run_id: str, values: Mapping[str, Any], uris: Sequence[str], warn: Warn) -> None:
    """Tags a run that has ended, in the first store that has it. The run stays ended. Warns if no store has it."""
    for uri in uris:
        with suppress(UserError), one_line(uri):
            if _find(run_id, uri) is not None:
                Outbox.at(uri).ask(lambda client: _tag(client, run_id, values))
                return
    warn(f"MLflow run {run_id} is not at {' or '.join(map(shown, uris))}: it gets no tag")


def close(run_id: str, root: Path = Path()) -> None:
    """Ends a run as FAILED that a killed process left open. Does nothing if it has ended or does not exist."""
    uri = tracking_uri(root)
    with suppress(UserError), one_line(uri):
        found = _find(run_id, uri)
        if found is not None and found.info.status == "RUNNING":
            Outbox.at(uri).ask(lambda client: client.set_terminated(run_id, "FAILED"))


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
    with one_line(uri):
        return Outbox.at(uri).ask(lambda client: local.find(client, run_id))


def _tag(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    from mlflow.entities import RunTag

    entries = [RunTag(name, text) for name, text in _texts(values, LONGEST_TAG).items()]
    client.log_batch(run_id, tags=entries, synchronous=True)


@contextmanager
def _recording(run: Run) -> Iterator[None]:
    status = "FAILED"
    run._outbox.users += 1
    with sigterm_raises():
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        finally:
            run._outbox.users -= 1
            run._end(status)


def _texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {name: str(value)[:longest] for name, value in values.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)

"""Runs of MLflow and what they record. A training goes on while its records cannot be sent: see outbox.py.

Everything goes through MlflowClient with explicit run ids, so that a study's parent and its children can be open at
once in one process. mlflow is imported inside functions only: the import takes seconds.
"""

import getpass
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import shown
from pipeline.base.params import params
from pipeline.tracking import package
from pipeline.tracking.local import connect, experiment_id, find, one_line, tracking_uri
from pipeline.tracking.outbox import Outbox, Send

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LONGEST_DIGEST = 36  # MLflow's limit, in characters
KEY = "run_key"  # the tag by which a run is found whose id nobody has been told


@params
class TrackingParams:
    """The section `tracking` of params.yaml."""

    experiment: str
    """name of the MLflow experiment"""


def start(
    name: str,
    experiment: str,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    key: str = "",
    wait: bool = True,
    root: Path = Path(),
) -> "Run":
    """A new run, to be ended by `with` or `end`.

    key: that of an interrupted run, which then goes on. wait: whether to wait until the store has created the run, and
    to raise its errors. Without it, `run_id` is empty at first, and an error that shows late is a warning.
    Raises UserError if the store cannot be used.
    """
    run = Run(Outbox.at(tracking_uri(root)), name, key)
    create = partial(run._create, experiment, _context(root) | dict(tags or {}))
    if wait:
        with one_line(run.uri):
            create(connect(run.uri))
    else:
        run._put(create)
    run._outbox.users += 1
    if params:
        run.params(params)
    return run


def resume(
    run_id: str, uri: str, name: str, experiment: str, *, tags: Mapping[str, Any] | None = None, root: Path = Path()
) -> "Run":
    """Opens a run again that `start` made at `uri`, to add to it. It ends like a run of `start`.

    If the run or its SQLite file was deleted, a new run with that name and experiment is started in today's store,
    and a line warns. Raises UserError if the store at `uri` cannot be used.
    """
    found = find(uri, run_id)
    if found is None:
        console.warn(f"MLflow run {run_id} is no longer at {shown(uri)}: a new run takes the records")
        return start(name, experiment, tags=tags, root=root)
    run = Run(Outbox.at(uri), found.info.run_name)
    with one_line(uri):
        run._go_on(found, connect(uri))
    run._outbox.users += 1
    run.tags(tags or {})
    return run


class Run:
    """An open run, made by `start` or `resume`. The store's failures raise nothing: see outbox.py.

    run_id: empty until the store has created the run. key: ours, known at once; a tag of the run.
    """

    def __init__(self, outbox: Outbox, name: str, key: str = "") -> None:
        self.name, self.uri, self._outbox = name, outbox.uri, outbox
        self._goes_on, self.key = bool(key), key or uuid4().hex
        self.run_id, self.experiment_id = "", ""
        self.model_id: str | None = None
        self._has_gap = self._ended = False

    def wait_for_id(self) -> str:
        """The run id, as soon as it is known; empty while the store is down."""
        self._outbox.wait(lambda: bool(self.run_id))
        return self.run_id

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Ends the run as FINISHED, as KILLED after Ctrl-C or SIGTERM, or as FAILED after another exception.

        The last open run waits for the records of all. A run that has ended already stays as it is.
        """
        if self._ended:
            return
        self._ended = True
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        at = _now()
        self._put(lambda client: client.set_terminated(self.run_id, status, at))
        self._outbox.users -= 1
        left = self._outbox.flush() if self._outbox.users == 0 else 0
        if left:
            console.warn(
                f"MLflow at {shown(self.uri)} still doesn't answer: {left} records stay unsent; "
                "reports/history.csv holds the figures"
            )

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
            console.warn(f"not a finite number, left out of MLflow: {lost}")
            self.tags({"not_finite": lost})

        def send(client: Any) -> None:
            from mlflow.entities import Metric

            before = client.get_metric_history(self.run_id, min(finite)) if self._goes_on else []
            if all(point.step != step for point in before):
                model_id = self.model_id if of_model else None
                entries = [Metric(name, value, at, step, model_id=model_id) for name, value in finite.items()]
                client.log_batch(self.run_id, metrics=entries, synchronous=True)

        if finite:
            self._put(send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat names to values. MLflow cuts long ones, and refuses a second, different value for a name."""

        def send(client: Any) -> None:
            from mlflow.entities import Param

            entries = [Param(name, str(value)) for name, value in values.items()]
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
        name, content = Path(path).name, Path(path).read_bytes()

        def send(client: Any) -> None:
            with tempfile.TemporaryDirectory(prefix="cvae-") as place:
                Path(place, name).write_bytes(content)
                client.log_artifact(self.run_id, str(Path(place, name)), folder)

        self._put(send)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """The run's table for the UI's evaluation view, as the artifact `<name>.json`. It replaces an earlier one.

        The layout is that of MLflow's log_table, which would append the rows instead.
        """
        content = frame.to_json(orient="split", index=False, date_format="iso")
        self._put(lambda client: client.log_text(self.run_id, content, f"{name}.json"))
        self.tags({"mlflow.loggedArtifacts": json.dumps([{"path": f"{name}.json", "type": "table"}])})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data that the run read: `source` is a path, `context` its use ("train", "test")."""

        def send(client: Any) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(name, digest[:LONGEST_DIGEST], "local", json.dumps({"uri": source}))
            client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

        self._put(send)

    def expect_model(self) -> None:
        """Imports early, while a training runs, what `model` needs."""
        self._put(lambda _client: package.warm_up())

    def model(self, weights: Path | str, served: package.Served = "samples") -> None:
        """The packaged model `runs:/<run id>/model` with these weights. `model_id` is set once it is sent."""
        name, content = Path(weights).name, Path(weights).read_bytes()
        made: list[str] = []  # what a failed attempt has created already

        def send(client: Any) -> None:
            from mlflow.entities import LoggedModelOutput

            with tempfile.TemporaryDirectory(prefix="cvae-") as place:
                Path(place, name).write_bytes(content)
                if not made:
                    made.append(client.create_logged_model(self.experiment_id, package.MODEL, self.run_id).model_id)
                client.log_model_artifacts(made[0], str(package.pack(Path(place, name), served, self.run_id, made[0])))
            client.finalize_logged_model(made[0], "READY")
            client.log_outputs(self.run_id, [LoggedModelOutput(made[0], step=0)])
            self.model_id = made[0]

        self._put(send)

    def _create(self, experiment: str, tags: Mapping[str, Any], client: Any) -> None:
        """Creates the run, or goes on with one of its key: of a killed process, or of a request without answer."""
        self.experiment_id = experiment_id(client, experiment)
        found = client.search_runs([self.experiment_id], f"tags.{KEY} = '{self.key}'", max_results=1)
        if found:
            self._go_on(found[0], client)
            return
        if self._goes_on:
            console.warn(f"the interrupted run is no longer at {shown(self.uri)}: a new run takes the records")
        texts = {name: str(value) for name, value in tags.items()} | {KEY: self.key}
        self.run_id = client.create_run(self.experiment_id, tags=texts, run_name=self.name).info.run_id

    def _go_on(self, found: Any, client: Any) -> None:
        client.update_run(found.info.run_id, status="RUNNING")
        self.run_id, self.experiment_id = found.info.run_id, found.info.experiment_id
        if found.outputs and found.outputs.model_outputs:
            self.model_id = found.outputs.model_outputs[-1].model_id

    def _put(self, send: Send) -> None:
        self._outbox.put(self.name, send)


def tag(run_id: str, values: Mapping[str, Any], uris: Sequence[str]) -> None:
    """Tags a run that has ended, in the first store that has it. The run stays ended. Warns if no store has it."""
    for uri in uris:
        with suppress(UserError), one_line(uri):
            if find(uri, run_id) is not None:
                _tag(connect(uri), run_id, values)
                return
    console.warn(f"MLflow run {run_id} is not at {' or '.join(map(shown, uris))}: it gets no tag")


def close(run_id: str, root: Path = Path()) -> None:
    """Ends a run as FAILED that a killed process left open. Does nothing if it has ended or does not exist."""
    uri = tracking_uri(root)
    with suppress(UserError), one_line(uri):
        found = find(uri, run_id)
        if found is not None and found.info.status == "RUNNING":
            connect(uri).set_terminated(run_id, "FAILED")


def _tag(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        client.set_tag(run_id, name, str(value), synchronous=True)


def _context(root: Path) -> dict[str, Any]:
    """Tags: who runs what from which commit, and for which stage and experiment of DVC."""
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
    variables = ("DVC_STAGE", "DVC_EXP_NAME")
    return tags | {name.lower(): os.environ[name] for name in variables if os.environ.get(name)}


def _now() -> int:
    return int(time.time() * 1000)

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
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.base import console
from pipeline.base.addresses import shown
from pipeline.base.errors import UserError
from pipeline.base.files import png, sha256
from pipeline.base.params import FILE, params
from pipeline.base.services import within
from pipeline.tracking import package
from pipeline.tracking.about import as_file, changed, figures, picture
from pipeline.tracking.journal import OUTBOX
from pipeline.tracking.labels import labelled
from pipeline.tracking.local import KEY, connect, experiment_id, find, one_line, tracking_uri
from pipeline.tracking.outbox import FIRST_SECONDS, Outbox
from pipeline.tracking.page import SAMPLES
from pipeline.tracking.records import Target

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DESCRIPTION, EVALUATED = "mlflow.note.content", "evaluated_with"
EVALUATION = "\n\n### Evaluation"  # in a description
LONGEST_DIGEST = 36  # MLflow's limit, in characters


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
    resolved: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    about: str = "",
    key: str = "",
    wait: bool = True,
) -> "Run":
    """A new run, to be ended by `with` or `end`.

    params, resolved: see Run.params. about: the description, in Markdown. key: that of an interrupted run, which then
    goes on. wait: whether to wait until the store has created the run, and to raise its errors. Without it, `run_id` is
    empty at first, and an error that shows late is a warning.
    Raises UserError if the store cannot be used.
    """
    uri = tracking_uri()
    if wait:
        with one_line(uri):  # an error of the experiment is raised here
            within(FIRST_SECONDS, lambda: experiment_id(connect(uri), experiment))
    run = Run(Outbox.at(uri), Target(name, key or uuid4().hex), goes_on=bool(key))
    texts = {name: str(value) for name, value in (_context() | dict(tags or {})).items()}
    if about:
        texts[DESCRIPTION] = about
    run._put("open", experiment=experiment, tags=texts, goes_on=bool(key))
    if params:
        run.params(params, resolved)
    if wait:
        run.wait_for_id()
    return run


def add_to(pointer: Mapping[str, Any], name: str, experiment: str, how: str = "") -> "Run":
    """Opens a run that has ended, to add to it; its status stays. `pointer` is what `Run.pointer` gave.

    how: in which way an evaluation measured, in words. A run that was evaluated in another way keeps those figures, and
    a new run below it takes these. So does a trial, whose figures are means over its seeds.

    The run is looked for in today's store, by its id or key, then at the server that the pointer names. If it is at
    neither, a new run with that name and experiment is started in today's store, and a line warns.
    Raises UserError if today's store cannot be used.
    """
    run_id, key, place = pointer["run_id"], pointer.get("run_key", ""), str(pointer.get("tracking_uri", ""))
    uri = today = tracking_uri()
    found = find(today, run_id, key)
    is_elsewhere = place.startswith("http") and place != shown(today)
    if found is None and is_elsewhere:
        with suppress(UserError):
            uri, found = place, find(place, run_id, key)
    if found is None:
        where = f"{shown(today)} or {place}" if is_elsewhere else shown(today)
        console.warn(f"MLflow run {run_id or key} is not at {where}: a new run takes the records")
        return start(name, experiment)
    tags = found.data.tags
    if how and (tags.get(EVALUATED, how) != how or tags.get("kind") == "trial"):
        own = {EVALUATED: how, "kind": "evaluation", "mlflow.parentRunId": found.info.run_id}
        return start(f"{name}, {how}", experiment, tags=own)
    target = Target(found.info.run_name, key or tags.get(KEY, run_id))
    target.know(found)
    run = Run(Outbox.at(uri), target, adds=True)
    run.about = tags.get(DESCRIPTION, "")
    if how:
        run.tags({EVALUATED: how})
    return run


class Run:
    """An open run, made by `start` or `add_to`. The store's failures raise nothing: see outbox.py.

    adds: it has ended already, and keeps its status. goes_on: a killed process may have sent the same records.
    """

    def __init__(self, outbox: Outbox, target: Target, *, adds: bool = False, goes_on: bool = False) -> None:
        self.key, self.about = target.key, ""  # key: ours, known at once; a tag of the run
        self.uri = shown(outbox.uri)
        self.address = outbox.address  # for files: without a password, and without the project's folder
        self._outbox = outbox
        self._target, self._adds, self._goes_on = target, adds, goes_on
        self._journal = outbox.journal(target, ends=not adds)
        self._has_gap = self._ended = False
        outbox.users += 1

    @property
    def run_id(self) -> str:
        """Empty until the store has created the run."""
        return self._target.run_id

    def wait_for_id(self) -> str:
        """The run id, as soon as it is known; empty while the store is down."""
        self._outbox.wait(lambda: bool(self.run_id))
        return self.run_id

    def deliver(self) -> bool:
        """Waits, as at the end of a run, until MLflow has all records so far. Returns whether it has."""
        return self._outbox.flush() == 0

    def again(self) -> "Run":
        """Opens this run, which has ended, to add to it, as `add_to` does; also while the store is down."""
        return Run(self._outbox, self._target, adds=True)

    def pointer(self) -> dict[str, str]:
        """What `add_to` finds the run by. It may lie in files: it holds neither password nor the folder's name."""
        return {"run_id": self.wait_for_id(), "run_key": self.key, "tracking_uri": self.address}

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
        if not self._adds:
            self._put("end", status=status)
        self._outbox.close(self._journal)
        self._outbox.users -= 1
        left = self._outbox.flush() if self._outbox.users == 0 else 0
        if left:
            what = "1 record waits" if left == 1 else f"{left} records wait"
            rest = "`cvae sync`, or the next run, sends them"
            if not self._journal.is_whole:
                rest = f"{OUTBOX} can't be written, so that some of them are lost now"
            console.warn(f"{what} in {OUTBOX} for MLflow at {self.uri}: {rest}")

    def metrics(self, values: Mapping[str, float], step: int, of_model: bool = False, shared: bool = False) -> None:
        """One request for all of them. `of_model` also links them to the run's logged model.

        shared: another process may have recorded them; what the run has already is not sent again.

        In a run that `start` opened by its key, a step that was recorded before the interruption is not sent again.
        A value that is not finite is left out, because MLflow would draw inf as 1.8e308 and NaN as 0. The first one
        is reported in a warning and in the tag `not_finite`.
        """
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        lost = ", ".join(f"{name} at step {step}" for name in values if name not in finite)
        if lost and not self._has_gap:
            self._has_gap = True
            console.warn(f"not a finite number, left out of MLflow: {lost}")
            self.tags({"not_finite": lost})
        if finite:
            self._put("metrics", values=finite, step=step, of_model=of_model, adds=self._adds or shared)

    def params(self, values: Mapping[str, Any], resolved: Mapping[str, Any] | None = None) -> None:
        """Values by names such as `train.epochs`: what was changed as parameters, all as the artifact params.yaml.

        resolved: what blank values stand for, for the artifact alone. MLflow cuts long values, and refuses a second,
        different value for a name.
        """
        self._put("params", values={name: str(value) for name, value in changed(values).items()})
        self.text(as_file({**values, **(resolved or {})}), FILE)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Names to texts, which replace earlier ones."""
        if values:
            self._put("tags", values={name: str(value) for name, value in values.items()})

    def describe(self, text: str) -> None:
        """The description at the top of the run's page, in Markdown. It replaces an earlier one."""
        self.tags({DESCRIPTION: text})

    def evaluated(self, found: Mapping[str, Mapping[str, float]], verdict: str, artifact: str) -> None:
        """What an evaluation found, as tags and below the description: figures by split, the doctor's, a picture."""
        self.tags({"collapsed": str(found["validation"]["collapsed"]).lower(), "doctor": verdict})
        said = [self.about.partition(EVALUATION)[0] + EVALUATION, figures(found), f"The doctor's verdict: {verdict}"]
        self.describe("\n\n".join([*said, picture(self.wait_for_id(), artifact)]))

    def samples(self, strip: "np.ndarray") -> None:
        """The strip of samples that every training and every trial has, with labels: a tile, and samples.png.

        It has step 0, which the page shows first.
        """
        picture = labelled(strip)
        self.image(SAMPLES, picture, step=0)
        self._put_file("artifact", png(picture), "", name=f"{SAMPLES}.png", folder=None)

    def text(self, content: str, name: str) -> None:
        """A text as an artifact."""
        self._put("text", name=name, text=content)

    def image(self, key: str, image: "np.ndarray", step: int) -> None:
        """A picture, (H, W) or (H, W, 3) uint8. Pictures with one key become a tile with a slider over the steps."""
        self._put_file("image", png(image), ".png", key=key, step=step)

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """A file, as it is now, in the run's artifacts: under `folder`, or at the top."""
        self._put_file("artifact", Path(path).read_bytes(), "", name=Path(path).name, folder=folder)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """The run's table for the UI's evaluation view, as the artifact `<name>.json`. It replaces an earlier one.

        The layout is that of MLflow's log_table, which would append the rows instead.
        """
        content = frame.to_json(orient="split", index=False, date_format="iso")
        self.text(content, f"{name}.json")
        self.tags({"mlflow.loggedArtifacts": json.dumps([{"path": f"{name}.json", "type": "table"}])})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data that the run read: `source` is a path, `context` its use ("train", "test")."""
        source = json.dumps({"uri": source})
        self._put("dataset", name=name, digest=digest[:LONGEST_DIGEST], kind="local", source=source, context=context)

    def expect_model(self) -> None:
        """Imports early, while a training runs, what `model` needs."""
        self._put("expect_model")

    def model(self, weights: Path | str, served: package.Served = "samples") -> None:
        """The packaged model `runs:/<run id>/cvae-mnist` with these weights, and the figures that the run has so far.

        The tag `model_hash` is the SHA-256 of the weights.
        """
        self.tags({"model_hash": sha256(weights)})
        self._put_file("model", Path(weights).read_bytes(), "", name=Path(weights).name, served=served)

    def _put(self, do: str, **values: Any) -> None:
        record = {"do": do, "at": int(time.time() * 1000), **values}
        self._outbox.put(self._target, self._journal, record, again=self._goes_on)

    def _put_file(self, do: str, content: bytes, suffix: str, **values: Any) -> None:
        """A record with a file. Where there is no room for a copy, a warning says that MLflow won't have it."""
        try:
            file = self._journal.keep(content, suffix)
        except OSError as error:
            what = values.get("name", do)
            console.warn(f"{what} doesn't reach MLflow: {self._journal.files} can't be written ({error.strerror})")
            return
        self._put(do, file=file, bytes=len(content), **values)


def tag(run_id: str, values: Mapping[str, Any], uris: Sequence[str]) -> None:
    """Tags a run that has ended, in the first store that has it. The run stays ended. Warns if no store has it."""
    for uri in uris:
        with suppress(UserError), one_line(uri):
            if find(uri, run_id) is not None:
                client = connect(uri)
                for name, value in values.items():
                    client.set_tag(run_id, name, str(value), synchronous=True)
                return
    console.warn(f"MLflow run {run_id} is not at {' or '.join(map(shown, uris))}: it gets no tag")


def _context() -> dict[str, Any]:
    """Tags: who runs what from which commit, and for which stage and experiment of DVC."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", lines, re.MULTILINE)
        if commit:
            dirty = any(not line.startswith("#") for line in lines.splitlines())
            tags |= {"mlflow.source.git.commit": commit[1], "git_dirty": str(dirty).lower()}
    variables = ("DVC_STAGE", "DVC_EXP_NAME")
    return tags | {name.lower(): os.environ[name] for name in variables if os.environ.get(name)}

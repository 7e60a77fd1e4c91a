"""How MLflow gets each kind of record. Each can be sent again after an answer that was lost, and stands there once."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import console
from pipeline.base.addresses import shown
from pipeline.tracking import package
from pipeline.tracking.journal import Journal, Record
from pipeline.tracking.local import KEY, by_key, experiment_id, model_of


@dataclass
class Target:
    """A run that records are for. run_id: empty until the store has created it."""

    name: str
    key: str
    run_id: str = ""
    experiment_id: str = ""
    model_id: str = ""

    def know(self, found: Any) -> None:
        """Takes over what the store says of the run."""
        self.run_id, self.experiment_id = found.info.run_id, found.info.experiment_id
        self.model_id = model_of(found) or self.model_id


@dataclass
class Line:
    """A record on its way. again: it may have arrived before; a tag, a step or a name is then looked for first."""

    to: Target
    journal: Journal
    number: int  # in the journal
    record: Record
    again: bool = False

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The record's file under that name."""
        kept = self.journal.files / self.record["file"]
        # An interrupted program deletes the folder at its end while this thread still writes there.
        with tempfile.TemporaryDirectory(prefix="cvae-", ignore_cleanup_errors=True) as folder:
            try:
                os.link(kept, Path(folder, name))
            except OSError:  # another disk
                shutil.copyfile(kept, Path(folder, name))
            yield Path(folder, name)


def _open(client: Any, it: Line) -> None:
    """Creates the run, or goes on with one of its key: of a killed process, or of a request without answer."""
    experiment = experiment_id(client, it.record["experiment"])
    found = by_key(client, [experiment], it.to.key)
    if found is not None:
        it.to.know(found)
        if found.info.status != "RUNNING":
            client.update_run(found.info.run_id, status="RUNNING")
        return
    if it.record["goes_on"]:
        uri = shown(client.tracking_uri)
        console.warn(f"the interrupted run is no longer at {uri}: a new run takes the records")
    tags = {**it.record["tags"], KEY: it.to.key}
    it.to.know(client.create_run(experiment, it.record["at"], tags=tags, run_name=it.to.name))


def _metrics(client: Any, it: Line) -> None:
    from mlflow.entities import Metric

    values, step = it.record["values"], it.record["step"]
    if it.record.get("adds"):  # what is measured again has the same figures
        known = client.get_run(it.to.run_id).data.metrics
        values = {name: value for name, value in values.items() if known.get(name) != value}
        if not values:
            return
    if it.again and any(one.step == step for one in client.get_metric_history(it.to.run_id, min(values))):
        return
    if it.record["of_model"] and not it.to.model_id:
        it.to.know(client.get_run(it.to.run_id))
    model = it.to.model_id or None if it.record["of_model"] else None
    first = sorted(values, key=lambda name: not name.startswith("validation/"))  # Compare opens on what came first
    entries = [Metric(name, values[name], it.record["at"], step, model_id=model) for name in first]
    client.log_batch(it.to.run_id, metrics=entries, synchronous=True)


def _params(client: Any, it: Line) -> None:
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in it.record["values"].items()]
    client.log_batch(it.to.run_id, params=entries, synchronous=True)


def _tags(client: Any, it: Line) -> None:
    for name, value in it.record["values"].items():
        client.set_tag(it.to.run_id, name, value, synchronous=True)


def _image(client: Any, it: Line) -> None:
    import mlflow
    from PIL import Image

    key, step, at = (it.record[name] for name in ("key", "step", "at"))
    if it.again:
        start = f"images/{key.replace('/', '~')}+step+{step}+"
        if any(one.path.startswith(start) for one in client.list_artifacts(it.to.run_id, "images")):
            return
    with it.file("image.png") as path, Image.open(path) as picture:
        client.log_image(it.to.run_id, mlflow.Image(picture), key=key, step=step, timestamp=at, synchronous=True)


def _artifact(client: Any, it: Line) -> None:
    with it.file(it.record["name"]) as path:
        client.log_artifact(it.to.run_id, str(path), it.record["folder"])


def _text(client: Any, it: Line) -> None:
    client.log_text(it.to.run_id, it.record["text"], it.record["name"])


def _dataset(client: Any, it: Line) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(*(it.record[name] for name in ("name", "digest", "kind", "source")))
    client.log_inputs(it.to.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", it.record["context"])])])


def _model(client: Any, it: Line) -> None:
    """A run has one model: one that an interrupted try has made is completed."""
    from mlflow.entities import LoggedModelOutput, Metric

    run, name = client.get_run(it.to.run_id), package.NAMES[it.record["served"]]
    made = client.search_logged_models([it.to.experiment_id], filter_string=f"source_run_id = '{it.to.run_id}'")
    model = min(made, key=lambda one: str(one.status) != "READY", default=None) or client.create_logged_model(
        it.to.experiment_id, name, it.to.run_id, params=run.data.params, model_type="cvae"
    )
    if str(model.status) != "READY":
        with it.file(it.record["name"]) as path:
            folder = package.pack(path, it.to.run_id, model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    it.to.know(run)
    # The figures so far, with the time and step that they have in the run, which then keeps them once.
    figures = [Metric(one.key, one.value, one.timestamp, one.step, model.model_id) for one in run.data._metric_objs]
    client.log_batch(it.to.run_id, metrics=figures, synchronous=True)
    if it.to.model_id != model.model_id:
        client.log_outputs(it.to.run_id, [LoggedModelOutput(model.model_id, step=0)])
        it.to.model_id = model.model_id


def _end(client: Any, it: Line) -> None:
    """killed: its process did not end it; another one may have gone on with it and have ended it since."""
    if it.record.get("killed") and client.get_run(it.to.run_id).info.status != "RUNNING":
        return
    client.set_terminated(it.to.run_id, it.record["status"], it.record["at"])


SEND: dict[str, Callable[[Any, Line], None]] = {
    "open": _open,
    "metrics": _metrics,
    "params": _params,
    "tags": _tags,
    "image": _image,
    "artifact": _artifact,
    "text": _text,
    "dataset": _dataset,
    "expect_model": lambda *_: package.warm_up(),
    "model": _model,
    "end": _end,
}

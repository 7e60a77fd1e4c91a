"""The MLflow runs of a study: one for the study, and below it one for each trial."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.base.params import flat
from pipeline.study.queue import Candidate, Study
from pipeline.tracking import runs as tracking
from pipeline.tracking.local import tracking_uri


@contextmanager
def study_run(study: Study, experiment: str) -> Iterator[tracking.Run]:
    """The study's own run: the one that it remembers, if it is in today's store, or else a new one."""
    name, uri, tags = f"study {study.name}", tracking_uri(Path()), {"study": study.name, "kind": "study"}
    with ExitStack() as stack:
        with study.turn():  # of processes that start together, only the first makes a run
            before = study.note("mlflow_run") if study.note("mlflow_uri") == uri else None
            if before:
                run = tracking.resume(before, uri, name, experiment, tags=tags)
            else:
                params = {key: str(value) for key, value in flat({"tune": study.setting.tune}).items()}
                run = tracking.start(name, experiment, params=params, tags=tags)
            stack.enter_context(run)
            if run.run_id != before:
                study.remember("mlflow_run", run.run_id)
                study.remember("mlflow_uri", uri)
        yield run


def trial_run(study: Study, experiment: str, parent: str, candidate: Candidate) -> tracking.Run:
    """A trial's run: that of its interrupted try, if there was one, or else a new one."""
    number = candidate.number
    name = f"trial {number} β={candidate.kl_weight:.3g}"
    tags = {"study": study.name, "trial": number, "kind": "trial", "mlflow.parentRunId": parent}
    if candidate.run_id and candidate.uri:
        return tracking.resume(candidate.run_id, candidate.uri, name, experiment, tags=tags)
    return tracking.start(name, experiment, tags=tags, wait=False)

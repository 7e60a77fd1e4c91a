"""What MLflow records of a study: a run for the study, and below it one for each trial."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.params import flat
from pipeline.base.paths import BEST, SEEDS, STUDY_FIGURES, TRIALS
from pipeline.model import samples
from pipeline.study.queue import Candidate, Study
from pipeline.study.search import Began, Ended, Epoch, Event
from pipeline.tracking import runs as tracking
from pipeline.tracking.local import tracking_uri
from pipeline.training.fit import Diverged


@dataclass
class Records:
    """parent: the study's run. open: ends the runs of the trials that are still in training at its own end."""

    study: Study
    experiment: str
    parent: tracking.Run
    open: ExitStack
    runs: dict[int, tracking.Run] = field(default_factory=dict)  # of the trials in training

    def follow(self, event: Event) -> None:
        """Records an event in its trial's run, under the names that a training's run has."""
        candidate, number = event.candidate, event.candidate.trial.number
        if isinstance(event, Began):
            self.runs[number] = self.open.enter_context(self._trial_run(candidate))
            self.runs[number].params(self.study.setting.params(candidate.trial.params))
        run = self.runs[number]
        if run.wait_for_id() not in ("", candidate.trial.user_attrs.get("run_id")):  # empty while MLflow is down
            candidate.remember_run(run.run_id, run.uri)
        if isinstance(event, Epoch):
            if event.seed == self.study.setting.rounds()[0]:  # the curves of a training of its own
                run.metrics(event.record.figures, event.record.step)
                run.image("samples_prior", samples.preview(event.model), event.record.step)
            if event.figures:
                # The means over the seeds so far, each at a step of its own: a run that goes on writes no step twice.
                run.metrics(candidate.figures, event.record.step + len(candidate.seeds) - 1)
        elif isinstance(event, Ended):
            if event.strip is not None:
                run.image("samples_prior_and_fitted", event.strip, candidate.epochs)
            run.tags({"state": event.state, "seeds": len(candidate.seeds)})
            error = Diverged(f"diverged in epoch {candidate.epochs}") if event.state == "FAIL" else None
            self.runs.pop(number).end(error)

    def finish(self) -> None:
        """Adds the exported files. Ends the runs that killed processes left open and whose trials nobody continued."""
        table = self.study.table()
        failed = table["state"] == "FAILED"
        for run_id in set(table[failed]["run_id"].dropna()) - set(table[~failed]["run_id"].dropna()):
            tracking.close(run_id)
        for path in (TRIALS, SEEDS, BEST, *sorted(STUDY_FIGURES.glob("*.png"))):
            self.parent.artifact(path, "figures" if path.parent == STUDY_FIGURES else None)
        self.parent.tags({"trials": self.study.done()})

    def _trial_run(self, candidate: Candidate) -> tracking.Run:
        """The run of the trial's interrupted try, if there was one, or else a new one."""
        trial, parent = candidate.trial, self.parent.run_id
        name = f"trial {trial.number} β={trial.params['kl_weight']:.3g}"
        tags = {"study": self.study.name, "trial": trial.number, "kind": "trial", "mlflow.parentRunId": parent}
        known = trial.user_attrs
        if "run_id" in known and "tracking_uri" in known:
            return tracking.resume(known["run_id"], known["tracking_uri"], name, self.experiment, tags=tags)
        return tracking.start(name, self.experiment, tags=tags, wait=False)


@contextmanager
def study_run(study: Study, experiment: str) -> Iterator[tracking.Run]:
    """The study's own run: the one that it remembers, if it is in today's store, or else a new one."""
    name, uri, tags = f"study {study.name}", tracking_uri(Path()), {"study": study.name, "kind": "study"}
    with ExitStack() as stack:
        with study.turn():  # of processes that start together, only the first makes a run
            notes = study.inner.user_attrs
            before = notes.get("mlflow_run") if notes.get("mlflow_uri") == uri else None
            if before:
                run = tracking.resume(before, uri, name, experiment, tags=tags)
            else:
                params = {key: str(value) for key, value in flat({"tune": study.setting.tune}).items()}
                run = tracking.start(name, experiment, params=params, tags=tags)
            stack.enter_context(run)
            if run.run_id != before:
                study.inner.set_user_attr("mlflow_run", run.run_id)
                study.inner.set_user_attr("mlflow_uri", uri)
        yield run

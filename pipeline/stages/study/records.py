"""What MLflow records of a study: the events of its trials, and in the end its files."""

from contextlib import ExitStack
from dataclasses import dataclass, field

from pipeline.base.paths import BEST, STUDY_FIGURES, TRIALS
from pipeline.model import samples
from pipeline.stages.study.runs import trial_run
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event
from pipeline.tracking import runs as tracking
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
        candidate = event.candidate
        if isinstance(event, Began):
            opened = trial_run(self.study, self.experiment, self.parent.run_id, candidate)
            self.runs[candidate.number] = self.open.enter_context(opened)
            opened.params(self.study.setting.params(candidate.values))
        run = self.runs[candidate.number]
        if run.wait_for_id() not in ("", candidate.run_id):  # empty while MLflow is down
            candidate.remember_run(run.run_id, run.uri)
        if isinstance(event, Epoch):
            run.metrics(event.record.figures | event.figures, event.record.step)
            run.image("samples_prior", samples.preview(event.model), event.record.step)
        elif isinstance(event, Ended):
            if event.strip is not None:
                run.image("samples_prior_and_fitted", event.strip, candidate.epochs)
            run.tags({"state": event.state})
            self.runs.pop(candidate.number).end(Diverged(event.why) if event.state == "FAIL" else None)

    def finish(self) -> None:
        """Adds the exported files. Ends the runs that killed processes left open and whose trials nobody continued."""
        table = self.study.table()
        failed = table["state"] == "FAILED"
        for run_id in set(table[failed]["run_id"].dropna()) - set(table[~failed]["run_id"].dropna()):
            tracking.close(run_id)
        for path in (TRIALS, BEST, *sorted(STUDY_FIGURES.glob("*.png"))):
            self.parent.artifact(path, "figures" if path.parent == STUDY_FIGURES else None)
        self.parent.metrics({"trials": self.study.done()}, step=0)

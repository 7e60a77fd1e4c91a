"""What MLflow records of a study: the events of its trials, and in the end its files."""

from dataclasses import dataclass

from pipeline.base.paths import BEST, STUDY_FIGURES, TRIALS
from pipeline.model import samples
from pipeline.stages.study.runs import trial_run
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Diverged


@dataclass
class Records:
    """parent: the study's run; open: the runs of trials in training."""

    study: Study
    experiment: str
    parent: tracking.Run
    open: tracking.SideBySide

    def follow(self, event: Event) -> None:
        """Records an event in its trial's run, under the names that a training's run has."""
        candidate = event.candidate
        if isinstance(event, Began):
            opening = trial_run(self.study, self.experiment, self.parent.run_id, candidate)
            self.open.begin(candidate.number, opening).params(self.study.setting.params(candidate.values))
        run = self.open[candidate.number]
        if run.run_id and run.run_id != candidate.run_id:  # empty until MLflow answers
            candidate.remember_run(run.run_id, run.uri)
        if isinstance(event, Epoch):
            run.metrics(event.record.figures | event.figures, event.record.step)
            run.image("samples_prior", samples.preview(event.model), event.record.step)
        elif isinstance(event, Ended):
            if event.strip is not None:
                run.image("samples_prior_and_fitted", event.strip, candidate.epochs)
            run.tags({"state": event.state})
            self.open.end(candidate.number, Diverged(event.why) if event.state == "FAIL" else None)

    def finish(self) -> None:
        """Adds the exported files. Ends the runs that killed processes left open and whose trials nobody continued."""
        table = self.study.table()
        failed = table["state"] == "FAILED"
        for run_id in set(table[failed]["run_id"].dropna()) - set(table[~failed]["run_id"].dropna()):
            tracking.close(run_id)
        for path in (TRIALS, BEST, *sorted(STUDY_FIGURES.glob("*.png"))):
            self.parent.artifact(path, "figures" if path.parent == STUDY_FIGURES else None)
        self.parent.metrics({"trials": self.study.done()}, step=0)

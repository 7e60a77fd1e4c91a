"""How far a study is: what its bar shows, and the lines of a log."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Event


@dataclass
class Progress:
    """Counts epochs. A weight that ends before its last seed has done what is left of it."""

    study: Study
    epochs: Counter[int] = field(default_factory=Counter)  # of the trials in training

    @property
    def of_trial(self) -> int:
        """The most epochs of a trial: all of tune.epochs with each of tune.seeds."""
        return len(self.study.setting.rounds()) * self.study.setting.tune.epochs

    @property
    def total(self) -> int:
        return self.study.setting.tune.trials * self.of_trial

    def done(self) -> int:
        return min(self.study.done() * self.of_trial + self.epochs.total(), self.total)

    def after(self, event: Event) -> tuple[int, str, str] | None:
        """Epochs done, what a log says once, and what a bar shows beside it; None if there is nothing new to show."""
        if isinstance(event, Began):
            return None
        trial, tune, note = event.candidate.trial, self.study.setting.tune, ""
        live = f"{self.study.done()} of {tune.trials} trials done"
        if isinstance(event, Ended):
            del self.epochs[trial.number]
            return self.done(), note, live
        self.epochs[trial.number] += 1
        if event.fitted:
            frechet = event.fitted.figures["validation/fitted/frechet"]
            weight = trial.params["kl_weight"]
            note = f"trial {trial.number}, β = {weight:.3g}, seed {event.seed}: fitted frechet {frechet:.2f}"
        return self.done(), note, f"{live}, seed {event.seed}, epoch {event.record.epoch} of {tune.epochs}"

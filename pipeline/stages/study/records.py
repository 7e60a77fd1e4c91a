"""What MLflow records of a study: a run for the study, and below it one for each trial."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.console import markdown
from pipeline.base.files import home
from pipeline.base.params import flat
from pipeline.base.paths import BEST, CHECKPOINTS, PREPARED, SEEDS, STUDY_FIGURES, TRIALS
from pipeline.stages.saved import save_cvae
from pipeline.stages.study import words
from pipeline.study.found import means, of_seeds, state
from pipeline.study.queue import Candidate, Study
from pipeline.study.search import Began, Ended, Epoch, Event
from pipeline.study.space import full_names
from pipeline.study.uses import Answer
from pipeline.tracking import about
from pipeline.tracking import runs as tracking
from pipeline.tracking.local import find, tracking_uri
from pipeline.training.fit import Diverged


@dataclass
class Records:
    """parent: the study's run. open: ends the runs of the trials that are still in training at its own end.

    step: the last one of each training.
    """

    study: Study
    experiment: str
    parent: tracking.Run
    open: ExitStack
    step: int
    runs: dict[int, tracking.Run] = field(default_factory=dict)  # of the trials in training
    ended: dict[int, tracking.Run] = field(default_factory=dict)  # of those that were trained here

    def follow(self, event: Event) -> None:
        """Records an event in its trial's run, under the names that a training's run has."""
        candidate, number = event.candidate, event.candidate.trial.number
        if isinstance(event, Began):
            self.runs[number] = self.open.enter_context(self._trial_run(candidate))
        run = self.runs[number]
        if isinstance(event, Epoch) and event.fitted:
            run.wait_for_id()
        candidate.remember_run(run.key, run.run_id, run.address)
        if isinstance(event, Epoch) and event.seed == self.study.setting.rounds()[0]:
            self._first_seed(event, run)
        elif isinstance(event, Ended):
            run.metrics(candidate.figures, self.step)  # the means over the seeds end the first one's curves
            if event.strip is not None:
                run.samples(event.strip)
            run.tags({"state": event.state, "seeds": len(candidate.seeds)})
            found = {name.removeprefix("validation/"): value for name, value in candidate.figures.items()}
            run.describe(f"{self._about_trials()}\n\n{about.figures({'validation': found})}")
            error = Diverged(f"diverged in epoch {candidate.epochs}") if event.state == "FAIL" else None
            self.ended[number] = self.runs.pop(number)
            self.ended[number].end(error)

    def finish(self, found: Mapping[str, Answer]) -> None:
        """Says what the study found, adds the exported files and the best trials' models."""
        best, is_up = self.study.choose(), self.parent.deliver()
        if is_up:
            self._end_finished()
        figures = sorted(STUDY_FIGURES.glob("*.png"))
        for path in (TRIALS, SEEDS, BEST, *figures):
            self.parent.artifact(path, "figures" if path.parent == STUDY_FIGURES else None)
        self.parent.tags({"trials": self.study.done()})
        said = words.sentences(found, self.study.seeds(), self.study.setting)
        tables = words.of_uses(found), words.table(found, self.study.table(), self.study.setting)
        pictures = (about.picture(self.parent.run_id, f"figures/{path.name}") for path in figures)
        self.parent.describe("\n\n".join([*said, *(markdown(*one) for one in tables), *pictures]))
        measured = means(of_seeds(self.study.trials()[best.number].user_attrs))
        measured["best/kl_weight"] = best.kl_weight
        self.parent.metrics(measured, self.study.done(), shared=True)
        strip = self.study.strip(best.number)
        if strip is not None:
            self.parent.samples(strip)
        self._keep_models({best.number, *(answer.trial for answer in found.values())}, is_up)
        self.parent.deliver()  # before another process of the study takes its turn

    def _end_finished(self) -> None:
        """Ends the runs of finished trials whose process was killed before it could: MLflow has them as FAILED."""
        for trial in self.study.trials():
            key = trial.user_attrs.get("run_key", "")
            run = find(tracking_uri(), "", key) if key and state(trial) == "COMPLETE" else None
            if run is not None and run.info.status != "FINISHED":
                with tracking.start(run.info.run_name, self.experiment, key=key) as again:
                    again.metrics(means(of_seeds(trial.user_attrs)), self.step)
                    again.tags({"state": "COMPLETE"})

    def _first_seed(self, event: Epoch, run: tracking.Run) -> None:
        """The curves of a training of its own, and its model on disk until the study knows its best trials."""
        left_out = ("time/", "validation/") if event.fitted else ("time/",)
        curves = {name: value for name, value in event.record.figures.items() if not name.startswith(left_out)}
        run.metrics(curves, event.record.step)
        if event.fitted is not None:
            setting = self.study.setting
            params = about.by_section(setting.params(event.candidate.trial.params))
            params["model"] |= {"preset": "strong"}  # which would give what is blank, and nothing is
            params["sample"] = {"components": setting.components}
            save_cvae(self._file(event.candidate.trial.number), event.fitted.model, event.fitted.density, params)

    def _keep_models(self, trials: set[int], is_up: bool) -> None:
        """Packs the models of the best trials into their runs. What other processes trained is theirs to add."""
        attributes = {trial.number: trial.user_attrs for trial in self.study.trials()}
        for path in sorted(self._file(0).parent.glob("*.safetensors")):
            number = int(path.stem)
            known = attributes.get(number, {})  # none: of a study of that name whose database was deleted
            if number in trials and number in self.ended:
                with self.ended[number].again() as run:
                    run.model(path)
            elif number in trials and "run_id" in known:
                if is_up:
                    with tracking.add_to(known, f"trial {number}", self.experiment) as run:
                        run.model(path)
            elif number not in self.runs:
                path.unlink()

    def _file(self, number: int) -> Path:
        return home(Path.cwd()) / CHECKPOINTS / self.study.name / f"{number}.safetensors"

    def _trial_run(self, candidate: Candidate) -> tracking.Run:
        """The run of the trial's interrupted try, if there was one, or else a new one."""
        trial, setting, parent = candidate.trial, self.study.setting, self.parent.run_id
        name = f"trial {trial.number} β={trial.params['kl_weight']:.3g}"
        tags = {**_tags(self.study, "trial"), "trial": trial.number, "mlflow.parentRunId": parent}
        every = setting.params(trial.params)
        # What the preset gave is not shown: only what was tried.
        shown = {key: value for key, value in every.items() if not key.startswith("model.")}
        run = tracking.start(
            name, self.experiment, tags=tags, key=trial.user_attrs.get("run_key", ""), wait=False,
            params=shown | full_names(trial.params), resolved=every,
            about=self._about_trials(),
        )  # fmt: skip
        run.dataset("mnist", setting.hashes["data"], str(PREPARED), "train")
        return run

    def _about_trials(self) -> str:
        return (
            f"A trial of study {self.study.name}. Epochs of each training: {self.study.setting.tune.epochs}. "
            "Curves are of the first seed; figures on validation are means over the seeds."
        )


def _tags(study: Study, kind: str) -> dict[str, str]:
    group, data = f"study {study.name}", study.setting.hashes["data"]
    return {"study": study.name, "kind": kind, "group": group, "data_hash": data}


@contextmanager
def study_run(study: Study, experiment: str) -> Iterator[tracking.Run]:
    """The study's own run: the one that it remembers, if it is in today's store, or else a new one."""
    name, tags = f"study {study.name}", _tags(study, "study")
    with ExitStack() as stack:
        with study.turn():  # of processes that start together, only the first makes a run
            before = study.inner.user_attrs.get("run_key", "")
            said = f"A study of the KL weight with {study.setting.tune.trials} trials. It has not ended yet."
            params = {} if before else flat({"tune": study.setting.tune})
            run = stack.enter_context(
                tracking.start(name, experiment, params=params, tags=tags, about=said, key=before)
            )
            if not before:
                run.dataset("mnist", study.setting.hashes["data"], str(PREPARED), "train")
                study.inner.set_user_attr("run_key", run.key)
        yield run

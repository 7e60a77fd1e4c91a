"""What a study has found: its trials as a table, the answer for each use, and the trial to choose."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, TrialState

from pipeline.base.errors import UserError
from pipeline.study.space import Setting, full_names
from pipeline.study.storage import Storage, quiet
from pipeline.study.uses import answers, main_answer, summary

SEED = "figures of seed "  # before the seed: a trial's attributes with the figures of each of its trainings


@dataclass(frozen=True)
class Chosen:
    """A complete trial and what it would change in params.yaml."""

    number: int
    values: dict[str, float]  # by the objectives' full names
    params: dict[str, Any]  # by names such as objective.kl_weight
    feasible: bool
    run_id: str | None = None
    tracking_uri: str | None = None

    @property
    def kl_weight(self) -> float:
        return float(self.params["objective.kl_weight"])


class Found:
    """A study in its database, to be read."""

    inner: optuna.Study
    database: Storage
    setting: Setting
    name: str
    _pictures: FileSystemArtifactStore

    def trials(self) -> list[FrozenTrial]:
        return self.inner.get_trials(deepcopy=False)

    def complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]

    def done(self) -> int:
        """How many trials count towards tune.trials."""
        return sum(map(counts, self.trials()))

    def seeds(self) -> pd.DataFrame:
        """A row for each finished training of a trial that has not failed: trial, seed, its params, every figure."""
        rows = [
            {"trial": trial.number, "seed": seed, **trial.params, **figures}
            for trial in self.trials()
            if trial.state != TrialState.FAIL
            for seed, figures in sorted(of_seeds(trial.user_attrs).items())
        ]
        return pd.DataFrame(rows, columns=None if rows else ["trial", "seed", *self.setting.space()])

    def table(self) -> pd.DataFrame:
        """A row for each trial: state, values tried, seeds, means and standard errors of figures, MLflow run."""
        rows = [
            {
                "trial": trial.number,
                "state": state(trial),
                **{name: trial.params.get(name) for name in self.setting.space()},
                "seeds": len(of_seeds(trial.user_attrs)),
                "feasible": feasible(trial) if trial.values else None,
                "epochs": trial.user_attrs.get("epochs"),
                "seconds": trial.user_attrs.get("seconds"),
                "asked": trial.user_attrs.get("asked", ""),
                "retry_of": trial.system_attrs.get("failed_trial"),
                "run_id": trial.user_attrs.get("run_id"),
            }
            for trial in self.trials()
        ]
        seeds = self.seeds()
        figures = summary(seeds, self.setting) if len(seeds) else pd.DataFrame(index=pd.Index([], name="trial"))
        frame = pd.DataFrame(rows, columns=None if rows else ["trial"])
        frame = frame.merge(figures[[name for name in figures if "/" in str(name)]], on="trial", how="left")
        first = ["trial", "state", *self.setting.space(), "seeds"]
        first += [name for figure in self.setting.objectives() for name in (figure, f"{figure}_error")]
        return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])

    def front(self) -> list[FrozenTrial]:
        """Complete, feasible trials that no other beats in every objective; with one objective, the best trial.

        Where no trial is feasible, the one that misses the constraint by the least.
        """
        if best := self._best():
            return [best]
        nearest = sorted(self.complete(), key=lambda trial: max(trial.constraints.values(), default=0))[:1]
        return self.inner.best_trials or nearest

    def choose(self, number: int | None = None) -> Chosen:
        """The best trial, or the trial `number`. Raises UserError where there is none or it is not complete.

        With one objective the best is what `answers` says. With several it is the trial of the front that is nearest to
        its ideal corner, where each objective is scaled to the front's range.
        """
        front = self.front() if number is None else [trial for trial in self.trials() if trial.number == number]
        if not front:
            if number is not None:
                raise UserError(f"study {self.name} has no trial {number}: `cvae study` lists its trials")
            if self.done() < self.setting.tune.trials:
                raise UserError(f"study {self.name} has no complete trial yet: run `cvae tune`")
            raise UserError(f"all trials of study {self.name} diverged: set a lower train.learning_rate and tune again")
        if front[0].state != TrialState.COMPLETE:
            found = state(front[0]).lower()
            raise UserError(f"trial {number} of study {self.name} is {found}: only a complete one can be chosen")
        costs = np.array([self._costs(trial) for trial in front])
        scaled = (costs - costs.min(0)) / np.maximum(np.ptp(costs, axis=0), 1e-12)
        best = front[int(np.linalg.norm(scaled, axis=1).argmin())]
        return Chosen(
            number=best.number,
            values=dict(zip(self.setting.objectives(), best.values, strict=True)),
            params=full_names(best.params),
            feasible=feasible(best),
            run_id=best.user_attrs.get("run_id"),
            tracking_uri=best.user_attrs.get("tracking_uri"),
        )

    def _best(self) -> FrozenTrial | None:
        """The best complete trial of the study's only objective, compared over common seeds."""
        trials = {trial.number: trial for trial in self.complete()}
        seeds = self.seeds()
        seeds = seeds[seeds["trial"].isin(list(trials))]
        if not len(seeds) or not any(map(feasible, trials.values())):
            return None
        answer = main_answer(answers(seeds, self.setting), self.setting)
        return trials[answer.trial] if answer else None

    def importances(self) -> dict[str, float]:
        """The share of each open parameter in the first objective (PED-ANOVA); empty with too few trials."""
        if len(self.setting.space()) < 2 or len(self.complete()) < 4:
            return {}
        with quiet():
            # With a target, Optuna takes the lowest values for the best.
            first = (lambda trial: self._costs(trial)[0]) if len(self.setting.objectives()) > 1 else None
            return dict(optuna.importance.get_param_importances(self.inner, target=first))

    def strip(self, number: int) -> np.ndarray | None:
        """A trial's picture of samples, (H, W) uint8; None where this machine does not have it."""
        from PIL import Image

        trial: FrozenTrial | None = self.trials()[number]
        while trial is not None:
            for meta in get_all_artifact_meta(trial, storage=self.database):
                with suppress(ArtifactNotFound), self._pictures.open_reader(meta.artifact_id) as file:
                    return np.asarray(Image.open(file).convert("L"))
            before = trial.system_attrs.get("failed_trial")  # the try that was interrupted
            trial = None if before is None else self.trials()[before]
        return None

    def _costs(self, trial: FrozenTrial) -> list[float]:
        """A trial's values with the sign that makes lower better."""
        pairs = zip(self.setting.objectives().values(), trial.values, strict=True)
        return [value if lower_is_better else -value for lower_is_better, value in pairs]


def state(trial: FrozenTrial) -> str:
    """Optuna's state, with DIVERGED or FAILED in place of FAIL."""
    if trial.state == TrialState.FAIL:
        return "DIVERGED" if trial.user_attrs.get("why") == "diverged" else "FAILED"
    return trial.state.name


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is a result. A diverged one is; an interrupted one is not, its second try will be."""
    return state(trial) in ("COMPLETE", "DIVERGED")


def of_seeds(attributes: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """The figures of a trial's trainings by seed."""
    return {int(key.removeprefix(SEED)): dict(value) for key, value in attributes.items() if key.startswith(SEED)}


def means(seeds: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The means over the seeds of a trial's figures."""
    rows = list(seeds.values())
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}


def feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())

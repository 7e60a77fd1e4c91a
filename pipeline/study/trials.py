"""Reading a study: its table of trials, its best one, its front, and what to write about them."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pipeline.base.errors import UserError
from pipeline.measure.metrics import LOWER_IS_BETTER
from pipeline.study.space import SECTIONS, Setting
from pipeline.study.storage import quiet

STRIP = "samples.png"
STATES = {
    "PRUNED": "was pruned",
    "FAILED": "failed",
    "DIVERGED": "diverged",
    "RUNNING": "is still running",
    "WAITING": "was not tried yet",
}


@dataclass(frozen=True)
class Chosen:
    """A complete trial and what it would change in params.yaml."""

    number: int
    values: dict[str, float]  # by objective
    sets: dict[tuple[str, str], Any]  # (section, key) to value
    run_id: str | None
    tracking_uri: str | None
    feasible: bool

    @property
    def kl_weight(self) -> float:
        return float(self.sets["objective", "kl_weight"])

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Chosen":
        """The best trial of a `Trials.summary`. Its MLflow run is not known where the database is missing."""
        sets = {tuple(key.split(".", 1)): value for key, value in summary["params"].items()}
        return cls(summary["trial"], summary["values"], sets, None, None, summary["feasible"])


class Trials:
    """What a study has found so far."""

    def __init__(self, inner: optuna.Study, database: RDBStorage, setting: Setting, pictures: Path) -> None:
        self.inner, self.database, self.setting = inner, database, setting
        self.name = inner.study_name
        self._pictures = FileSystemArtifactStore(pictures)

    def trials(self) -> list[FrozenTrial]:
        return self.inner.get_trials(deepcopy=False)

    def done(self) -> int:
        """How many trials count towards tune.trials."""
        return sum(map(counts, self.trials()))

    def note(self, key: str) -> Any:
        """What was remembered under `key` for the study as a whole."""
        return self.inner.user_attrs.get(key)

    def table(self) -> pd.DataFrame:
        """A row for each trial: number, state, values tried, whether it is feasible, every figure, MLflow run."""
        rows = [
            {
                "trial": trial.number,
                "state": state(trial),
                **{name: trial.params.get(name) for name in self.setting.space()},
                "feasible": feasible(trial) if trial.values else None,
                "epochs": trial.user_attrs.get("epochs"),
                "seconds": trial.user_attrs.get("seconds"),
                **trial.user_attrs.get("figures", {}),
                "asked": trial.user_attrs.get("asked", ""),
                "retry_of": trial.system_attrs.get("failed_trial"),
                "run_id": trial.user_attrs.get("run_id"),
            }
            for trial in self.trials()
        ]
        objectives = [self.setting.figure(name) for name in self.setting.tune.objectives]
        first = ["trial", "state", *self.setting.space(), *objectives]
        frame = pd.DataFrame(rows)
        return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])

    def front(self) -> list[FrozenTrial]:
        """Complete, feasible trials that no other beats in every objective; with one objective, the best trial.

        Where no trial is feasible, the one that misses the constraint by the least.
        """
        best = self.inner.best_trials
        if best:
            return best
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: max(trial.constraints.values()))[:1]

    def choose(self, number: int | None = None) -> Chosen:
        """The best trial, or the trial `number`. Raises UserError where there is none or it is not complete.

        With several objectives the best is the trial of the front that is nearest to its ideal corner, where each
        objective is scaled to the front's range.
        """
        if number is not None:
            return self._chosen(self._complete(number))
        front = self.front()
        if not front:
            if self.done() < self.setting.tune.trials:
                raise UserError(f"study {self.name} has no complete trial yet: run `cvae tune`")
            raise UserError(f"all trials of study {self.name} diverged: set a lower train.learning_rate and tune again")
        costs = np.array([self._costs(trial) for trial in front])
        scaled = (costs - costs.min(0)) / np.maximum(np.ptp(costs, axis=0), 1e-12)
        return self._chosen(front[int(np.linalg.norm(scaled, axis=1).argmin())])

    def importances(self) -> dict[str, float]:
        """The share of each open parameter in the first objective (PED-ANOVA); empty with too few trials."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(self.setting.space()) < 2 or len(complete) < 4:
            return {}
        with quiet():
            # With a target, Optuna takes the lowest values for the best.
            first = (lambda trial: self._costs(trial)[0]) if len(self.setting.tune.objectives) > 1 else None
            return dict(optuna.importance.get_param_importances(self.inner, target=first))

    def strip(self, number: int) -> np.ndarray | None:
        """A trial's picture of samples, (H, W) uint8; None where this machine does not have it."""
        from PIL import Image

        for meta in get_all_artifact_meta(self.trials()[number], storage=self.database):
            if meta.filename == STRIP:
                with tempfile.TemporaryDirectory() as folder, suppress(OSError, ArtifactNotFound):
                    path = Path(folder) / STRIP
                    download_artifact(artifact_store=self._pictures, file_path=str(path), artifact_id=meta.artifact_id)
                    return np.asarray(Image.open(path).convert("L"))
        return None

    def summary(self, real: Mapping[str, float]) -> dict[str, Any]:
        """What best.json holds: the best trial, and how it was found; real: the sample metrics of real images."""
        best, tune = self.choose(), self.setting.tune
        return {
            "kl_weight": best.kl_weight,
            "trial": best.number,
            "values": best.values,
            "run_id": best.run_id,
            "params": {f"{section}.{key}": value for (section, key), value in best.sets.items()},
            "feasible": best.feasible,
            "front": [trial.number for trial in self.front()],
            "study": self.name,
            "protocol": {
                "split": "validation",
                "objectives": list(tune.objectives),
                "sampler_of_latents": tune.sampler_of_latents,
                "epochs": tune.epochs,
                "trials": dict(Counter(state(trial).lower() for trial in self.trials())),
            },
            "real": dict(real),
        }

    def _complete(self, number: int) -> FrozenTrial:
        found = next((trial for trial in self.trials() if trial.number == number), None)
        if found is None:
            raise UserError(f"study {self.name} has no trial {number}: `cvae study` lists its trials")
        if found.state != TrialState.COMPLETE:
            raise UserError(
                f"trial {number} of study {self.name} {STATES[state(found)]}: only a complete one can be chosen"
            )
        return found

    def _costs(self, trial: FrozenTrial) -> list[float]:
        """A trial's values with the sign that makes lower better."""
        pairs = zip(self.setting.tune.objectives, trial.values, strict=True)
        return [value if name in LOWER_IS_BETTER else -value for name, value in pairs]

    def _chosen(self, trial: FrozenTrial) -> Chosen:
        return Chosen(
            number=trial.number,
            values=dict(zip(self.setting.tune.objectives, trial.values, strict=True)),
            sets={(SECTIONS[name], name): value for name, value in trial.params.items()},
            run_id=trial.user_attrs.get("run_id"),
            tracking_uri=trial.user_attrs.get("tracking_uri"),
            feasible=feasible(trial),
        )


def state(trial: FrozenTrial) -> str:
    """Optuna's state, with DIVERGED or FAILED in place of FAIL."""
    if trial.state == TrialState.FAIL:
        return "DIVERGED" if trial.user_attrs.get("why") == "diverged" else "FAILED"
    return trial.state.name


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is a result. A diverged one is; an interrupted one is not, its second try will be."""
    return state(trial) in ("COMPLETE", "PRUNED", "DIVERGED")


def feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())

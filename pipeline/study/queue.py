"""A study in its database: trials that are asked, told, put back when a process ends early, and read.

Any number of processes may work on one study at once, and any of them may be killed.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.base.addresses import for_reading, identity, shown, sqlite_path
from pipeline.base.errors import UserError
from pipeline.base.files import home, png
from pipeline.base.paths import WORKERS
from pipeline.study import storage
from pipeline.study.found import SEED, Found, counts, means, of_seeds
from pipeline.study.space import Setting, same, widest_gap
from pipeline.study.storage import NoStudy, Storage, quiet

ARTIFACTS = "optuna_artifacts"  # the trials' pictures, where optuna-dashboard looks for them
MOST_RETRIES = 5  # of a weight that people ask about, whose process was killed each time
UNLESS_TAKEN = suppress(UpdateFinishedTrialError)  # another process took the trial over, while this one slept

State = Literal["COMPLETE", "FAIL"]


@dataclass(eq=False)
class Candidate:
    """A trial in training. A second try's attributes have the MLflow run and the figures of the first.

    seeds: its finished trainings, the figures of each by its seed. epochs: of the training at hand. seconds: of all.
    """

    trial: optuna.Trial
    seeds: dict[int, dict[str, float]] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    strip: np.ndarray | None = None  # (H, W) uint8, of the first seed

    @property
    def figures(self) -> dict[str, float]:
        """Means over the seeds."""
        return means(self.seeds)

    def keep(self, seed: int, figures: Mapping[str, float]) -> None:
        """Keeps a training's figures in the trial, so that they survive whatever happens to this process."""
        self.seeds[seed] = {name: float(value) for name, value in figures.items()}
        with UNLESS_TAKEN:
            self.trial.set_user_attr(f"{SEED}{seed}", self.seeds[seed])
            self.trial.set_user_attr("seconds", round(self.seconds, 2))

    def remember_run(self, key: str, run_id: str, address: str) -> None:
        """Names its MLflow run in the trial, so that a second try continues in that run; run_id may come later."""
        noted = {"run_key": key, "run_id": run_id, "tracking_uri": address}
        with UNLESS_TAKEN:
            for name, value in noted.items():
                if value and self.trial.user_attrs.get(name) != value:
                    self.trial.set_user_attr(name, value)


class Study(Found):
    """A study in its database; `open_study` makes one."""

    def __init__(self, inner: optuna.Study, database: Storage, setting: Setting, url: str, root: Path) -> None:
        self.inner, self.database, self.setting = inner, database, setting
        self.name = inner.study_name
        self._url, self._root = url, home(root)
        self._file = identity(sqlite_path(url))
        self._pictures = FileSystemArtifactStore(self._root / ARTIFACTS)
        self._worker = ""
        self._live: set[int] = set()  # ids of the trials in training here

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it holds, no other process asks for trials or puts any back. UserError: the file was deleted."""
        if identity(sqlite_path(self._url)) != self._file:
            raise UserError(
                f"{shown(self._url)} was deleted or replaced during the study: what it held is lost, start again"
            )
        with storage.turn(self._url), quiet():
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it holds, other processes know that this one lives. An exception puts its trials back in the queue."""
        with storage.lock_file(self._root / WORKERS) as self._worker:
            with self.turn():
                number = int(self.inner.user_attrs.get("workers", 0))  # each process samples with a seed of its own
                self.inner.set_user_attr("workers", number + 1)
            self.inner.sampler = optuna.samplers.TPESampler(
                seed=(self.setting.tune.seed + number) % 2**32,
                n_startup_trials=min(10, math.ceil(self.setting.tune.trials / 3)),  # then it learns from trials
            )
            with storage.beating(self.database, self._live):
                try:
                    yield
                except BaseException as error:
                    with suppress(UserError):  # the database is away: the next process to ask will retry these trials
                        self.put_back(error)
                    raise

    def ask(self, most: int) -> list[Candidate]:
        """Up to `most` trials to train now, fewer where the study needs fewer or other processes train some.

        Trials of dead processes are failed first and put back in the queue, once each.
        """
        with self.turn():
            self._retry_dead()
            taken = [trial for trial in self.trials() if counts(trial) or trial.state == TrialState.RUNNING]
            room = min(most, self.setting.tune.trials - len(taken))
            self._enqueue(room)
            return [self._ask_one() for _ in range(room)]

    def tell(self, candidate: Candidate, state: State) -> None:
        """Ends a trial; FAIL: it diverged with some seed. A complete one's values are the means over its seeds."""
        trial, figures, tune = candidate.trial, candidate.figures, self.setting.tune
        with UNLESS_TAKEN, quiet():
            trial.set_user_attr("epochs", candidate.epochs)
            trial.set_user_attr("seconds", round(candidate.seconds, 2))
            if state == "FAIL":
                trial.set_user_attr("why", "diverged")
            accuracy = figures.get(self.setting.figure("class_accuracy"))
            if tune.least_class_accuracy is not None and accuracy is not None:
                trial.set_constraint("class_accuracy", tune.least_class_accuracy - accuracy)
            values = [figures[name] for name in self.setting.objectives()] if state == "COMPLETE" else None
            self.inner.tell(trial, values, state=TrialState[state])
        self._live.discard(trial._trial_id)

    def put_back(self, error: BaseException) -> None:
        """Ends the trials in training here because of `error` and puts them back in the queue."""
        with self.turn():
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
            for trial_id in list(self._live):
                self._live.discard(trial_id)
                self._fail(trial_id, interrupted=interrupted, most=1)

    def keep_strip(self, candidate: Candidate, strip: np.ndarray) -> None:
        """Keeps a picture (H, W) uint8 with the trial."""
        with tempfile.TemporaryDirectory() as folder, UNLESS_TAKEN:
            path = Path(folder) / "samples.png"
            path.write_bytes(png(strip))
            (self._root / ARTIFACTS).mkdir(exist_ok=True)
            upload_artifact(artifact_store=self._pictures, file_path=str(path), study_or_trial=candidate.trial)

    def _ask_one(self) -> Candidate:
        trial = self.inner.ask(self.setting.space())
        self._live.add(trial._trial_id)
        trial.set_user_attr("worker", self._worker)
        self.database.record_heartbeat(trial._trial_id)
        return Candidate(trial, of_seeds(trial.user_attrs), seconds=trial.user_attrs.get("seconds", 0.0))

    def _enqueue(self, room: int) -> None:
        """Puts in the queue the points that are asked for, then KL weights in the middle of the widest gaps.

        Half of a small study's trials, at most ten, are placed at least. Random weights left gaps of a decade, and the
        table and the figures should cover the whole range, not only the surroundings of the best.
        """
        trials, tune = self.trials(), self.setting.tune
        tried = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
        end = len(tried) + room - sum(trial.state == TrialState.WAITING for trial in trials)
        for origin, point, closest in self.setting.asked():
            if len(tried) < end and not any(same(point, one, closest=closest) for one in tried):
                self.inner.enqueue_trial(point, user_attrs={"asked": origin})
                tried.append(point)
        while len(tried) < min(end, 10, math.ceil(tune.trials / 2)):
            tried.append({"kl_weight": widest_gap(tune.kl_weight, [point["kl_weight"] for point in tried if point])})
            self.inner.enqueue_trial(tried[-1])

    def _retry_dead(self) -> None:
        """Fails trials whose process has ended and puts them back in the queue, once each. Call it in a `turn`."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                dead = storage.is_dead(trial.user_attrs.get("worker"))
                if dead:
                    self._fail(trial._trial_id)
                elif dead is False:  # it lives, however long this machine slept
                    self.database.record_heartbeat(trial._trial_id)
        fail_stale_trials(self.inner)  # those of other machines

    def _fail(self, trial_id: int, *, interrupted: bool = False, most: int = MOST_RETRIES) -> None:
        with UNLESS_TAKEN:
            if self.database.set_trial_state_values(trial_id, state=TrialState.FAIL):
                retry(self.inner, self.database.get_trial(trial_id), interrupted=interrupted, most=most)


def open_study(setting: Setting, root: Path, *, create: bool, environment: Mapping[str, str] = os.environ) -> Study:
    """The study of `setting` in its database.

    Raises UserError where the database can't be used or has another study of that name; NoStudy where there is none,
    unless `create`.
    """
    url = storage.storage_url(root, environment)
    url = url if create else for_reading(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage.one_line(url), quiet():
        if not storage.has_studies(url) and not create:
            raise NoStudy(f"there is no study in {shown(url)} yet: run `cvae tune`")
        with storage.turn(url):  # two processes that make tables at once fail
            database = storage.open_storage(url, retry)
            return Study(_find_or_make(setting, database, create), database, setting, url, root)


def read_study(name: str, root: Path) -> optuna.Study:
    """A study by its name, to be read. Raises UserError where the database can't be used, NoStudy where it has none."""
    own = storage.storage_url(root)
    url = for_reading(own)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage.one_line(own), quiet(), suppress(KeyError):
        if storage.has_studies(url):
            return optuna.load_study(study_name=name, storage=storage.open_storage(url))
    raise NoStudy(f"there is no study {name} in {shown(own)}: name its database in OPTUNA_STORAGE, or run `cvae tune`")


def _find_or_make(setting: Setting, database: Storage, create: bool) -> optuna.Study:
    name = setting.name()
    try:
        study = optuna.load_study(study_name=name, storage=database)
    except KeyError:
        if not create:
            raise NoStudy(f"there is no study {name} yet (its name follows params.yaml): run `cvae tune`") from None
        lower = {True: StudyDirection.MINIMIZE, False: StudyDirection.MAXIMIZE}
        directions = [lower[lower_is_better] for lower_is_better in setting.objectives().values()]
        study = optuna.create_study(study_name=name, storage=database, directions=directions)
    if "fingerprint" not in study.user_attrs and not study.get_trials(deepcopy=False):  # new, or its maker was killed
        study.set_metric_names(list(setting.tune.objectives))
        study.set_user_attr("fingerprint", setting.fingerprint())
    if study.user_attrs.get("fingerprint") != setting.fingerprint():
        raise UserError(
            f"the study {name!r} has another space, other data or another model: give params.yaml: tune.study another "
            "name, or set it to null, and the name follows the params"
        )
    return study


def retry(study: optuna.Study, failed: FrozenTrial, *, interrupted: bool = False, most: int = MOST_RETRIES) -> None:
    """Puts a failed trial back in the queue: once, but after an interruption any number of times.

    most: how often, if people ask about its weight.
    """
    before = failed.system_attrs.get("retry_history", [])
    if counts(failed) or (not interrupted and len(before) >= (most if "asked" in failed.user_attrs else 1)):
        return
    attributes = {"failed_trial": failed.number} | failed.system_attrs
    if not interrupted:
        attributes["retry_history"] = [*before, failed.number]
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=failed.params,
            distributions=failed.distributions,
            user_attrs=failed.user_attrs,
            system_attrs=attributes,
        )
    )

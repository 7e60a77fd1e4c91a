"""The study as a queue of trials in a database: opened, asked, told, and put back when a process ends early.

Any number of processes may work on one study at once, and any of them may be killed.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.artifacts import upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.base.errors import UserError
from pipeline.base.files import home
from pipeline.base.paths import WORKERS
from pipeline.measure.metrics import LOWER_IS_BETTER
from pipeline.study import workers
from pipeline.study.space import Setting, same, widest_gap
from pipeline.study.storage import NoStudy, has_studies, one_line, open_storage, quiet, shown, storage_url, turn
from pipeline.study.trials import STRIP, Trials, counts

ARTIFACTS = "optuna_artifacts"  # the trials' pictures, where optuna-dashboard looks for them

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Retry = Callable[[optuna.Study, FrozenTrial], None]


@dataclass
class Candidate:
    """A trial in training. run_id and uri: the MLflow run of an earlier, interrupted try, if there was one."""

    trial: optuna.Trial
    values: dict[str, Any]
    run_id: str | None = None
    uri: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def kl_weight(self) -> float:
        return float(self.values["kl_weight"])

    @property
    def was_asked(self) -> bool:
        """Whether people ask about this point, so that it is trained to its end."""
        return "asked" in self.trial.user_attrs

    def remember_run(self, run_id: str, uri: str) -> None:
        """Names its MLflow run in the trial, so that a second try continues in that run."""
        self.run_id, self.uri = run_id, uri
        with _unless_taken():
            self.trial.set_user_attr("run_id", run_id)
            self.trial.set_user_attr("tracking_uri", uri)


class Study(Trials):
    """A study in its database; `open_study` makes one."""

    def __init__(self, inner: optuna.Study, database: RDBStorage, setting: Setting, url: str, root: Path) -> None:
        self._url, self._root = url, home(root)
        super().__init__(inner, database, setting, self._root / ARTIFACTS)
        self._worker = ""
        self._live: set[int] = set()  # ids of the trials in training here

    def remember(self, key: str, value: Any) -> None:
        """Keeps a plain value for the study as a whole."""
        self.inner.set_user_attr(key, value)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it holds, no other process asks for trials or puts any back."""
        with turn(self._url):
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it holds, other processes know that this one lives."""
        with workers.lock_file(self._root / WORKERS) as self._worker:
            with self.turn():
                number = int(self.note("workers") or 0)  # so that each process samples with a seed of its own
                self.remember("workers", number + 1)
            self.inner.sampler = optuna.samplers.TPESampler(
                seed=(self.setting.tune.seed + number) % 2**32,
                n_startup_trials=min(10, math.ceil(self.setting.tune.trials / 3)),  # then it learns from trials
            )
            with workers.beating(self.database, self._live):
                yield

    def ask(self, most: int) -> list[Candidate]:
        """Up to `most` trials to train now, fewer where the study needs fewer or other processes train some.

        Trials of dead processes are failed first and put back in the queue, once each.
        """
        asked: list[Candidate] = []
        with self.turn(), quiet():
            self._retry_dead()
            taken = [trial for trial in self.trials() if counts(trial) or trial.state == TrialState.RUNNING]
            room = min(most, self.setting.tune.trials - len(taken))
            self._enqueue(room)
            try:
                for _ in range(room):
                    asked.append(self._ask_one())  # noqa: PERF401 (if asking fails, we must know what was asked)
            except BaseException as error:
                self._put_back(asked, error)
                raise
        return asked

    def tell(self, candidate: Candidate, state: State, why: str = "") -> None:
        """Ends a trial. Its figures stay with it, and its values where it is complete."""
        trial, tune = candidate.trial, self.setting.tune
        with quiet(), _unless_taken():
            finite = {name: float(value) for name, value in candidate.figures.items() if math.isfinite(value)}
            trial.set_user_attr("figures", finite)
            trial.set_user_attr("epochs", candidate.epochs)
            trial.set_user_attr("seconds", round(candidate.seconds, 2))
            if why:
                trial.set_user_attr("why", why)
            accuracy = candidate.figures.get(self.setting.figure("class_accuracy"))
            if tune.least_class_accuracy is not None and accuracy is not None:
                trial.set_constraint("class_accuracy", tune.least_class_accuracy - accuracy)
            objectives = [self.setting.figure(name) for name in tune.objectives]
            values = [candidate.figures[name] for name in objectives] if state == "COMPLETE" else None
            self.inner.tell(trial, values, state=TrialState[state])
        self._live.discard(trial._trial_id)

    def report(self, candidate: Candidate) -> None:
        """Stores the value of its only objective so far, with which `losers` compares."""
        if len(self.setting.tune.objectives) == 1:
            with _unless_taken():
                candidate.trial.report(self.value(candidate), candidate.epochs)

    def value(self, candidate: Candidate) -> float:
        """Its first objective."""
        return candidate.figures[self.setting.figure(self.setting.tune.objectives[0])]

    def put_back(self, candidates: Sequence[Candidate], error: BaseException) -> None:
        """Ends trials in training because of `error` and puts them back in the queue."""
        with self.turn(), quiet():
            self._put_back(candidates, error)

    def keep_strip(self, candidate: Candidate, strip: np.ndarray) -> None:
        """Keeps a picture (H, W) uint8 with the trial."""
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder, _unless_taken():
            path = Path(folder) / STRIP
            Image.fromarray(strip).save(path)
            (self._root / ARTIFACTS).mkdir(exist_ok=True)
            upload_artifact(
                artifact_store=self._pictures,
                file_path=str(path),
                study_or_trial=candidate.trial,
                storage=self.database,
            )

    def _ask_one(self) -> Candidate:
        trial = self.inner.ask(self.setting.space())
        trial.set_user_attr("worker", self._worker)
        self.database.record_heartbeat(trial._trial_id)
        self._live.add(trial._trial_id)
        notes = trial.user_attrs
        return Candidate(trial, dict(trial.params), notes.get("run_id"), notes.get("tracking_uri"))

    def _enqueue(self, room: int) -> None:
        """Puts in the queue the points that people ask about, then KL weights in the middle of the widest gaps.

        Half of a small study's trials, at most ten, are placed this way. Random weights left gaps of a decade, and
        the table and the figures should cover the whole range, not only the surroundings of the best.
        """
        waiting = [trial for trial in self.trials() if trial.state == TrialState.WAITING]
        tried = [trial.system_attrs.get("fixed_params", trial.params) for trial in self.trials()]
        room = max(room - len(waiting), 0)
        new = [(origin, point) for origin, point in self.setting.asked() if not any(same(point, one) for one in tried)]
        for origin, point in new[:room]:
            self.inner.enqueue_trial(point, user_attrs={"asked": origin})
            tried.append(point)
        placed = min(10, math.ceil(self.setting.tune.trials / 2))
        for _ in range(min(room - len(new), placed - len(tried))):
            weight = widest_gap(self.setting.tune.kl_weight, [point["kl_weight"] for point in tried if point])
            tried.append({"kl_weight": weight})
            self.inner.enqueue_trial(tried[-1])

    def _retry_dead(self) -> None:
        """Fails trials whose process has ended and puts them back in the queue, once each. Call it under the lock."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                dead = workers.is_dead(trial.user_attrs.get("worker"))
                if dead:
                    self._fail(trial._trial_id, retry_once)
                elif dead is False:  # it lives, however long this machine slept
                    self.database.record_heartbeat(trial._trial_id)
        fail_stale_trials(self.inner)  # those of other machines

    def _put_back(self, candidates: Sequence[Candidate], error: BaseException) -> None:
        # An interrupted trial may be retried any number of times; one with an error of its own only once.
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        for candidate in candidates:
            self._live.discard(candidate.trial._trial_id)
            self._fail(candidate.trial._trial_id, retry if interrupted else retry_once)

    def _fail(self, trial_id: int, again: Retry) -> None:
        with suppress(UpdateFinishedTrialError):
            if self.database.set_trial_state_values(trial_id, state=TrialState.FAIL):
                again(self.inner, self.database.get_trial(trial_id))


def open_study(setting: Setting, root: Path, *, create: bool, environment: Mapping[str, str] = os.environ) -> Study:
    """The study of `setting` in its database.

    Raises UserError where the database can't be used or has another study of that name; NoStudy where there is none,
    unless `create`.
    """
    setting.check()
    url = storage_url(root, environment)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with one_line(url), quiet():
        if not has_studies(url) and not create:
            raise NoStudy(f"there is no study in {shown(url)} yet: run `cvae tune`")
        with turn(url):  # two processes that make tables at once fail
            database = open_storage(url, retry_once)
            inner = _find_or_make(setting, database, create)
    return Study(inner, database, setting, url, root)


def _find_or_make(setting: Setting, database: RDBStorage, create: bool) -> optuna.Study:
    name, objectives = setting.name(), setting.tune.objectives
    try:
        study = optuna.load_study(study_name=name, storage=database)
    except KeyError:
        if not create:
            raise NoStudy(f"there is no study {name} yet (its name follows params.yaml): run `cvae tune`") from None
        lower = {True: StudyDirection.MINIMIZE, False: StudyDirection.MAXIMIZE}
        directions = [lower[objective in LOWER_IS_BETTER] for objective in objectives]
        study = optuna.create_study(study_name=name, storage=database, directions=directions)
    if "fingerprint" not in study.user_attrs and not study.get_trials(deepcopy=False):  # new, or its maker was killed
        study.set_metric_names(list(objectives))
        study.set_user_attr("fingerprint", setting.fingerprint())
    if study.user_attrs.get("fingerprint") != setting.fingerprint():
        raise UserError(
            f"the study {name!r} has another space, other data or another model: give params.yaml: tune.study another "
            "name, or set it to null, and the name follows the params"
        )
    return study


def retry_once(study: optuna.Study, failed: FrozenTrial) -> None:
    """Puts a failed trial back in the queue, unless it is a retry itself."""
    if not counts(failed):
        with quiet():
            RetryHeartbeatStaleTrialCallback(max_retry=1)(study, failed)


def retry(study: optuna.Study, interrupted: FrozenTrial) -> None:
    """Puts an interrupted trial back in the queue, without using up its one retry."""
    if not counts(interrupted):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=interrupted.params,
                distributions=interrupted.distributions,
                user_attrs=interrupted.user_attrs,
                system_attrs={"failed_trial": interrupted.number} | interrupted.system_attrs,
            )
        )


@contextmanager
def _unless_taken() -> Iterator[None]:
    """Ignores that a trial has ended: another process took it over, while this one slept."""
    with suppress(UpdateFinishedTrialError):
        yield

"""The study: Optuna asks for KL weights, a population trains them at once, validation images judge them.

The only module that imports optuna. A study is a table of trials in a database; any number of processes may work on it
at once, and any of them may be killed. `open_study` finds or makes it, `search` brings it to its number of trials and
yields what happens, `Study.table` and `Study.choose` read it.

What is minimised never contains the KL weight: a weighted loss would only drive the weight to zero.
"""

import itertools
import math
import os
import re
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optuna
import pandas as pd
import sqlalchemy
import torch
from filelock import FileLock, Timeout
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from pipeline.base.errors import UserError
from pipeline.base.files import home
from pipeline.base.params import Number, digest, hashed, params, plain
from pipeline.data.splits import CLASSES, Split
from pipeline.measure.evaluator import Evaluator, with_split
from pipeline.measure.metrics import LOWER_IS_BETTER, OF_SAMPLES
from pipeline.model.cvae import CVAE, Architecture, Conditioning, build
from pipeline.model.density import Density
from pipeline.model.samples import SAMPLERS, Sampler, sample, sheet
from pipeline.training import population
from pipeline.training.fit import Record, TrainParams
from pipeline.training.objective import ObjectiveParams, from_article_weight

DATABASE = "optuna.db"
ARTIFACTS = "optuna_artifacts"  # pictures of trials, where optuna-dashboard shows them
WORKERS = ".workers"  # a lock file for each living process that works on a study
HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 120
PATIENCE_SECONDS = 60  # the longest that another process may hold a SQLite file
ANSWER_SECONDS = 10  # … and that a PostgreSQL server may take to let us in
WAIT_SECONDS = 2  # between two looks at what other processes have done
STRIP = "samples.png"

Metric = Literal[
    "reconstruction", "kl", "elbo", "nll", "active_units", "class_accuracy", "diversity", "frechet", "precision",
    "recall", "density", "coverage", "feature_diversity",
]  # fmt: skip
ARTICLE_WEIGHT, ARTICLE_BATCH = 1e-5, 128  # at which the source article's samples of a class begin to differ


@params
class TuneParams:
    """The section `tune` of params.yaml. None: as in the other sections."""

    study: Annotated[str | None, Field(description="its name; blank: made from what its figures depend on")]
    trials: Annotated[int, Field(ge=1, description="`dvc repro` and `cvae tune` run the study until it has these")]
    epochs: Annotated[int, Field(ge=1, description="of each trial's training; the other values are those of train")]
    population: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)], Field(description="trials trained at once: auto | a number")
    ]
    kl_weight: Annotated[
        tuple[Annotated[Number, Field(gt=0)], ...], Field(description="lowest and highest, sampled log-uniformly")
    ]
    learning_rate: Annotated[
        tuple[Annotated[Number, Field(gt=0)], ...] | None,
        Field(description="blank (as in train), or lowest and highest, such as [0.0005, 0.005]"),
    ]
    latent_size: Annotated[
        tuple[Annotated[int, Field(ge=1, le=784)], ...] | None,
        Field(description="blank (as in model), or choices, such as [8, 16, 32]"),
    ]
    conditioning: Annotated[
        tuple[Conditioning, ...] | None,
        Field(description="blank (as in model), or choices, such as [sum, concat]"),
    ]
    objectives: Annotated[
        tuple[Metric, ...],
        Field(description="one or several of reconstruction, kl, elbo, nll, active_units, frechet, class_accuracy, …"),
    ]
    sampler_of_latents: Annotated[Sampler, Field(description="fitted | prior: whose samples are measured")]
    least_class_accuracy: Annotated[
        Number | None, Field(ge=0, le=1, description="a trial below it can't be the best; blank: no limit")
    ]
    pruner: Annotated[
        Literal["halving", "none"],
        Field(description="halving (after 1, 2, 4, … epochs the worse half stops) | none"),
    ]
    seed: Annotated[int, Field(ge=0, le=2**31)]


@dataclass(frozen=True)
class Setting:
    """All that a trial's figures depend on, besides what the study tries."""

    tune: TuneParams
    architecture: Architecture
    aim: ObjectiveParams
    train: TrainParams
    components: int
    nll_draws: int
    hashes: Mapping[str, str]  # of the data and the judge

    def space(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """What is open, by name. Raises UserError for a range or a choice that is none."""
        tune = self.tune
        space: dict[str, optuna.distributions.BaseDistribution] = {"kl_weight": _log_range("kl_weight", tune.kl_weight)}
        if tune.learning_rate is not None:
            space["learning_rate"] = _log_range("learning_rate", tune.learning_rate)
        choices: dict[str, tuple[Any, ...] | None] = {
            "latent_size": tune.latent_size,
            "conditioning": tune.conditioning,
        }
        for name, values in choices.items():
            if values is not None:
                if len(set(values)) < 2:
                    raise UserError(f"params.yaml: tune.{name} must name at least two choices or be null")
                space[name] = optuna.distributions.CategoricalDistribution(values)
        return space

    def check(self) -> None:
        """Raises UserError where the section can't be meant so."""
        self.space()
        objectives = self.tune.objectives
        if not objectives:
            raise UserError("params.yaml: tune.objectives must name at least one metric, such as [frechet]")
        if len(set(objectives)) < len(objectives):
            raise UserError(f"params.yaml: tune.objectives names a metric twice: {list(objectives)}")

    def name(self) -> str:
        """The study's name: the same for whatever belongs into one table of trials."""
        return self.tune.study or f"kl-weight-{self.fingerprint()[:8]}"

    def fingerprint(self) -> str:
        """A hash of all that a trial's values depend on; how many are tried, and when they stop, is no part of it."""
        tune = plain(self.tune)
        for key in ("study", "trials", "population", "pruner", "seed"):
            del tune[key]
        train = hashed(self.train)
        for key in ("epochs", "device", "precision", "compile"):
            del train[key]
        model, aim = hashed(self.architecture), hashed(self.aim)
        del aim["kl_weight"]
        for name in self.space():  # what is open may be promoted, which makes no new study
            model.pop(name, None)
            train.pop(name, None)
        draws = self.nll_draws if "nll" in self.tune.objectives else None
        return digest(tune, model, aim, train, self.components, draws, dict(self.hashes))

    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        """What people ask about first, each with a word on it, where the range holds it."""
        fixed: dict[str, Any] = {
            "learning_rate": self.train.learning_rate,
            "latent_size": self.architecture.latent_size,
            "conditioning": self.architecture.conditioning,
        }
        weights = {
            "params.yaml": self.aim.kl_weight,
            "the article, the bound": from_article_weight(ARTICLE_WEIGHT, ARTICLE_BATCH),  # 1.00: one answers for both
        }
        first: list[tuple[str, dict[str, Any]]] = []
        for word, weight in weights.items():
            point = {name: weight if name == "kl_weight" else fixed[name] for name in self.space()}
            inside = all(_holds(rule, point[name]) for name, rule in self.space().items())
            if inside and not any(_same(point, other) for _, other in first):
                first.append((word, point))
        return first


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

    def remember_run(self, run_id: str, uri: str) -> None:
        """So that the trial names its run, and a later try goes on in it."""
        self.run_id, self.uri = run_id, uri
        with _unless_taken():
            self.trial.set_user_attr("run_id", run_id)
            self.trial.set_user_attr("tracking_uri", uri)


@dataclass(frozen=True)
class Began:
    """A trial starts to train."""

    candidate: Candidate


@dataclass(frozen=True)
class Epoch:
    """One epoch of one trial; figures: what was measured after it, by name, where it was."""

    candidate: Candidate
    record: Record
    figures: dict[str, float]
    model: CVAE


@dataclass(frozen=True)
class Ended:
    """A trial is told. strip: two rows of ten digits, from the prior and the fitted density, (H, W) uint8."""

    candidate: Candidate
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    why: str
    strip: np.ndarray | None


Event = Began | Epoch | Ended


@dataclass(frozen=True)
class Chosen:
    """A finished trial, by what it would change in params.yaml."""

    number: int
    values: dict[str, float]  # by objective
    sets: dict[tuple[str, str], Any]  # (section, key) to value
    run_id: str | None
    tracking_uri: str | None
    feasible: bool

    @property
    def kl_weight(self) -> float:
        return float(self.sets["objective", "kl_weight"])


class NoStudy(UserError):
    """There is no such study in its database."""


class Study:
    """A study in its database; `open_study` makes it, and closes what it needs."""

    def __init__(self, inner: optuna.Study, storage: RDBStorage, setting: Setting, url: str, root: Path) -> None:
        self.inner, self.setting = inner, setting
        self.name = inner.study_name
        self._storage, self._url, self._root = storage, url, home(root)
        self._retry = storage.get_heartbeat_stale_trial_callback()
        self._pictures = FileSystemArtifactStore(self._root / ARTIFACTS)
        self._worker = ""
        self._live: set[int] = set()  # ids, whose heart beats

    # What there is

    def trials(self) -> list[FrozenTrial]:
        return self.inner.get_trials(deepcopy=False)

    def done(self) -> int:
        """How many trials count: told ones. One that was interrupted counts by its second try."""
        return sum(_counts(trial) for trial in self.trials())

    def table(self) -> pd.DataFrame:
        """A row a trial: number, state, what it tried, its values, every figure measured, its run."""
        rows = []
        for trial in self.trials():
            values = dict(zip(self.setting.tune.objectives, trial.values or [], strict=False))
            rows.append(
                {
                    "trial": trial.number,
                    "state": _state(trial),
                    **{name: trial.params.get(name) for name in self.setting.space()},
                    **{f"value_{name}": value for name, value in values.items()},
                    "feasible": _feasible(trial) if trial.values else None,
                    "epochs": trial.user_attrs.get("epochs"),
                    "seconds": trial.user_attrs.get("seconds"),
                    **trial.user_attrs.get("figures", {}),
                    "asked": trial.user_attrs.get("asked", ""),
                    "retry_of": trial.system_attrs.get("failed_trial"),
                    "run_id": trial.user_attrs.get("run_id"),
                }
            )
        columns = ["trial", "state", *self.setting.space(), *(f"value_{name}" for name in self.setting.tune.objectives)]
        frame = pd.DataFrame(rows)
        return frame.reindex(columns=[*columns, *(name for name in frame.columns if name not in columns)])

    def front(self) -> list[FrozenTrial]:
        """Complete trials that no other beats in every objective; of one objective, the best. Feasible ones, if any."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        eligible = [trial for trial in complete if _feasible(trial)] or complete
        costs = {trial.number: self._costs(trial) for trial in eligible}
        return [
            trial for trial in eligible if not any(_dominates(other, costs[trial.number]) for other in costs.values())
        ]

    def choose(self, number: int | None = None) -> Chosen:
        """The best trial, or the one of that number. Raises UserError where there is none, or it isn't complete.

        With several objectives the best is the one of the front nearest to its ideal corner, each objective scaled to
        the front's own span.
        """
        if number is not None:
            found = next((trial for trial in self.trials() if trial.number == number), None)
            if found is None:
                raise UserError(f"study {self.name} has no trial {number}: `cvae study` lists its trials")
            if found.state != TrialState.COMPLETE:
                raise UserError(
                    f"trial {number} of study {self.name} {_WORDS[_state(found)]}: only a complete one can be chosen"
                )
            return self._chosen(found)
        front = self.front()
        if not front:
            if self.done() < self.setting.tune.trials:
                raise UserError(f"study {self.name} has no complete trial yet: run `cvae tune`")
            raise UserError(f"all trials of study {self.name} diverged: set a lower train.learning_rate and tune anew")
        costs = np.array([self._costs(trial) for trial in front])
        scaled = (costs - costs.min(0)) / np.maximum(np.ptp(costs, axis=0), 1e-12)
        return self._chosen(front[int(np.linalg.norm(scaled, axis=1).argmin())])

    def importances(self) -> dict[str, float]:
        """The share of each open parameter in the first objective (PED-ANOVA); empty where that can't be told."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(self.setting.space()) < 2 or len(complete) < 4:
            return {}
        with _quiet():
            # It takes the lowest targets for the good trials, unless the study itself says what is good.
            first = (lambda trial: self._costs(trial)[0]) if len(self.setting.tune.objectives) > 1 else None
            return dict(optuna.importance.get_param_importances(self.inner, target=first))

    def strip(self, number: int) -> np.ndarray | None:
        """The picture of a trial, (H, W) uint8; None where this machine doesn't hold it."""
        from PIL import Image

        for meta in get_all_artifact_meta(self.trials()[number], storage=self._storage):
            if meta.filename == STRIP:
                with tempfile.TemporaryDirectory() as folder, suppress(OSError, ArtifactNotFound):
                    path = Path(folder) / STRIP
                    download_artifact(artifact_store=self._pictures, file_path=str(path), artifact_id=meta.artifact_id)
                    return np.asarray(Image.open(path).convert("L"))
        return None

    # Notes on the study itself

    def note(self, key: str) -> Any:
        return self.inner.user_attrs.get(key)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it holds, no other process begins anything on this study."""
        with _turn(self._url):
            yield

    def remember(self, key: str, value: Any) -> None:
        self.inner.set_user_attr(key, value)

    # Asking and telling

    def ask(self, most: int) -> list[Candidate]:
        """Up to `most` trials to train now: no more than the study lacks, and than other processes have taken on.

        Trials that dead processes left behind are failed first and put in line again, once.
        """
        asked: list[Candidate] = []
        with self.turn(), _quiet():
            self._bury_the_dead()
            wanted = self.setting.tune.trials
            taken = [trial for trial in self.trials() if _counts(trial) or trial.state == TrialState.RUNNING]
            room = min(most, wanted - len(taken))
            self._enqueue(room)
            try:
                for _ in range(room):
                    asked.append(self._ask_one())  # noqa: PERF401 (what was asked must be known when asking fails)
            except BaseException as error:
                self._put_back(asked, error)
                raise
        return asked

    def tell(self, candidate: Candidate, state: Literal["COMPLETE", "PRUNED", "FAIL"], why: str = "") -> None:
        """Ends a trial: its figures stay with it, and its value, unless it failed."""
        trial, tune = candidate.trial, self.setting.tune
        with _quiet(), _unless_taken():
            trial.set_user_attr("figures", _finite(candidate.figures))
            trial.set_user_attr("epochs", candidate.epochs)
            trial.set_user_attr("seconds", round(candidate.seconds, 2))
            if why:
                trial.set_user_attr("why", why)
            accuracy = candidate.figures.get(f"validation/{tune.sampler_of_latents}/class_accuracy")
            if tune.least_class_accuracy is not None and accuracy is not None:
                trial.set_constraint("class_accuracy", tune.least_class_accuracy - accuracy)
            values = [candidate.figures[self._key(name)] for name in tune.objectives] if state == "COMPLETE" else None
            self.inner.tell(trial, values, state=TrialState[state])
        self._live.discard(trial._trial_id)

    def put_back(self, candidates: Sequence[Candidate], error: BaseException) -> None:
        """Ends trials in training, because of `error`, and puts them in line again."""
        with self.turn(), _quiet():
            self._put_back(candidates, error)

    def report(self, candidate: Candidate) -> None:
        """Its objective so far, for the pruner to compare."""
        if len(self.setting.tune.objectives) == 1:
            with _unless_taken():
                candidate.trial.report(candidate.figures[self._key(self.setting.tune.objectives[0])], candidate.epochs)

    def losers(self, candidates: Sequence[Candidate], epoch: int) -> list[Candidate]:
        """Those who are not in the better half of all the study's trials that have reported at this epoch.

        What people ask about is trained to its end: they want to see it beside the best.
        """
        reported = [trial.intermediate_values[epoch] for trial in self.trials() if epoch in trial.intermediate_values]
        (name,) = self.setting.tune.objectives
        values = [candidate.figures[self._key(name)] for candidate in candidates]
        kept = halve(values, reported, name in LOWER_IS_BETTER)
        pairs = zip(candidates, kept, strict=True)
        return [candidate for candidate, stays in pairs if not stays and "asked" not in candidate.trial.user_attrs]

    def keep_strip(self, candidate: Candidate, strip: np.ndarray) -> None:
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder, _unless_taken():
            path = Path(folder) / STRIP
            Image.fromarray(strip).save(path)
            (self._root / ARTIFACTS).mkdir(exist_ok=True)
            upload_artifact(
                artifact_store=self._pictures,
                file_path=str(path),
                study_or_trial=candidate.trial,
                storage=self._storage,
            )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it holds, this process is known to live: by a lock on this machine, by heartbeats elsewhere."""
        folder = self._root / WORKERS
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}.lock"
        with ExitStack() as ending:
            ending.callback(path.unlink, missing_ok=True)
            ending.enter_context(FileLock(path))
            self._worker = f"{_machine()}:{path}"
            with self.turn():
                number = int(self.note("workers") or 0)  # each process draws with a seed of its own
                self.remember("workers", number + 1)
            # It learns from the trials before as soon as a first batch is in.
            self.inner.sampler = optuna.samplers.TPESampler(
                seed=(self.setting.tune.seed + number) % 2**32,
                n_startup_trials=min(10, math.ceil(self.setting.tune.trials / 3)),
            )
            end = threading.Event()
            beating = threading.Thread(target=self._beat, args=(end,), daemon=True)
            beating.start()
            try:
                yield
            finally:
                end.set()
                beating.join()

    def _beat(self, end: threading.Event) -> None:
        while not end.wait(HEARTBEAT_SECONDS):
            for trial_id in list(self._live):
                with suppress(Exception):  # a missed beat is no reason to lose a training
                    self._storage.record_heartbeat(trial_id)

    def _ask_one(self) -> Candidate:
        trial = self.inner.ask(self.setting.space())
        trial.set_user_attr("worker", self._worker)
        self._storage.record_heartbeat(trial._trial_id)
        self._live.add(trial._trial_id)
        notes = trial.user_attrs
        return Candidate(trial, dict(trial.params), notes.get("run_id"), notes.get("tracking_uri"))

    def _enqueue(self, room: int) -> None:
        """Puts in line what people ask about and wasn't tried yet, then KL weights that lay the range out evenly.

        Half of a small study's trials, ten at most, are given so: as many random draws left gaps of a decade, and
        the table and the pictures are to show the whole range, not the best of it alone.
        """
        waiting = [trial for trial in self.trials() if trial.state == TrialState.WAITING]
        tried = [trial.system_attrs.get("fixed_params", trial.params) for trial in self.trials()]
        room = max(room - len(waiting), 0)
        new = [(word, point) for word, point in self.setting.asked() if not any(_same(point, one) for one in tried)]
        for word, point in new[:room]:
            self.inner.enqueue_trial(point, user_attrs={"asked": word})
            tried.append(point)
        laid_out = min(10, math.ceil(self.setting.tune.trials / 2))
        for _ in range(min(room - len(new), laid_out - len(tried))):
            weight = widest_gap(self.setting.tune.kl_weight, [point["kl_weight"] for point in tried if point])
            tried.append({"kl_weight": weight})
            self.inner.enqueue_trial(tried[-1])

    def _bury_the_dead(self) -> None:
        """Fails trials whose process has ended, and puts them in line again, once; under the lock.

        On this machine the process's lock file tells, however long it slept; of others' their heartbeats.
        """
        stale = self._storage._get_stale_trial_ids(self.inner._study_id)
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                dead = _is_dead(trial.user_attrs.get("worker"))
                if dead or (dead is None and trial._trial_id in stale):
                    self._fail(trial._trial_id, self._retry)

    def _put_back(self, candidates: Sequence[Candidate], error: BaseException) -> None:
        # Whoever was interrupted is asked for again; what fails of itself would fail for ever.
        patient = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        again = _as_it_was if patient else self._retry
        for candidate in candidates:
            self._live.discard(candidate.trial._trial_id)
            self._fail(candidate.trial._trial_id, again)

    def _fail(self, trial_id: int, again: Callable[[optuna.Study, FrozenTrial], None] | None) -> None:
        with suppress(UpdateFinishedTrialError):
            if self._storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
                failed = self._storage.get_trial(trial_id)
                if again and not _counts(failed):
                    again(self.inner, failed)

    def _key(self, objective: str) -> str:
        """The name of an objective among a trial's figures."""
        sampler = f"{self.setting.tune.sampler_of_latents}/" if objective in OF_SAMPLES else ""
        return f"validation/{sampler}{objective}"

    def _costs(self, trial: FrozenTrial) -> list[float]:
        """A trial's values, turned so that less is better."""
        pairs = zip(self.setting.tune.objectives, trial.values, strict=True)
        return [value if name in LOWER_IS_BETTER else -value for name, value in pairs]

    def _chosen(self, trial: FrozenTrial) -> Chosen:
        sections = {"kl_weight": "objective", "learning_rate": "train", "latent_size": "model", "conditioning": "model"}
        return Chosen(
            number=trial.number,
            values=dict(zip(self.setting.tune.objectives, trial.values, strict=True)),
            sets={(sections[name], name): value for name, value in trial.params.items()},
            run_id=trial.user_attrs.get("run_id"),
            tracking_uri=trial.user_attrs.get("tracking_uri"),
            feasible=_feasible(trial),
        )


# Opening


def storage_url(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """OPTUNA_STORAGE, or else the SQLite file optuna.db in the user's project folder; SQLite paths absolute.

    Raises UserError for another kind of database: heartbeats need SQLite or PostgreSQL.
    """
    url = environment.get("OPTUNA_STORAGE") or f"sqlite:///{DATABASE}"
    if url.startswith("sqlite:///"):
        return f"sqlite:///{home(root) / url.removeprefix('sqlite:///')}"
    if re.match(r"postgres(ql)?(\+psycopg)?://", url):
        with suppress(ValueError, ArgumentError):  # a port that is no number, a bracket left open
            parsed = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
            if "@" in (parsed.host or ""):  # it would be looked up, and named in the answer
                raise UserError(f"OPTUNA_STORAGE {_shown(url)}: write an @ in the password as %40")
            return parsed.render_as_string(hide_password=False)
    raise UserError(f"OPTUNA_STORAGE {_shown(url)} is no sqlite:///FILE or postgresql://USER@HOST/DATABASE")


def open_study(setting: Setting, root: Path, *, create: bool, environment: Mapping[str, str] = os.environ) -> Study:
    """The study of that setting in its database. Raises UserError where the database can't be used, where it holds
    another study under the same name, and, unless `create`, where there is none."""
    setting.check()
    url = storage_url(root, environment)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = _sqlite_path(url)
    with _one_line(url), _quiet():
        tables = _tables(url)
        # MLflow's tables and Optuna's in one database break both (optuna/optuna#2866).
        if "experiments" in tables and "studies" not in tables:
            raise UserError(f"{_shown(url)} is MLflow's database: Optuna needs one of its own, see OPTUNA_STORAGE")
        if "studies" not in tables and not create:
            raise NoStudy(f"in {_shown(url)} no study was made yet, run `cvae tune`")
        with _turn(url):  # one at a time: together, they would trip over one another's tables
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": PATIENCE_SECONDS}} if path else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
            )
            _prepare(storage.engine, url)
            weakref.finalize(storage, storage.engine.dispose)  # a server is told that its connections end
            if path is not None:
                with closing(sqlite3.connect(path, PATIENCE_SECONDS)) as database:
                    database.execute("PRAGMA journal_mode=WAL")  # readers and a writer at once; kept in the file
            inner = _find_or_make(setting, storage, create)
    return Study(inner, storage, setting, url, root)


def _find_or_make(setting: Setting, storage: RDBStorage, create: bool) -> optuna.Study:
    name, objectives = setting.name(), setting.tune.objectives
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        if not create:
            raise NoStudy(f"there is no study {name} yet (its name follows params.yaml): run `cvae tune`") from None
        lower, higher = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
        directions = [lower if objective in LOWER_IS_BETTER else higher for objective in objectives]
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    if "fingerprint" not in study.user_attrs and not study.get_trials(deepcopy=False):  # new, or its maker died here
        study.set_metric_names(list(objectives))
        study.set_user_attr("fingerprint", setting.fingerprint())
    if study.user_attrs.get("fingerprint") != setting.fingerprint():
        raise UserError(
            f"the study {name!r} has another space, other data or another model: name another one in params.yaml: "
            "tune.study, or set it to null, which names it by what it is"
        )
    return study


def _tables(url: str) -> set[str]:
    path = _sqlite_path(url)
    if path is not None and not path.exists():
        return set()  # a look would make it
    with _connected(url) as connection:
        return set(sqlalchemy.inspect(connection).get_table_names())


@contextmanager
def _turn(url: str) -> Iterator[None]:
    """One process at a time, of all that work on this database."""
    path = _sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
        return
    with _connected(url) as connection:  # its end is the lock's end: a killed process holds nothing up
        key = int(digest("cvae study"), 16) % 2**63
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        yield


@contextmanager
def _connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection of its own, in no transaction."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    _prepare(engine, url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def _prepare(engine: sqlalchemy.Engine, url: str) -> None:
    """Lets every error of this engine's database be a UserError from where it arises, whoever called."""

    @sqlalchemy.event.listens_for(engine, "handle_error")
    def _(context: sqlalchemy.ExceptionContext) -> UserError | None:
        known = context.sqlalchemy_exception
        # Optuna counts on IntegrityError, and a connection found stale before its use is made anew.
        if known is None or isinstance(known, IntegrityError) or context.is_pre_ping:
            return None
        return _unusable(url, context.original_exception)

    if engine.dialect.name == "postgresql":
        engine.dispose()  # what was connected before had no chance to listen

        @sqlalchemy.event.listens_for(engine, "do_connect")
        def _(_dialect: Any, _record: Any, _words: Any, options: dict[str, Any]) -> None:
            options.setdefault("connect_timeout", ANSWER_SECONDS)

        @sqlalchemy.event.listens_for(engine, "connect")
        def _(connection: Any, _: Any) -> None:
            # Optuna compares heartbeats by the session's local time: one for all, and without a summer's hour.
            connection.execute("SET TIME ZONE 'UTC'")
            connection.commit()


def widest_gap(ends: Sequence[float], weights: Sequence[float]) -> float:
    """The middle, on a logarithmic scale and in three digits, of the widest gap between weights, or to an end.

    >>> widest_gap((0.01, 100), [0.2, 1.0])
    10.0
    """
    first, last = ends
    places = sorted([first, last, *(weight for weight in weights if first < weight < last)])
    low, high = max(itertools.pairwise(places), key=lambda pair: pair[1] / pair[0])
    return min(max(float(f"{math.sqrt(low * high):.3g}"), first), last)


# Training


def search(
    study: Study,
    train: Split,
    validation: Split,
    evaluator: Evaluator,
    device: torch.device,
) -> Generator[Event, None, None]:
    """Brings the study to its number of trials and yields what happens. All splits lie on the device.

    On any exception, Ctrl-C among them, the trials in training go back in line. Where other processes have taken on
    the last trials, it waits for them: should one die, its trials are taken over.
    """
    setting = study.setting
    with study.at_work():
        while study.done() < setting.tune.trials:
            batch = study.ask(batch_size(setting, device))
            if not batch:
                time.sleep(WAIT_SECONDS)
            waiting = list(batch)
            try:
                for architecture, stack in stacks(setting, batch):
                    for event in _train(study, architecture, stack, train, validation, evaluator, device):
                        if isinstance(event, Ended):
                            waiting.remove(event.candidate)
                        yield event
            except BaseException as error:
                with suppress(UserError):  # what can't be told now is found dead by the next to ask
                    study.put_back(waiting, error)
                raise


def batch_size(setting: Setting, device: torch.device) -> int:
    """How many trials train at once: as the params say, or as the device bears and a third of the study leaves."""
    tune = setting.tune
    if tune.population != "auto":
        return tune.population
    learned_from = max(4, math.ceil(tune.trials / 3))  # what is asked at once can't learn from one another
    codes = setting.train.batch_size * setting.aim.draws  # that a member decodes at once
    return min(learned_from, population.auto_size(device, setting.architecture, codes))


def stacks(setting: Setting, batch: Sequence[Candidate]) -> list[tuple[Architecture, list[Candidate]]]:
    """The candidates by what their shapes depend on: only members of one architecture train in one stack."""
    groups: dict[Architecture, list[Candidate]] = {}
    for candidate in batch:
        shapes = {key: value for key, value in candidate.values.items() if key in ("latent_size", "conditioning")}
        groups.setdefault(replace(setting.architecture, **shapes), []).append(candidate)
    return list(groups.items())


def rungs(epochs: int) -> list[int]:
    """The epochs after which the worse half leaves: 1, 2, 4, … before the last.

    >>> rungs(4), rungs(9)
    ([1, 2], [1, 2, 4, 8])
    """
    return [2**power for power in range(epochs.bit_length()) if 2**power < epochs]


def halve(values: Sequence[float], reported: Sequence[float], lower_is_better: bool) -> list[bool]:
    """Which of `values` stay: those among the better half, rounded up, of all `reported`, which hold them too.

    Successive halving (Jamieson & Talwalkar 2016) with reduction factor 2, over all trials that came this far.

    >>> halve([3.0, 9.0, 5.0], [3.0, 9.0, 5.0, 1.0], lower_is_better=True)
    [True, False, False]
    """
    sign = 1 if lower_is_better else -1
    places = math.ceil(len(reported) / 2)
    return [sum(sign * other < sign * value for other in reported) < places for value in values]


def _train(
    study: Study,
    architecture: Architecture,
    stack: list[Candidate],
    train: Split,
    validation: Split,
    evaluator: Evaluator,
    device: torch.device,
) -> Iterator[Event]:
    setting, tune = study.setting, study.setting.tune
    params = replace(setting.train, epochs=tune.epochs)
    prunes = tune.pruner == "halving" and len(tune.objectives) == 1
    for candidate in stack:
        yield Began(candidate)
    # The same first weights for all: what differs in the end is owed to what differs in the trials.
    aim = setting.aim
    models = [build(architecture, params.seed, aim.likelihood, aim.sigma) for _ in stack]
    rates = [candidate.values["learning_rate"] for candidate in stack] if tune.learning_rate is not None else None
    members = population.start(models, [candidate.kl_weight for candidate in stack], params, device, rates)

    for records in population.fit(members, train, validation, params, aim):
        epoch = members.epoch
        last, rung = epoch == params.epochs, prunes and epoch in rungs(params.epochs)
        here: list[tuple[Candidate, np.ndarray]] = []
        for member, record in records.items():
            candidate = stack[member]
            candidate.epochs, began = epoch, time.perf_counter()
            candidate.seconds += record.figures["time/seconds"] / len(records)
            model = members.model(member).eval().requires_grad_(requires_grad=False)
            measured: tuple[dict[str, float], np.ndarray] | None = None
            if (rung or last) and not record.diverged:
                measured = _measure(study, evaluator, model)
            if record.diverged or ((rung or last) and measured is None):
                members.drop([member])
                study.tell(candidate, "FAIL", "diverged")
                yield Ended(candidate, "FAIL", f"diverged in epoch {epoch}", None)
                continue
            candidate.figures |= {name: record.figures[name] for name in _FIGURES_OF_A_RECORD}
            if measured is not None:
                figures, strip = measured
                candidate.figures |= figures
                candidate.seconds += time.perf_counter() - began
                study.report(candidate)
                here.append((candidate, strip))
            yield Epoch(candidate, record, measured[0] if measured else {}, model)
        losers = study.losers([candidate for candidate, _ in here], epoch) if rung else []
        for candidate, strip in here:
            if last or candidate in losers:
                study.keep_strip(candidate, strip)
                study.tell(candidate, "COMPLETE" if last else "PRUNED")
                yield Ended(candidate, "COMPLETE" if last else "PRUNED", "", strip)
        members.drop([stack.index(candidate) for candidate in losers])


_FIGURES_OF_A_RECORD = ("validation/reconstruction", "validation/kl", "validation/elbo")


def _measure(study: Study, evaluator: Evaluator, model: CVAE) -> tuple[dict[str, float], np.ndarray] | None:
    """What validation says of a candidate with both samplers, the judged one and the other, and its strip.

    None where its codes or samples are beyond measuring, though its loss is still finite.
    """
    tune = study.setting.tune
    try:
        density = evaluator.density(model, study.setting.components)
        figures = {
            f"{sampler}/{name}": value
            for sampler in SAMPLERS
            for name, value in evaluator.samples(model, density, sampler).items()
        }
        figures["active_units"] = evaluator.active_units(model)
        if "nll" in tune.objectives:
            figures |= evaluator.nll(model, study.setting.nll_draws)
        figures = with_split("validation", figures)
        strip = _strip(model, density)
    except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]  # eigenvalues, or a mixture, of what is not finite
        return None
    return (figures, strip) if all(map(math.isfinite, figures.values())) else None


def _strip(model: CVAE, density: Density) -> np.ndarray:
    """Each digit once, from the prior and, below, from the fitted density; the same noise for every model."""
    labels = torch.arange(CLASSES, device=model.mu.weight.device)
    images = [sample(model, density, labels, sampler, seed=0) for sampler in SAMPLERS]
    return sheet(torch.cat(images), CLASSES)


# Small things


_WORDS = {
    "PRUNED": "was pruned",
    "FAILED": "failed",
    "DIVERGED": "diverged",
    "RUNNING": "is still running",
    "WAITING": "was not tried yet",
}


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.FAIL:
        return "DIVERGED" if trial.user_attrs.get("why") == "diverged" else "FAILED"
    return trial.state.name


def _counts(trial: FrozenTrial) -> bool:
    """A trial that diverges is an answer; one that was interrupted is not, its second try is."""
    return _state(trial) in ("COMPLETE", "PRUNED", "DIVERGED")


def _as_it_was(study: optuna.Study, trial: FrozenTrial) -> None:
    """Puts an interrupted trial in line again: that is no failure of its, and its one retry remains."""
    notes = {"failed_trial": trial.number} | trial.system_attrs
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=notes,
        )
    )


def _feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for key, value in trial.system_attrs.items() if key.startswith("constraints:"))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether costs `one` are nowhere worse and somewhere better than `other`."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _log_range(name: str, bounds: tuple[float, ...]) -> optuna.distributions.FloatDistribution:
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise UserError(f"params.yaml: tune.{name} must be [lowest, highest] with lowest < highest, not {list(bounds)}")
    return optuna.distributions.FloatDistribution(*bounds, log=True)


def _holds(rule: optuna.distributions.BaseDistribution, value: Any) -> bool:
    if isinstance(rule, optuna.distributions.CategoricalDistribution):
        return value in rule.choices
    return isinstance(rule, optuna.distributions.FloatDistribution) and rule.low <= value <= rule.high


def _same(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points are as good as one: numbers within a percent, all else equal."""
    if point.keys() != other.keys():
        return False
    pairs = [(value, other[name]) for name, value in point.items()]
    return all(math.isclose(a, b, rel_tol=0.01) if isinstance(a, float) else a == b for a, b in pairs)


def _machine() -> str:
    """A name of this machine that another one is not likely to have."""
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def _is_dead(worker: str | None) -> bool | None:
    """Whether a worker's process has ended; None where this machine can't tell.

    A running trial without one was asked for by a process that died in that very moment: asking is done under a lock.
    """
    if worker is None:
        return True
    machine, _, path = worker.partition(":")
    if machine != _machine():
        return None
    try:
        if not Path(path).exists():
            return True
        with FileLock(path, timeout=0):
            Path(path).unlink(missing_ok=True)
            return True
    except Timeout:
        return False
    except PermissionError:  # another user's
        return None


def _sqlite_path(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _shown(url: str) -> str:
    """The address without the password it may carry, before the host or as a parameter."""
    return url if _sqlite_path(url) else re.sub(r"//.*@", "//", url).partition("?")[0]


@contextmanager
def _unless_taken() -> Iterator[None]:
    """A process that slept too long may find that another one took its trial over: it is no longer its to tell."""
    with suppress(UpdateFinishedTrialError):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of heartbeats outside of optimize(), which we send ourselves, and of what is new in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Turns whatever the opening of a database that can't be used raises into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise _unusable(url, "psycopg is not installed", "pip install 'psycopg[binary]'") from error
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise _unusable(url, getattr(cause, "orig", cause)) from error
    except RuntimeError as error:  # tables of another Optuna: it says how to upgrade them
        raise _unusable(url, error) from error


def _unusable(url: str, reason: Any, remedy: str = "see OPTUNA_STORAGE") -> UserError:
    return UserError(f"Optuna's database {_shown(url)} can't be used ({' '.join(str(reason).split())[:300]}): {remedy}")

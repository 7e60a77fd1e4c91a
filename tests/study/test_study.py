"""The study on tiny pictures with a judge whose verdict is known: asking, pruning, dying, going on, choosing."""

import dataclasses
import doctest
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from bands import banded, judge
from imports import ROOT
from optuna.trial import TrialState
from settings import objective_params, train_params

from pipeline.base.errors import UserError
from pipeline.measure import evaluator as evaluation
from pipeline.measure.evaluator import Evaluator
from pipeline.measure.metrics import OF_SAMPLES
from pipeline.model import density
from pipeline.model.cvae import Architecture
from pipeline.study import search as searching
from pipeline.study import space, storage, workers
from pipeline.study.queue import Candidate, Study, open_study
from pipeline.study.search import Began, Bench, Ended, Epoch, Event, search
from pipeline.study.space import Setting, TuneParams
from pipeline.study.trials import counts
from pipeline.training import population

CPU = torch.device("cpu")
TUNE = TuneParams(
    study=None,
    trials=6,
    epochs=4,
    population="auto",
    kl_weight=(0.01, 100.0),
    learning_rate=None,
    latent_size=None,
    conditioning=None,
    objectives=("frechet",),
    sampler_of_latents="fitted",
    least_class_accuracy=None,
    pruner="halving",
    seed=0,
)
SETTING = Setting(
    tune=TUNE,
    architecture=Architecture(4, (16,), (16,), "concat", encoder_sees_label=True),
    aim=objective_params(kl_weight=0.3),
    train=train_params(epochs=20, learning_rate=2e-2, warmup=0.0, seed=0),
    components=1,
    nll_draws=5,
    hashes={"data": "d", "judge": "j"},
)


TRAIN, VALIDATION = banded(12, 0), banded(7, 1)


@pytest.fixture(autouse=True)
def _owndatabase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def gaussian(rows: np.ndarray, components: int, _seed: int) -> Any:
    """The mixture of one Gaussian, which is known without a search: most of what measuring so small a model takes."""
    assert components == 1
    if not np.isfinite(rows).all():
        raise ValueError("as of scikit-learn")
    covariance = np.cov(rows.T, bias=True) + 1e-4 * np.eye(rows.shape[1])
    return SimpleNamespace(
        n_components=1, weights_=np.ones(1), means_=rows.mean(0)[None], covariances_=covariance[None]
    )


@pytest.fixture(scope="module", autouse=True)
def quick_mixtures() -> Iterator[Callable[..., Any]]:
    """Puts `gaussian` in the place of the search, which it gives back."""
    searched = density._mixture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "_mixture", gaussian)
        yield searched


def test_the_quick_mixture_is_the_one_that_is_searched_for(quick_mixtures: Callable[..., Any]) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4)) @ np.diag([1.0, 0.1, 3.0, 0.01]) + 5
    quick, searched = gaussian(rows, 1, 0), quick_mixtures(rows, 1, 0)
    for name in ("n_components", "weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(quick, name), getattr(searched, name), rtol=1e-9, atol=1e-12)


@cache
def empty() -> bytes:
    """A database of Optuna's in which there is no study yet: it takes longer to make than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optuna.db"
        optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
        return path.read_bytes()


def having(setting: Setting = SETTING, **changes: Any) -> Setting:
    return dataclasses.replace(setting, tune=dataclasses.replace(setting.tune, **changes))


def opened(folder: Path, setting: Setting = SETTING) -> Study:
    """The study of that setting in `folder`, whose database comes ready made, or in that of the environment."""
    folder.mkdir(exist_ok=True)
    if "OPTUNA_STORAGE" not in os.environ and not (folder / "optuna.db").exists():
        (folder / "optuna.db").write_bytes(empty())
    return open_study(setting, folder, create=True)


def events(found: Study) -> Generator[Event, None, None]:
    evaluator = evaluation.Evaluator(judge, VALIDATION, TRAIN, found.setting.aim.pixels, 0)
    yield from search(found, Bench(TRAIN, VALIDATION, evaluator, CPU))


def brought(folder: Path, setting: Setting = SETTING) -> Study:
    """A study brought to its number of trials."""
    found = opened(folder, setting)
    for _ in events(found):
        pass
    return found


def states(found: Study) -> list[str]:
    return [trial.state.name for trial in found.inner.get_trials()]


# What a study is


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(space)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_people_ask_about_comes_first() -> None:
    """The article's 1e-5 at its batch size, 128, is the bound, whatever today's batch size: one trial answers both."""
    assert [word for word, _ in SETTING.asked()] == ["params.yaml", "the article, the bound"]
    assert [point["kl_weight"] for _, point in SETTING.asked()] == [0.3, pytest.approx(1.0, rel=0.004)]


def test_an_asked_weight_outside_of_the_range_or_there_already_is_left_out() -> None:
    assert [word for word, _ in having(kl_weight=(0.2, 0.9)).asked()] == ["params.yaml"]
    at_the_bound = dataclasses.replace(SETTING, aim=dataclasses.replace(SETTING.aim, kl_weight=1.001))
    assert [word for word, _ in at_the_bound.asked()] == ["params.yaml"]


def test_a_study_is_the_same_one_whatever_its_budget_and_todays_weight() -> None:
    other = having(trials=99, population=3, pruner="none", seed=5)
    other = dataclasses.replace(other, aim=dataclasses.replace(SETTING.aim, kl_weight=7.0))
    other = dataclasses.replace(other, train=dataclasses.replace(SETTING.train, epochs=3, device="auto"))
    assert other.name() == SETTING.name()


@pytest.mark.parametrize(
    "other",
    [
        having(kl_weight=(0.1, 100.0)),
        having(latent_size=(2, 4)),
        having(objectives=("nll",)),
        having(sampler_of_latents="prior"),
        having(epochs=5),
        having(least_class_accuracy=0.5),
        dataclasses.replace(SETTING, hashes={"data": "other", "judge": "j"}),
        dataclasses.replace(SETTING, train=dataclasses.replace(SETTING.train, batch_size=10)),
        dataclasses.replace(SETTING, aim=dataclasses.replace(SETTING.aim, pixels="binary")),
        dataclasses.replace(SETTING, architecture=dataclasses.replace(SETTING.architecture, latent_size=5)),
    ],
)
def test_another_space_or_other_data_make_another_study(other: Setting) -> None:
    assert other.name() != SETTING.name()


def test_promoting_what_is_open_makes_no_new_study() -> None:
    wide = having(latent_size=(2, 4), learning_rate=(1e-3, 1e-2))
    promoted = dataclasses.replace(
        wide,
        architecture=dataclasses.replace(wide.architecture, latent_size=2),
        train=dataclasses.replace(wide.train, learning_rate=5e-3),
    )
    assert promoted.name() == wide.name()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kl_weight": (1.0, 0.1)},
            r"tune.kl_weight must be \[lowest, highest\] with lowest < highest, not \[1.0, 0.1\]",
        ),
        ({"kl_weight": ()}, r"tune.kl_weight must be .*not \[\]"),
        ({"kl_weight": (1.0, 1.0)}, "lowest < highest"),
        ({"learning_rate": (1e-3,)}, r"tune.learning_rate must be \[lowest, highest\]"),
        ({"latent_size": (8,)}, "tune.latent_size must name at least two choices or be null"),
        ({"conditioning": ("sum", "sum")}, "tune.conditioning must name at least two"),
        ({"objectives": ()}, "tune.objectives must name at least one metric"),
        ({"objectives": ("kl", "kl")}, "names a metric twice"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_study(having(**changes), tmp_path, create=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# Searching


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Event]]:
    found = open_study(having(trials=8), tmp_path_factory.mktemp("study"), create=True)
    return found, list(events(found))


def test_a_study_ends_at_its_number_of_trials(finished: tuple[Study, list[Event]]) -> None:
    found, _ = finished
    assert len(found.trials()) == found.done() == 8
    assert set(states(found)) == {"COMPLETE", "PRUNED"}


def test_each_trial_begins_and_ends_and_has_an_event_for_each_epoch(finished: tuple[Study, list[Event]]) -> None:
    _, seen = finished
    for kind, each in ((Began, 1), (Ended, 1)):
        numbers = [event.candidate.number for event in seen if isinstance(event, kind)]
        assert sorted(numbers) == list(range(8)) * each
    epochs = [event.record.epoch for event in seen if isinstance(event, Epoch) and event.candidate.number == 0]
    assert epochs == list(range(1, len(epochs) + 1))


def test_the_worse_half_of_a_batch_leaves_at_each_rung_but_not_what_was_asked_about(
    finished: tuple[Study, list[Event]],
) -> None:
    found, _ = finished
    first = found.trials()[:4]  # a third of eight, but at least four, are asked at once
    at_one = [trial.intermediate_values[1] for trial in first]
    for trial in first:
        better = sum(value < trial.intermediate_values[1] for value in at_one)
        assert (trial.user_attrs["epochs"] > 1) == (better < 2 or "asked" in trial.user_attrs)
    assert [trial.state.name for trial in first if "asked" in trial.user_attrs] == ["COMPLETE", "COMPLETE"]


def test_the_table_has_both_samplers_of_every_trial(finished: tuple[Study, list[Event]]) -> None:
    found, _ = finished
    table = found.table()
    names = [f"validation/{sampler}/{name}" for sampler in ("prior", "fitted") for name in OF_SAMPLES]
    assert table[[*names, "validation/elbo", "validation/active_units", "kl_weight"]].notna().all(axis=None)
    assert table["validation/fitted/frechet"].tolist() == table["validation/fitted/frechet"].tolist()
    assert (table["validation/elbo"] == -table["validation/reconstruction"] - table["validation/kl"]).all()
    assert table["asked"].tolist()[:3] == ["params.yaml", "the article, the bound", ""]


def test_the_best_is_the_complete_trial_of_the_lowest_value(finished: tuple[Study, list[Event]]) -> None:
    found, _ = finished
    table = found.table()
    best = table[table["state"] == "COMPLETE"].sort_values("validation/fitted/frechet").iloc[0]
    chosen = found.choose()
    assert (chosen.number, chosen.kl_weight) == (best["trial"], best["kl_weight"])
    assert chosen.values == {"frechet": best["validation/fitted/frechet"]}
    assert chosen.sets == {("objective", "kl_weight"): best["kl_weight"]}
    assert found.choose(chosen.number) == chosen


def test_a_picture_of_each_trial_is_kept(finished: tuple[Study, list[Event]]) -> None:
    found, seen = finished
    for event in seen:
        if isinstance(event, Ended):
            kept = found.strip(event.candidate.number)
            assert event.strip is not None
            assert kept is not None
            assert (kept == event.strip).all()
            assert kept.shape == (2 * 28 + 2, 10 * 30 - 2)


@pytest.mark.slow
def test_a_finished_study_trains_nothing_more_until_it_is_given_more_trials(tmp_path: Path) -> None:
    three = having(trials=3, epochs=1)
    brought(tmp_path, three)
    found = opened(tmp_path, three)
    assert list(events(found)) == []
    more = brought(tmp_path, having(trials=5, epochs=1))
    assert more.done() == len(more.trials()) == 5


@pytest.mark.slow
def test_no_two_trials_draw_the_same_weight_when_a_study_goes_on(tmp_path: Path) -> None:
    for trials in (5, 7, 9):
        found = brought(tmp_path, having(trials=trials, epochs=1))
    weights = found.table()["kl_weight"].tolist()
    assert len(set(weights)) == len(weights)


def test_half_of_a_study_lays_the_range_out(tmp_path: Path) -> None:
    """Whoever asks: a second process fills the gaps that the first has left."""
    setting = having(trials=12, kl_weight=(0.01, 100.0))
    weights = [candidate.values["kl_weight"] for _ in range(2) for candidate in opened(tmp_path, setting).ask(3)]
    assert len(set(weights)) == 6
    assert np.diff(np.log(sorted([0.01, 100.0, *weights]))).max() < np.log(100.0 / 0.01) / 4


@pytest.mark.parametrize(("ends", "weights", "middle"), [((0.1, 10.0), [], 1.0), ((1.0001, 1.0002), [], 1.0001)])
def test_a_weight_in_the_widest_gap_is_in_the_range(ends: Any, weights: list[float], middle: float) -> None:
    assert space.widest_gap(ends, weights) == middle


@pytest.mark.slow
def test_one_process_repeats_itself(finished: tuple[Study, list[Event]], tmp_path: Path) -> None:
    first, second = (
        found.table().drop(columns=["seconds", "run_id"])
        for found in (finished[0], brought(tmp_path, having(trials=8)))
    )
    assert first.equals(second)


@pytest.mark.slow
def test_the_pruner_can_be_left_out(tmp_path: Path) -> None:
    assert set(states(brought(tmp_path, having(trials=4, pruner="none", epochs=2)))) == {"COMPLETE"}


@pytest.mark.slow
def test_several_objectives_give_a_front_and_prune_nothing(tmp_path: Path) -> None:
    found = brought(tmp_path, having(trials=6, epochs=2, objectives=("reconstruction", "kl")))
    assert states(found) == ["COMPLETE"] * 6
    values = {trial.number: trial.values for trial in found.trials()}
    front = {trial.number for trial in found.front()}
    for number, (reconstruction, kl) in values.items():
        beaten = any(a <= reconstruction and b <= kl and (a, b) != (reconstruction, kl) for a, b in values.values())
        assert (number in front) == (not beaten)
    assert found.choose().number in front
    assert found.table()[["validation/reconstruction", "validation/kl"]].notna().all(axis=None)


@pytest.mark.slow
def test_of_metrics_that_should_be_high_the_highest_is_best(tmp_path: Path) -> None:
    found = brought(tmp_path, having(trials=4, epochs=2, objectives=("elbo",), pruner="none"))
    assert found.choose().values["elbo"] == found.table()["validation/elbo"].max()


def test_the_bound_itself_can_be_asked_for(tmp_path: Path) -> None:
    found = brought(tmp_path, having(trials=2, epochs=1, objectives=("nll", "active_units"), population=2))
    table = found.table()
    assert (table["validation/nll"] < -table["validation/elbo"] + 1).all()
    assert set(table["validation/active_units"]) <= set(range(5))


@pytest.mark.slow
def test_a_constraint_keeps_a_trial_from_being_best(tmp_path: Path) -> None:
    free = brought(tmp_path / "free", having(trials=4, pruner="none", epochs=2))
    accuracy = free.table().set_index("trial")["validation/fitted/class_accuracy"]
    assert accuracy.nunique() > 1
    bar = float(accuracy[accuracy > accuracy.min()].min())
    held = brought(tmp_path / "held", having(trials=4, pruner="none", epochs=2, least_class_accuracy=bar))
    feasible = held.table().set_index("trial")["feasible"]
    assert (feasible == (held.table().set_index("trial")["validation/fitted/class_accuracy"] >= bar)).all()
    assert not feasible.all()
    assert held.choose().feasible
    assert held.choose().number == held.inner.best_trial.number  # Optuna, who has the constraint too, agrees


def test_where_no_trial_meets_the_constraint_the_best_of_all_is_marked(tmp_path: Path) -> None:
    found = brought(tmp_path, having(trials=2, epochs=1, least_class_accuracy=1.0, kl_weight=(50.0, 100.0)))
    assert not found.choose().feasible


@pytest.mark.slow
def test_shapes_that_differ_train_in_stacks_of_their_own(tmp_path: Path) -> None:
    setting = having(
        trials=7, epochs=1, population=7, latent_size=(2, 4), conditioning=("sum", "concat"), learning_rate=(1e-3, 1e-2)
    )
    found = opened(tmp_path, setting)
    seen = [event for event in events(found) if isinstance(event, Epoch)]
    for event in seen:
        values = event.candidate.values
        assert event.model.latent_size == values["latent_size"]
        assert event.model.architecture.conditioning == values["conditioning"]
        # at its only epoch's last step half a cosine is nearly down to nothing
        assert 0 < event.record.figures["learning_rate"] < values["learning_rate"]
    assert len({event.model.architecture for event in seen}) > 1
    assert set(found.choose().sets) == {
        ("objective", "kl_weight"), ("model", "latent_size"), ("model", "conditioning"), ("train", "learning_rate")
    }  # fmt: skip
    assert set(found.importances()) == {"kl_weight", "latent_size", "conditioning", "learning_rate"}


def test_a_member_that_diverges_is_an_answer_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = population.start

    def sick(*arguments: Any) -> Any:
        members = start(*arguments)
        with torch.no_grad():
            members.weights["log_var.bias"][1] = 200.0  # its exponential overflows float32
        return members

    monkeypatch.setattr(population, "start", sick)
    found = opened(tmp_path, having(trials=3, epochs=2, population=3, pruner="none"))
    ended = {event.candidate.number: event for event in events(found) if isinstance(event, Ended)}
    assert {number: event.state for number, event in ended.items()} == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}
    assert "epoch 1" in ended[1].why
    assert found.table()["state"].tolist() == ["COMPLETE", "DIVERGED", "COMPLETE"]
    assert found.done() == 3
    with pytest.raises(UserError, match=r"trial 1 of study .* diverged: only a complete one can be chosen"):
        found.choose(1)


def test_the_population_is_as_large_as_asked_or_as_leaves_something_to_learn() -> None:
    assert searching.batch_size(having(population=9), CPU) == 9
    assert searching.batch_size(having(trials=3), CPU) == 4
    assert searching.batch_size(having(trials=21), CPU) == 7
    assert searching.batch_size(having(trials=10_000), CPU) == 16


def test_several_draws_leave_room_for_fewer_members(monkeypatch: pytest.MonkeyPatch) -> None:
    several = dataclasses.replace(SETTING, aim=objective_params(draws=50))
    needed = 16 * population.member_bytes(SETTING.architecture, SETTING.train.batch_size)
    monkeypatch.setattr(population, "_memory", lambda _: 2 * needed)
    assert searching.batch_size(having(trials=10_000), CPU) == 16
    assert searching.batch_size(having(several, trials=10_000), CPU) < 4


# Being interrupted, dying, going on


@pytest.mark.slow
def test_an_interrupted_search_ends_cleanly_and_goes_on(tmp_path: Path) -> None:
    setting = having(trials=6, population=3, epochs=2)
    found = opened(tmp_path, setting)
    stream = events(found)
    for event in stream:
        if isinstance(event, Began):
            event.candidate.remember_run(f"run {event.candidate.number}", "uri")
        if isinstance(event, Ended):
            with pytest.raises(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt())
            break
    told = {trial.number for trial in found.trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}
    assert len(told) >= 1
    assert "RUNNING" not in states(found)
    assert states(found).count("WAITING") == 3 - len(told)

    again = opened(tmp_path, setting)
    runs = [event.candidate.run_id for event in events(again) if isinstance(event, Began)]
    assert again.done() == 6
    assert set(states(again)) == {"COMPLETE", "PRUNED", "FAIL"}
    retried = [f"run {number}" for number in range(3) if number not in told]
    assert [run for run in runs if run] == retried  # a retried trial keeps its run
    table = again.table()
    finished = table[table["state"] != "FAILED"]
    assert finished["kl_weight"].nunique() == 6


PROGRAM = """
import os, sys, time
sys.path[:0] = [{tests!r} + "/study", {tests!r}, {root!r}]
from pathlib import Path
import test_study as t
from pipeline.study.search import Epoch
setting = t.having(trials={trials}, population={population})
found = t.open_study(setting, Path({folder!r}), create=True)
for event in t.events(found):
    if isinstance(event, Epoch):
        print("epoch", event.candidate.number, event.record.epoch, flush=True)
        time.sleep({pause})
print("ended", flush=True)
"""


def program(folder: Path, trials: int, population: int, pause: float) -> list[str]:
    text = PROGRAM.format(
        tests=str(ROOT / "tests"), root=str(ROOT), folder=str(folder), trials=trials, population=population, pause=pause
    )
    return [sys.executable, "-W", "ignore", "-c", text]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_its_count_ends_exact(tmp_path: Path) -> None:
    with subprocess.Popen(program(tmp_path, 6, 2, 0.05), text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 3 "):  # the second batch: something is done, something is not
                break
        process.send_signal(signal.SIGKILL)
    before = opened(tmp_path, having(trials=6, population=2))
    done = {trial.number: trial.values for trial in before.trials() if counts(trial)}
    assert "RUNNING" in states(before)
    assert done
    after = brought(tmp_path, having(trials=6, population=2))
    assert after.done() == 6
    assert "RUNNING" not in states(after)
    assert "WAITING" not in states(after)
    assert all(after.trials()[number].values == values for number, values in done.items())
    assert not list((tmp_path / ".workers").iterdir())


@pytest.mark.slow
def test_several_processes_share_one_new_study(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(program(tmp_path, 9, 2, 0.0), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    found = opened(tmp_path, having(trials=9))
    assert found.done() == len(found.trials()) == 9
    assert found.table()["kl_weight"].nunique() == 9
    assert int(found.note("workers")) == 3


BUSY = """
import sys
sys.path[:0] = [{tests!r} + "/study", {tests!r}, {root!r}]
from pathlib import Path
import test_study as t
from pipeline.study.search import Epoch
found = t.open_study(t.having(trials=30, pruner="none"), Path({folder!r}), create=True)
with found.at_work():
    while batch := found.ask(2):
        for candidate in batch:
            candidate.figures["validation/fitted/frechet"] = candidate.kl_weight
            candidate.epochs = 1
            candidate.remember_run("run", "uri")
            found.report(candidate)
            found.database.record_heartbeat(candidate.trial._trial_id)
            found.tell(candidate, "COMPLETE")
            found.table()
"""


@pytest.mark.slow
def test_processes_that_write_all_the_time_wait_for_one_another(tmp_path: Path) -> None:
    text = BUSY.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(tmp_path))
    command = [sys.executable, "-W", "ignore", "-c", text]
    workers = [subprocess.Popen(command, text=True, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert errors == [""] * 4
    found = opened(tmp_path, having(trials=30))
    assert [trial.number for trial in found.trials()] == list(range(30))
    assert set(states(found)) == {"COMPLETE"}
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_another_program_keeps_to_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.1)
    found = opened(tmp_path, having(trials=2, population=1))
    stream = events(found)
    candidate = next(event.candidate for event in stream if isinstance(event, Epoch))
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert found.done() == 0  # who reads needs to wait for nobody
        with pytest.raises(UserError, match=r"optuna.db can't be used \(database is locked\)"):
            candidate.remember_run("run", "uri")
    candidate.remember_run("run", "uri")
    stream.close()
    assert states(found) == ["FAIL", "WAITING"]


def abandoned(found: Study, worker: str) -> Candidate:
    """A trial in training whose process is `worker`."""
    with found.at_work():
        (candidate,) = found.ask(1)
    candidate.trial.set_user_attr("worker", worker)
    return candidate


def outlive(found: Study, seconds: int) -> None:
    """Makes every heart of the study have beaten last so long ago."""
    path = storage.sqlite_path(found._url)
    assert path is not None
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)", (f"-{seconds} seconds",))


def test_another_machines_trial_is_left_alone_while_its_heart_beats_and_retried_once(tmp_path: Path) -> None:
    setting = having(trials=1, epochs=1)
    found = opened(tmp_path, setting)
    candidate = abandoned(found, "elsewhere:lock")
    assert found.ask(1) == []
    assert states(found) == ["RUNNING"]
    outlive(found, storage.GRACE_SECONDS + 30)
    (again,) = found.ask(1)
    assert again.kl_weight == candidate.kl_weight
    assert states(found) == ["FAIL", "RUNNING"]
    again.trial.set_user_attr("worker", "elsewhere:lock")
    outlive(found, storage.GRACE_SECONDS + 30)
    (new,) = found.ask(1)  # once is enough: another weight's turn
    assert new.kl_weight != candidate.kl_weight


def test_this_machines_dead_are_known_at_once(tmp_path: Path) -> None:
    found = opened(tmp_path, having(trials=1))
    candidate = abandoned(found, f"{workers.machine()}:{tmp_path / 'no lock here'}")
    (again,) = found.ask(1)
    assert again.kl_weight == candidate.kl_weight
    assert states(found) == ["FAIL", "RUNNING"]


def test_a_living_process_keeps_its_trials(tmp_path: Path) -> None:
    found = opened(tmp_path, having(trials=1))
    with found.at_work():
        assert len(found.ask(1)) == 1
        other = opened(tmp_path, having(trials=1))
        with other.at_work():
            assert other.ask(1) == []
            outlive(found, storage.GRACE_SECONDS + 30)  # it slept, as a laptop does
            assert other.ask(1) == []
        assert states(found) == ["RUNNING"]


def test_a_trial_that_was_taken_over_is_no_longer_ours_to_tell(tmp_path: Path) -> None:
    found = opened(tmp_path, having(trials=1, epochs=1))
    slept = abandoned(found, "elsewhere:lock")
    outlive(found, storage.GRACE_SECONDS + 30)
    (heir,) = found.ask(1)
    slept.figures = heir.figures = {"validation/fitted/frechet": 1.0}
    found.report(slept)
    found.tell(slept, "COMPLETE")
    found.put_back([slept], KeyboardInterrupt())
    assert states(found) == ["FAIL", "RUNNING"]
    found.tell(heir, "COMPLETE")
    assert states(found) == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_an_interruption_right_after_telling_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(tmp_path, having(trials=3, population=3, epochs=1))
    tell = found.tell

    def told_and_cut_off(*arguments: Any) -> None:
        tell(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(found, "tell", told_and_cut_off)
    with pytest.raises(KeyboardInterrupt):
        list(events(found))
    assert sorted(states(found)) == ["COMPLETE", "FAIL", "FAIL", "WAITING", "WAITING"]
    again = brought(tmp_path, having(trials=3, population=3, epochs=1))
    assert again.done() == 3
    assert "RUNNING" not in states(again)
    assert not list((tmp_path / ".workers").iterdir())


@pytest.mark.slow
def test_what_fails_of_itself_is_tried_twice_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = having(trials=2, population=2, epochs=1, pruner="none")
    with monkeypatch.context() as broken:
        broken.setattr(searching, "_measure", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                list(events(opened(tmp_path, setting)))
    found = opened(tmp_path, setting)
    first, second = (trial.params["kl_weight"] for trial in found.trials()[:2])
    assert "RUNNING" not in states(found)
    assert [trial.params["kl_weight"] for trial in found.trials()].count(first) == 2
    assert brought(tmp_path, setting).done() == 2
    assert first != second


def test_a_candidate_beyond_measuring_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Evaluator.samples, []

    def beyond(self: Evaluator, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        figures = measure(self, *arguments)
        return figures | {"frechet": math.nan} if len(calls) == 1 else figures

    monkeypatch.setattr(Evaluator, "samples", beyond)
    found = brought(tmp_path, having(trials=3, population=3, epochs=1))
    assert found.table()["state"].tolist() == ["DIVERGED", "COMPLETE", "COMPLETE"]


def test_a_study_whose_maker_died_at_once_is_made_whole(tmp_path: Path) -> None:
    opened(tmp_path)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute("DELETE FROM study_user_attributes")
    assert opened(tmp_path).note("fingerprint") == SETTING.fingerprint()


@pytest.mark.slow
def test_whoever_finds_nothing_left_to_ask_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = having(trials=1, epochs=1)
    busy, waiting = opened(tmp_path, setting), opened(tmp_path, setting)
    waits: list[float] = []
    with busy.at_work():
        (candidate,) = busy.ask(1)
        candidate.figures["validation/fitted/frechet"] = 1.0

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            busy.tell(candidate, "COMPLETE")

        monkeypatch.setattr(time, "sleep", sleep)
        assert list(events(waiting)) == []
    assert waits == [searching.WAIT_SECONDS]


def test_hearts_beat_while_a_population_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    found = opened(tmp_path, having(trials=2, epochs=1))
    beats: list[int] = []
    monkeypatch.setattr(found.database, "record_heartbeat", beats.append)
    with found.at_work():
        candidates = found.ask(2)
        first = len(beats)
        time.sleep(0.2)
        assert {candidate.trial._trial_id for candidate in candidates} <= set(beats[first:])
        found.put_back(candidates, KeyboardInterrupt())
        time.sleep(0.05)
        count = len(beats)
        time.sleep(0.1)
        assert len(beats) == count


# Choosing


def all_diverged(folder: Path) -> Study:
    found = opened(folder, having(trials=1))
    with found.at_work():
        (candidate,) = found.ask(1)
        found.tell(candidate, "FAIL", "diverged")
    return found


def test_what_cannot_be_chosen_is_named(finished: tuple[Study, list[Event]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no complete trial yet: run `cvae tune`"):
        opened(tmp_path).choose()
    with pytest.raises(UserError, match=r"all trials of study .* diverged: set a lower train.learning_rate"):
        all_diverged(tmp_path / "sick").choose()
    found, _ = finished
    with pytest.raises(UserError, match=r"has no trial 17: `cvae study` lists"):
        found.choose(17)
    pruned = states(found).index("PRUNED")
    with pytest.raises(UserError, match=f"trial {pruned} of study .* was pruned: only a complete one can be chosen"):
        found.choose(pruned)


def test_of_a_front_the_one_nearest_to_its_ideal_corner_is_chosen(tmp_path: Path) -> None:
    found = opened(tmp_path, having(objectives=("reconstruction", "diversity")))
    rule = found.setting.space()
    for weight, values in zip([1.0, 2.0, 3.0, 4.0], [(10, 0.1), (11, 0.9), (20, 1.0), (21, 0.2)], strict=True):
        trial = optuna.create_trial(params={"kl_weight": weight}, distributions=rule, values=list(values))
        found.inner.add_trial(trial)
    assert [trial.number for trial in found.front()] == [0, 1, 2]
    assert found.choose().number == 1


# Databases that can't be used


def test_the_database_is_the_users_own_file(tmp_path: Path) -> None:
    inside = tmp_path / ".dvc/tmp/exps/standalone/tmpab12"
    inside.mkdir(parents=True)
    assert storage.storage_url(inside, {}) == f"sqlite:///{tmp_path.resolve() / 'optuna.db'}"
    open_study(SETTING, inside, create=True)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://user:secret@host/db", "postgresql+psycopg://user:secret@host/db"),
        ("postgres://host/db", "postgresql+psycopg://host/db"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        ("postgresql://u:a/{b}@host/db?sslmode=require", "postgresql+psycopg://u:a%2F%7Bb%7D@host/db?sslmode=require"),
        ("postgresql://u@/db?host=/run/pg", "postgresql+psycopg://u@/db?host=%2Frun%2Fpg"),
        ("sqlite:////abs/o.db", "sqlite:////abs/o.db"),
    ],
)
def test_optunadatabase_names_another_database(given: str, used: str) -> None:
    assert storage.storage_url(Path(), {"OPTUNA_STORAGE": given}) == used


def mlflows(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE experiments (name TEXT)")
    return f"sqlite:///{path}"


def rubbish(path: Path) -> str:
    path.write_text("no database" * 100)
    return f"sqlite:///{path}"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (mlflows, "is MLflow's database: Optuna needs one of its own, see OPTUNA_STORAGE"),
        (rubbish, "can't be used .*file is not a database"),
        (lambda _: "postgresql://127.0.0.1:9/db?password=secret", "postgresql.psycopg://127.0.0.1:9/db can't be used"),
        (
            lambda _: "mysql://me:secret@host/db",
            "OPTUNA_STORAGE mysql://host/db is not sqlite:///FILE or",
        ),
        (
            lambda _: "postgresql://me:secret@host:x/db",
            "OPTUNA_STORAGE postgresql://host:x/db is not sqlite:///",
        ),
        (lambda _: "postgresql://me:a@secret@host/db", "OPTUNA_STORAGE postgresql://host/db: write an @ in .* as %40"),
        (lambda _: "postgresql://me:secret@127.0.0.1:9/db", "postgresql.psycopg://127.0.0.1:9/db can't be used"),
        (lambda path: f"sqlite:///{path}/no/such/file/x.db", "can't be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    storage: Callable[[Path], str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "o.db"
    url = storage(path)
    if not path.exists():
        path.write_text("")  # a file where a folder would have to be
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        open_study(SETTING, tmp_path, create=True, environment={"OPTUNA_STORAGE": url})
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [path for path in sorted(tmp_path.iterdir()) if path.suffix != ".lock"] == before


@pytest.mark.slow
def test_a_server_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 2)  # the least that libpq knows
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(UserError, match=r"can't be used .*timeout"):
            open_study(SETTING, tmp_path, create=True, environment={"OPTUNA_STORAGE": url})


def test_where_there_is_no_study_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no study in .* yet: run `cvae tune`"):
        open_study(SETTING, tmp_path, create=False)
    assert not list(tmp_path.iterdir())
    opened(tmp_path)
    with pytest.raises(UserError, match=r"there is no study kl-weight-\w+ yet .*run `cvae tune`"):
        open_study(having(epochs=9), tmp_path, create=False)


def test_a_study_of_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, having(study="mine"))
    opened(tmp_path, having(study="mine", trials=99))
    with pytest.raises(UserError, match="the study 'mine' has another space, other data or another model"):
        opened(tmp_path, having(study="mine", kl_weight=(0.5, 2.0)))

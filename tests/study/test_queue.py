"""Trials in a queue: interrupted, killed, shared between processes, retried, and never lost."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
from drills import Zygote
from studies import SETTING, abandoned, events, finished, having, opened, program, refused, results, states

from pipeline.study import queue, search, storage
from pipeline.study.search import Began, Ended, Epoch

ONE = having(trials=1, epochs=1)


def outlive(folder: Path) -> None:
    """Makes every heartbeat so old that the trials of the studies in `folder` are taken for dead."""
    with closing(sqlite3.connect(folder / "optuna.db")) as database, database:
        seconds = f"-{storage.GRACE_SECONDS + 30} seconds"
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)", (seconds,))


@pytest.mark.slow
def test_an_interrupted_search_ends_cleanly_and_continues_in_its_runs(tmp_path: Path) -> None:
    setting = having(trials=6, population=3, epochs=2)
    found = opened(tmp_path, setting)
    with pytest.raises(KeyboardInterrupt), closing(events(found)) as stream:  # noqa: PT012
        for event in stream:
            if isinstance(event, Began):
                event.candidate.remember_run("key", f"run {event.candidate.trial.number}", "uri")
            if isinstance(event, Ended):
                stream.throw(KeyboardInterrupt())
    told = results(found)
    assert told
    assert states(found).count("WAITING") == 3 - len(told)
    assert "RUNNING" not in states(found)
    again = opened(tmp_path, setting)
    runs = [event.candidate.trial.user_attrs.get("run_id") for event in events(again) if isinstance(event, Began)]
    assert [run for run in runs if run] == [f"run {number}" for number in range(3) if number not in told]
    assert again.done() == again.table()["kl_weight"].nunique() == 6


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tmp_path", "database", "proxied"])  # SQLite, PostgreSQL, Optuna's proxy
def test_several_processes_share_one_new_study(
    place: str, request: pytest.FixtureRequest, zygote: Zygote, tmp_path: Path
) -> None:
    request.getfixturevalue(place)
    processes = [program(zygote, tmp_path, trials=5, population=2, epochs=1) for _ in range(3)]
    with ThreadPoolExecutor() as pool:  # none may wait for its lines while another waits for its trials
        outputs = list(pool.map(lambda process: process.communicate("go on\n" * 50, timeout=600), processes))
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    found = opened(tmp_path, having(trials=5, epochs=1))
    assert found.done() == len(found.trials()) == found.table()["kl_weight"].nunique() == 5
    assert list(events(found)) == []


def test_a_trial_of_another_machine_is_left_alone_while_its_heart_beats_and_retried(tmp_path: Path) -> None:
    found = opened(tmp_path, ONE)
    weight = abandoned(found).trial.params["kl_weight"]
    assert found.ask(1) == []
    outlive(tmp_path)
    again = abandoned(found)
    assert again.trial.params["kl_weight"] == weight
    assert states(found) == ["FAIL", "RUNNING"]
    for _ in range(queue.MOST_RETRIES - 1):  # people ask about this weight
        outlive(tmp_path)
        assert abandoned(found).trial.params["kl_weight"] == weight
    outlive(tmp_path)
    (new,) = found.ask(1)
    assert new.trial.params["kl_weight"] != weight


def test_on_this_machine_a_dead_process_is_known_at_once_and_a_living_one_keeps_its_trials(tmp_path: Path) -> None:
    found, other = opened(tmp_path, ONE), opened(tmp_path, ONE)
    dead = abandoned(found, storage.worker(tmp_path / "no lock here"))
    with found.at_work():
        (again,) = found.ask(1)
        assert again.trial.params == dead.trial.params
        outlive(tmp_path)  # this machine slept
        assert other.ask(1) == []
        assert states(found) == ["FAIL", "RUNNING"]


def test_a_container_does_not_take_those_in_others_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "project/lock"
    path.parent.mkdir()
    name = storage.worker(path)
    assert storage.is_dead(name)
    path.parent.rename(tmp_path / "project of another container")
    assert storage.is_dead(name) is None
    path.parent.mkdir()
    assert storage.is_dead(name) is None


def test_a_trial_that_another_process_took_over_is_told_once(tmp_path: Path) -> None:
    found, other = opened(tmp_path, ONE), opened(tmp_path, ONE)
    slept = abandoned(found)
    outlive(tmp_path)
    (heir,) = other.ask(1)
    slept.keep(0, {"validation/fitted/frechet": 2.0})
    heir.keep(0, {"validation/fitted/frechet": 1.0})
    slept.remember_run("key", "run", "uri")
    found.keep_strip(slept, np.zeros((2, 2), np.uint8))
    found.put_back(KeyboardInterrupt())
    found.tell(slept, "COMPLETE")
    assert states(found) == ["FAIL", "RUNNING"]
    other.tell(heir, "COMPLETE")
    assert states(found) == ["FAIL", "COMPLETE"]
    assert found.seeds()["validation/fitted/frechet"].tolist() == [1.0]


def test_finished_seeds_of_a_killed_trial_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "undecided", lambda seeds, _: set(seeds["trial"]))  # each has all three seeds
    setting = having(trials=2, epochs=1, seeds=3)
    alone = finished(tmp_path / "alone", setting)
    found = opened(tmp_path / "killed", setting)
    stream = events(found)
    for event in stream:
        if isinstance(event, Epoch) and event.seed == 1 and event.candidate.trial.number == 1:
            break
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    again = opened(tmp_path / "killed", setting)
    seen = list(events(again))
    assert [event.seed for event in seen if isinstance(event, Epoch)] == [2, 2]
    assert list(results(again).values()) == [pytest.approx(values) for values in results(alone).values()]
    assert all(again.strip(number) is not None for number in results(again))  # of the first try's first seed


def test_a_trial_with_an_error_of_its_own_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = having(trials=2, population=2, epochs=1)
    with monkeypatch.context() as broken:
        broken.setattr(search, "_measure", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                list(events(opened(tmp_path, setting)))
    weights = [trial.params["kl_weight"] for trial in opened(tmp_path, setting).trials()]
    assert weights.count(weights[0]) == 2
    assert "RUNNING" not in states(opened(tmp_path, setting))
    assert finished(tmp_path, setting).done() == 2


def test_a_process_without_trials_waits_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, waiting = opened(tmp_path, ONE), opened(tmp_path, ONE)
    with busy.at_work():
        (candidate,) = busy.ask(1)
        candidate.keep(0, {"validation/fitted/frechet": 1.0})
        monkeypatch.setattr(search, "time", SimpleNamespace(sleep=lambda _: busy.tell(candidate, "COMPLETE")))
        assert list(events(waiting)) == []
    assert states(waiting) == ["COMPLETE"]


def test_hearts_beat_only_while_trials_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    found, beats = opened(tmp_path, having(trials=2, epochs=1)), SimpleQueue[int]()

    def beat(trial: int) -> None:
        if threading.current_thread() is not threading.main_thread():  # which asks
            beats.put(trial)

    def heard(expected: set[int]) -> set[int]:
        """The trials that have beaten when all that are expected have."""
        seen = set[int]()
        while not seen >= expected:
            seen.add(beats.get(timeout=60))
        return seen

    monkeypatch.setattr(found.database, "record_heartbeat", beat)
    with found.at_work():
        first = {candidate.trial._trial_id for candidate in found.ask(2)}
        assert heard(first) == first
        found.put_back(KeyboardInterrupt())
        second = {candidate.trial._trial_id for candidate in found.ask(2)}
        while beats.get(timeout=60) in first:  # until its present round ends
            pass
        assert heard(second) == second


def test_a_locked_file_is_one_line_and_loses_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.1)
    found = opened(tmp_path, having(trials=2, population=1))
    stream = events(found)
    candidate = next(event.candidate for event in stream if isinstance(event, Epoch))
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert found.done() == 0  # reading waits for nobody
        with refused(r"optuna.db can't be used \(database is locked\)"):
            candidate.remember_run("key", "run", "uri")
    stream.close()
    assert states(found) == ["FAIL", "WAITING"]


def test_a_study_whose_maker_was_killed_at_once_is_made_whole(tmp_path: Path) -> None:
    opened(tmp_path)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute("DELETE FROM study_user_attributes")
    assert opened(tmp_path).inner.user_attrs["fingerprint"] == SETTING.fingerprint()

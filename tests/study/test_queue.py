"""Trials in a queue: interrupted, killed, shared between processes, retried, and never lost."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from studies import SETTING, abandoned, events, finished, having, opened, program, states, until

from pipeline.base.errors import UserError
from pipeline.base.paths import WORKERS
from pipeline.study import search, storage
from pipeline.study.queue import Study, counts
from pipeline.study.search import Began, Ended, Epoch

ONE = having(trials=1, epochs=1)


def outlive(folder: Path) -> None:
    """Moves every heartbeat of the studies in `folder` so far into the past that their trials are taken for dead."""
    with closing(sqlite3.connect(folder / "optuna.db")) as database, database:
        seconds = f"-{storage.GRACE_SECONDS + 30} seconds"
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)", (seconds,))


def results(found: Study) -> dict[int, list[float]]:
    return {trial.number: trial.values for trial in found.trials() if counts(trial)}


@pytest.mark.slow
def test_an_interrupted_search_ends_cleanly_and_continues_in_its_runs(tmp_path: Path) -> None:
    setting = having(trials=6, population=3, epochs=2)
    found = opened(tmp_path, setting)
    stream = events(found)
    for event in stream:
        if isinstance(event, Began):
            event.candidate.remember_run(f"run {event.candidate.trial.number}", "uri")
        if isinstance(event, Ended):
            with pytest.raises(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt())
            break
    told = results(found)
    assert told
    assert states(found).count("WAITING") == 3 - len(told)
    assert "RUNNING" not in states(found)

    again = opened(tmp_path, setting)
    runs = [event.candidate.trial.user_attrs.get("run_id") for event in events(again) if isinstance(event, Began)]
    assert [run for run in runs if run] == [f"run {number}" for number in range(3) if number not in told]
    assert again.done() == again.table()["kl_weight"].nunique() == 6


@pytest.mark.slow
@pytest.mark.usefixtures("either")
def test_a_killed_study_continues_and_its_count_ends_exact(tmp_path: Path) -> None:
    with program(tmp_path, trials=6, population=2, epochs=2) as process:
        until(process, "epoch 3 ")  # the second batch: some trials are done, some are in training
        process.kill()
    before = opened(tmp_path, having(trials=6, population=2, epochs=2))
    known = results(before)
    assert known
    assert "RUNNING" in states(before)
    after = finished(tmp_path, before.setting)
    assert after.done() == 6
    assert not {"RUNNING", "WAITING"} & set(states(after))
    assert known.items() <= results(after).items()
    assert not list((tmp_path / WORKERS).iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("either")
def test_several_processes_share_one_new_study(tmp_path: Path) -> None:
    processes = [program(tmp_path, trials=6, population=2, epochs=1) for _ in range(3)]
    for process in processes:  # none of them may wait for its line while another waits for its trials
        assert process.stdin is not None
        process.stdin.write("go on\n" * 50)
        process.stdin.flush()
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    found = opened(tmp_path, having(trials=6, epochs=1))
    assert found.done() == len(found.trials()) == found.table()["kl_weight"].nunique() == 6


def test_a_trial_of_another_machine_is_left_alone_while_its_heart_beats_and_retried_once(tmp_path: Path) -> None:
    found = opened(tmp_path, ONE)
    weight = abandoned(found).trial.params["kl_weight"]
    assert found.ask(1) == []
    outlive(tmp_path)
    again = abandoned(found)
    assert again.trial.params["kl_weight"] == weight
    assert states(found) == ["FAIL", "RUNNING"]
    outlive(tmp_path)
    (new,) = found.ask(1)
    assert new.trial.params["kl_weight"] != weight


def test_on_this_machine_a_dead_process_is_known_at_once_and_a_living_one_keeps_its_trials(tmp_path: Path) -> None:
    found, other = opened(tmp_path, ONE), opened(tmp_path, ONE)
    dead = abandoned(found, f"{storage.machine()}:{tmp_path / 'no lock here'}")
    with found.at_work():
        (again,) = found.ask(1)
        assert again.trial.params == dead.trial.params
        outlive(tmp_path)  # this machine slept
        assert other.ask(1) == []
        assert states(found) == ["FAIL", "RUNNING"]


def test_a_trial_that_another_process_took_over_is_told_once(tmp_path: Path) -> None:
    found, other = opened(tmp_path, ONE), opened(tmp_path, ONE)
    slept = abandoned(found)
    outlive(tmp_path)
    (heir,) = other.ask(1)
    slept.figures = heir.figures = {"validation/fitted/frechet": 1.0, "validation/kl": float("inf")}
    slept.remember_run("run", "uri")
    found.report(slept)
    found.keep_strip(slept, np.zeros((2, 2), np.uint8))
    found.put_back(KeyboardInterrupt())
    found.tell(slept, "COMPLETE")
    assert states(found) == ["FAIL", "RUNNING"]
    other.tell(heir, "COMPLETE")
    assert states(found) == ["FAIL", "COMPLETE"]
    assert found.trials()[1].user_attrs["figures"] == {"validation/fitted/frechet": 1.0}  # only finite ones


def test_a_trial_with_an_error_of_its_own_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = having(trials=2, population=2, epochs=1, pruner="none")
    with monkeypatch.context() as broken:
        broken.setattr(search, "_measure", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                list(events(opened(tmp_path, setting)))
    weights = [trial.params["kl_weight"] for trial in opened(tmp_path, setting).trials()]
    assert weights.count(weights[0]) == 2
    assert "RUNNING" not in states(opened(tmp_path, setting))
    assert finished(tmp_path, setting).done() == 2


def test_a_process_with_nothing_to_ask_for_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, waiting = opened(tmp_path, ONE), opened(tmp_path, ONE)
    with busy.at_work():
        (candidate,) = busy.ask(1)
        candidate.figures["validation/fitted/frechet"] = 1.0
        monkeypatch.setattr(time, "sleep", lambda _: busy.tell(candidate, "COMPLETE"))
        assert list(events(waiting)) == []
    assert states(waiting) == ["COMPLETE"]


def test_hearts_beat_only_while_trials_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    found = opened(tmp_path, having(trials=2, epochs=1))
    beats: list[int] = []
    monkeypatch.setattr(found.database, "record_heartbeat", beats.append)
    with found.at_work():
        candidates = found.ask(2)
        first = len(beats)
        time.sleep(0.2)
        assert {candidate.trial._trial_id for candidate in candidates} <= set(beats[first:])
        found.put_back(KeyboardInterrupt())
        time.sleep(0.05)
        count = len(beats)
        time.sleep(0.1)
        assert len(beats) == count


def test_a_locked_file_is_one_line_and_the_trial_returns_to_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.1)
    found = opened(tmp_path, having(trials=2, population=1))
    stream = events(found)
    candidate = next(event.candidate for event in stream if isinstance(event, Epoch))
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert found.done() == 0  # reading waits for nobody
        with pytest.raises(UserError, match=r"optuna.db can't be used \(database is locked\)"):
            candidate.remember_run("run", "uri")
    stream.close()
    assert states(found) == ["FAIL", "WAITING"]


def test_a_study_whose_maker_was_killed_at_once_is_made_whole(tmp_path: Path) -> None:
    opened(tmp_path)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute("DELETE FROM study_user_attributes")
    assert opened(tmp_path).inner.user_attrs["fingerprint"] == SETTING.fingerprint()

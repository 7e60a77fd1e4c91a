"""The search on a Dask cluster: the same figures as in one process, whoever dies."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bands import JUDGES
from imports import ROOT
from studies import TRAIN, VALIDATION, having, opened, refused, results, states
from studies import events as alone

from pipeline.measure.evaluator import Evaluator
from pipeline.study import cluster
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event

pytestmark = pytest.mark.slow
WEIGHTS = (0.02, 0.1, 0.5, 1.0, 4.0, 20.0)
Process = Any  # subprocess.Popen[str]


def program(*words: str) -> "subprocess.Popen[str]":
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/study"))
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def running(workers: int, *options: str) -> Iterator[tuple[str, Process, list[Process]]]:
    """The address of a scheduler, the scheduler and its workers, each a process that nobody starts again."""
    started = [program("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    try:
        assert started[0].stderr is not None
        address = next(found[0] for line in started[0].stderr if (found := re.search(r"tcp://[\d.:]+", line)))
        words = ("--no-nanny", "--nthreads", "1", "--no-dashboard", *options)
        started += [program("dask_worker", address, *words) for _ in range(workers)]
        yield address, started[0], started[1:]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def events(found: Study, address: str) -> Iterator[Event]:
    evaluator = Evaluator(JUDGES, VALIDATION, TRAIN, found.setting.aim.pixels, 0)
    return cluster.search(found, TRAIN, evaluator, address)


def asked(folder: Path, **changes: Any) -> Study:
    """A study of six weights in populations of two."""
    found = opened(folder, having(trials=6, population=2, **changes))
    for weight in WEIGHTS:
        found.inner.enqueue_trial({"kl_weight": weight})
    return found


def figures(found: Study) -> pd.DataFrame:
    return found.seeds().sort_values(["kl_weight", "seed"]).drop(columns="trial").reset_index(drop=True)


def test_a_study_on_four_workers_of_which_two_are_killed_is_the_one_of_one_process(tmp_path: Path) -> None:
    here = asked(tmp_path / "here")
    assert [event for event in alone(here) if isinstance(event, Ended)]
    there, seen = asked(tmp_path / "there"), []
    with running(4, "--resources", "GPU=1") as (address, _, workers):
        for event in events(there, address):
            seen.append(event)
            if isinstance(event, Began) and event.candidate.trial.number in (1, 3):  # its population waits or trains
                workers[event.candidate.trial.number // 2].send_signal(signal.SIGKILL)
    pd.testing.assert_frame_equal(figures(there), figures(here))
    assert results(there) == results(here)
    assert states(there) == ["COMPLETE"] * 6
    for kind in (Began, Ended):
        assert sorted(event.candidate.trial.number for event in seen if isinstance(event, kind)) == list(range(6))
    epochs = [(e.candidate.trial.number, e.seed, e.record.epoch) for e in seen if isinstance(e, Epoch)]
    assert len(epochs) == len(set(epochs)) == 4 * len(here.seeds())
    assert all(there.strip(number) is not None for number in range(6))


def test_a_cluster_that_is_not_there_or_goes_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    found = asked(tmp_path)
    with refused("no Dask scheduler answers at tcp://127.0.0.1:9 .*: start `dask scheduler` there"):
        list(events(found, "tcp://127.0.0.1:9"))
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 60)
    with running(1) as (address, scheduler, _), refused("the Dask scheduler went away: start it again"):
        for event in events(found, address):
            if isinstance(event, Began):
                scheduler.kill()
    assert "RUNNING" not in states(found)

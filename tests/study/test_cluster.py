"""The search on a Dask cluster: the same figures as in one process, whoever dies."""

import re
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import distributed
import pandas as pd
import pytest
from bands import JUDGES
from drills import Zygote
from studies import TRAIN, VALIDATION, having, opened, refused, results, states
from studies import events as alone
from waiting import until

from pipeline.measure.evaluator import Evaluator
from pipeline.study import cluster, search
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event

pytestmark = pytest.mark.slow
WEIGHTS = (0.02, 0.1, 0.5, 1.0, 4.0, 20.0)
Process = Any  # subprocess.Popen[bytes]


@contextmanager
def running(zygote: Zygote, folder: Path, workers: int, *options: str) -> Iterator[tuple[str, Process, list[Process]]]:
    """The address of a scheduler, the scheduler and its workers, each a process that nobody starts again."""
    said = folder / "said"
    with said.open("w") as log:  # a pipe that nobody reads would hold them up

        def program(name: str, *words: str) -> Process:
            command = [str(zygote.programs / "python"), "-m", f"distributed.cli.{name}", *words, "--no-dashboard"]
            environment = zygote.environment() | {"TMPDIR": str(folder)}
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        started = [program("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
        try:
            while not (address := re.search(r"tcp://[\d.:]+\d\n", said.read_text())):
                assert started[0].poll() is None, said.read_text()
                time.sleep(0.05)
            words = ("--no-nanny", "--nthreads", "1", *options)
            started += [program("dask_worker", address[0].strip(), *words) for _ in range(workers)]
            yield address[0].strip(), started[0], started[1:]
        finally:
            for process in started:
                process.kill()
                process.wait()


def events(found: Study, address: str) -> Generator[Event, None, None]:
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


def test_a_study_on_four_workers_of_which_two_are_killed_is_the_one_of_one_process(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or what gets a second seed could depend on which population ended first
    monkeypatch.setattr(search, "undecided", lambda seeds, _: set(seeds["trial"]))
    here = asked(tmp_path / "here")
    assert [event for event in alone(here) if isinstance(event, Ended)]
    there, seen = asked(tmp_path / "there"), []
    with running(zygote, tmp_path, 4, "--resources", "GPU=1") as (address, _, workers):
        for event in events(there, address):
            seen.append(event)
            if isinstance(event, Began) and event.candidate.trial.number in (1, 3):  # its population waits or trains
                workers[event.candidate.trial.number // 2].kill()
    pd.testing.assert_frame_equal(figures(there), figures(here))
    assert results(there) == results(here)
    assert states(there) == ["COMPLETE"] * 6
    for kind in (Began, Ended):
        assert sorted(event.candidate.trial.number for event in seen if isinstance(event, kind)) == list(range(6))
    epochs = [(e.candidate.trial.number, e.seed, e.record.epoch) for e in seen if isinstance(e, Epoch)]
    assert len(epochs) == len(set(epochs)) == 4 * len(here.seeds())
    assert all(there.strip(number) is not None for number in range(6))


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with refused("no Dask scheduler answers at tcp://127.0.0.1:9 .*: start `dask scheduler` there"):
        list(events(asked(tmp_path), "tcp://127.0.0.1:9"))


@pytest.mark.parametrize("is_noticed", [False, True])  # before the client has more to send
def test_a_cluster_that_goes_away_is_one_line(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noticed: bool
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 120)
    found = asked(tmp_path)
    with running(zygote, tmp_path, 1) as (address, scheduler, _), closing(events(found, address)) as stream:
        assert isinstance(next(stream), Began)
        client = distributed.default_client()
        client._timeout = 1  # that it looks for the scheduler again
        scheduler.kill()
        if is_noticed:
            until(lambda: client.status == "closed")
        with refused("the Dask scheduler went away: start it again"):
            list(stream)
    assert "RUNNING" not in states(found)

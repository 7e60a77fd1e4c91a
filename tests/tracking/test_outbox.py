"""Nothing is lost while the store is slow or down, and no training waits for it."""

import errno
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from stores import client, forget, history, kept

from pipeline.tracking import journal, outbox, package, runs, server
from pipeline.tracking.journal import Journal
from pipeline.tracking.local import connect


def test_a_refused_record_is_reported_and_delays_no_other(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", params={"epochs": 1}, root=root) as run:
        run.params({"epochs": 2})
        run.metrics({"kl": 1.0}, step=1)
    assert history(run, "kl") == [(1, 1.0)]
    assert kept(run).info.status == "FINISHED"
    assert ["refused" in warning for warning in warnings] == [True]


def test_asking_whether_a_database_is_locked_makes_none(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/mlflow.db"
    assert not outbox._is_locked(address)
    assert not (tmp_path / "mlflow.db").exists()
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert outbox._is_locked(address)
    assert not outbox._is_locked(address)


def test_a_store_that_hangs_ends_no_run_late(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    with runs.start("train", "e", root=root) as run:
        monkeypatch.setattr(client(run), "log_batch", lambda *_given, **_named: hanging.wait(60))
        monkeypatch.setattr(outbox, "LOCAL_PATIENCE", 0.2)
        run.metrics({"kl": 1.0}, step=1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert ["2 records wait" in warning and "cvae sync" in warning for warning in warnings] == [True]
    hanging.set()
    while run._outbox.flush():
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answers", "failures", "sent", "seconds"),
    [(0, 0, 0, 2), (0, 0, 1.5, 1), (3, 0, 0, 5), (3, 0, 1, 4), (3, 0, 9, 1), (3, 1, 0, 1)],
)
def test_the_end_waits_a_tenth_for_a_server_that_had_its_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, answers: int, failures: int, sent: float, seconds: float
) -> None:
    """A process of 10 s; the record was sent so many seconds ago, after so many answers and failures."""
    run = runs.start("train", "e", root=root)
    box = run._outbox
    run.end()
    box._is_local, box._attempts, box._failures = False, answers, failures
    box._began, box._sent = 90.0, 100.0 - sent
    monkeypatch.setattr(outbox, "time", Mock(monotonic=lambda: 100.0))
    assert box._patience() == seconds


def test_a_call_has_a_deadline_as_a_whole(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may answer by the drop, so that no timeout for each read ever ends."""
    hanging = threading.Event()
    monkeypatch.setattr(outbox, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "PAUSE_SECONDS", 0.1)
    with runs.start("train", "e", root=root) as run:
        run._outbox._is_local = False
        send = client(run).log_batch
        monkeypatch.setattr(client(run), "log_batch", lambda *_given, **_named: hanging.wait(60))
        run.metrics({"kl": 1.0}, step=1)
        while not warnings:
            time.sleep(0.05)
        monkeypatch.setattr(outbox, "CALL_SECONDS", 60)
        monkeypatch.setattr(run._outbox.client, "log_batch", send)
    hanging.set()
    assert history(run, "kl") == [(1, 1.0)]
    assert ["no answer in time" in warning for warning in warnings] == [True, False]


def killed(run: runs.Run) -> None:
    """Leaves a run as a process does that is killed."""
    run._journal.release()
    forget()


def outbox_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".cvae/outbox").iterdir())


def test_what_a_killed_process_could_not_send_is_sent_by_the_next(
    root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.start("train", "e", root=root)
    run.metrics({"kl": 1.0}, step=1)
    store, send = client(run), client(run).log_batch

    def lose_the_answer(*given: Any, **named: Any) -> None:
        send(*given, **named)
        raise ConnectionError("no answer")

    monkeypatch.setattr(store, "log_batch", lose_the_answer)
    run.metrics({"kl": 2.0}, step=2)
    while not warnings:
        time.sleep(0.05)
    for step in (3, 4):
        run.metrics({"kl": float(step)}, step)
    run.image("samples", np.zeros((28, 28), np.uint8), step=4)
    killed(run)
    assert len(outbox_files(root)) == 2  # the records, and the folder of the picture
    with (root / ".cvae/outbox" / outbox_files(root)[1]).open("a") as file:
        file.write('{"do": "metr')  # the kill came in the middle of a line

    with runs.start("other", "e", root=root) as other:
        pass
    assert history(run, "kl") == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert kept(run).info.status == "FAILED"  # and not RUNNING for ever
    assert len(client(other).list_artifacts(run.run_id, "images")) == 2  # the picture and its thumbnail
    assert kept(other).info.status == "FINISHED"
    assert outbox_files(root) == []


def test_a_run_that_another_process_went_on_with_stays_finished(root: Path) -> None:
    first = runs.start("trial", "e", root=root)
    first.wait_for_id()
    lost = Journal.new(root / ".cvae/outbox", first._journal.head)  # a third process had it, too, and was killed
    killed(first)
    with runs.start("trial", "e", key=first.key, root=root) as second:
        pass
    assert kept(second).info.status == "FINISHED"
    lost.release()
    with runs.start("other", "e", root=root):
        pass
    assert second.run_id == first.run_id
    assert kept(second).info.status == "FINISHED"
    assert outbox_files(root) == []


def test_a_run_of_a_living_process_is_left_alone(root: Path) -> None:
    run = runs.start("train", "e", root=root)
    (held,) = (name for name in outbox_files(root) if name.endswith(".jsonl"))
    assert Journal.adopt(root / ".cvae/outbox" / held) is None
    assert journal.waiting(root / ".cvae/outbox") == {}
    run.end()


@pytest.mark.parametrize("content", ["", "\0\0\n", "[]\n", "{}\n", '{"store": 1}\n', "null\n"])
def test_a_file_that_is_no_outbox_stops_nothing(root: Path, content: str) -> None:
    folder = root / ".cvae/outbox"
    folder.mkdir(parents=True)
    (folder / "x-1.jsonl").write_text(content)
    with runs.start("train", "e", root=root) as run:
        pass
    assert kept(run).info.status == "FINISHED"
    assert outbox_files(root) == (["x-1.jsonl"] if content else [])  # an empty one: its process was killed at once


def test_a_full_disk_leaves_no_half_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal.new(root, {"store": "s", "name": "r", "key": "k", "run_id": "", "ends": True})
    made.append({"do": "first"})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    made.append({"do": "second"})
    monkeypatch.setattr(os, "write", write)
    made.append({"do": "third"})
    made.sent(made.append({"do": "fourth"}), "r")
    assert not made.is_whole
    made.release()
    again = Journal.adopt(made.path)
    assert again is not None
    assert [record["do"] for record in again.waiting.values()] == ["first", "third"]


def test_a_database_that_is_deleted_during_a_run_is_reported_and_a_new_one_takes_the_rest(
    root: Path, warnings: list[str]
) -> None:
    with runs.start("train", "e", params={"epochs": 3}, root=root) as run:
        run.metrics({"kl": 1.0}, step=1)
        assert run._outbox.flush() == 0
        for suffix in ("", "-wal", "-shm"):
            (root / f"mlflow.db{suffix}").unlink(missing_ok=True)
        run.metrics({"kl": 2.0}, step=2)
    assert ["was deleted or replaced: what it held is lost" in warning for warning in warnings] == [True]
    forget()
    assert kept(run).info.status == "FINISHED"
    assert history(run, "kl") == [(2, 2.0)]
    assert outbox_files(root) == []


def test_an_artifact_that_cannot_be_written_holds_nothing_up(
    root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with runs.start("train", "e", root=root) as run:
        store, send = client(run), client(run).log_artifact
        monkeypatch.setattr(store, "log_artifact", full)
        run.artifact(root / "mlflow.db")
        run.metrics({"kl": 1.0}, step=1)
    assert history(run, "kl") == [(1, 1.0)]
    assert ["No space left" in warning for warning in warnings] == [True, False]
    monkeypatch.setattr(store, "log_artifact", send)
    assert run._outbox.flush() == 0
    assert [one.path for one in store.list_artifacts(run.run_id)] == ["mlflow.db"]
    assert outbox_files(root) == []


def test_a_model_and_a_run_stand_once_however_often_they_are_sent(root: Path, warnings: list[str]) -> None:
    (root / "w.safetensors").write_bytes(b"weights")
    with runs.start("train", "e", root=root) as run:
        run._goes_on = True
        for _ in range(2):
            run._put("open", experiment="e", tags={}, goes_on=False, at=1)
            run.metrics({"kl": 1.0}, step=1)
            run.image("samples", np.zeros((28, 28), np.uint8), step=1)
        store = client(run)
        pending = store.create_logged_model(
            kept(run).info.experiment_id, "model", run.run_id
        )  # its process was killed here
        for _ in range(2):
            run.model(root / "w.safetensors")
    assert len(store.search_runs([kept(run).info.experiment_id])) == 1
    assert history(run, "kl") == [(1, 1.0)]
    assert len(store.list_artifacts(run.run_id, "images")) == 2
    (model,) = store.search_logged_models([kept(run).info.experiment_id])
    assert (model.model_id, str(model.status)) == (pending.model_id, "READY")
    assert warnings == []


def test_an_unusable_store_ends_no_run(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "file/mlflow.db"
    path.parent.write_text("where a folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with runs.start("train", "e", wait=False, root=root) as run:
        assert run.wait_for_id() == ""
    assert [str(path) in warning and "\n" not in warning for warning in warnings] == [True] * 2


def test_an_interrupted_run_goes_on_by_its_key(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", root=root) as run:
        run.metrics({"kl": 1.0}, step=1)
    with runs.start("train", "e", key=run.key, wait=False, root=root) as again:
        again.metrics({"kl": 1.0}, step=1)  # as the checkpoint has it
        again.metrics({"kl": 2.0}, step=2)
        assert again.wait_for_id() == run.run_id
    assert history(run, "kl") == [(1, 1.0), (2, 2.0)]
    assert warnings == []
    with runs.start("train", "e", key="0" * 32, root=root) as other:
        pass
    assert other.run_id != run.run_id
    assert ["is no longer" in warning for warning in warnings] == [True]


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_comes_back(
    root: Path, database: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(database, root / "server.db")
    (root / "cvae.safetensors").write_bytes(b"weights")
    with socket.socket() as held:  # bound but not listening, it keeps the port from others while the server is down
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "kept")]
        monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")

        def serve() -> "subprocess.Popen[bytes]":
            with open(root / "server.log", "a") as log:
                started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            assert server.is_up(started, f"http://127.0.0.1:{port}")
            return started

        process = serve()
        try:
            with runs.start("study", "e", root=root) as run:
                run.metrics({"kl": 0.0}, step=0)
                run._outbox.flush()
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                began = time.monotonic()
                for step in range(1, 50):
                    run.metrics({"kl": float(step)}, step)
                run.model(root / "cvae.safetensors")
                with runs.start("trial", "e", wait=False, root=root) as trial:
                    trial.metrics({"kl": 1.0}, step=1)
                assert time.monotonic() - began < 10
                (root / "cvae.safetensors").write_bytes(b"others")
                process = serve()
            assert history(run, "kl") == [(step, float(step)) for step in range(50)]
            assert kept(run).info.status == kept(trial).info.status == "FINISHED"
            assert history(trial, "kl") == [(1, 1.0)]
            failing, recovered = warnings
            assert "fails" in failing
            assert "answers again" in recovered
            copy = package.download_model(f"runs:/{run.run_id}", root)
            assert (copy.name, copy.read_bytes()) == (f"{run.run_id}.safetensors", b"weights")
        finally:
            server.end(process)


@pytest.mark.parametrize("moment", ["after the first record", "before it connects", "while it connects"])
def test_a_folder_that_is_renamed_keeps_all_records_until_the_next_command(
    root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place, moved = root / "place", root / "moved"
    place.mkdir()
    shutil.copy(root / "mlflow.db", place)
    monkeypatch.chdir(place)
    connects, renamed = threading.Event(), threading.Event()

    def held(function: Callable[..., Any], *given: Any) -> Any:
        connects.set()
        renamed.wait(60)
        return function(*given)

    if moment == "before it connects":
        monkeypatch.setattr(outbox.Outbox, "_connect", lambda box, do=outbox.Outbox._connect: held(do, box))
    elif moment == "while it connects":
        monkeypatch.setattr(outbox, "connect", partial(held, connect))
    with runs.start("train", "e", wait=False) as run:
        if moment == "after the first record":
            run.wait_for_id()
        else:
            connects.wait(60)
        place.rename(moved)
        renamed.set()
        run.metrics({"kl": 1.0}, step=1)
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
    assert "cvae sync" in warnings[-1]
    assert place.exists() == (moment == "while it connects")
    forget()
    monkeypatch.chdir(moved)
    assert outbox.sync() > 0
    store = connect(f"sqlite:///{moved}/mlflow.db")
    (found,) = store.search_runs(["1"])
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"kl": 1.0})
    assert len(store.list_artifacts(found.info.run_id, "images")) == 2
    assert outbox_files(moved) == []

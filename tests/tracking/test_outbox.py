"""Nothing is lost while the store is slow or down, and no training waits for it."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from stores import client, deliver, forget, history, kept
from waiting import until

from pipeline.tracking import journal, outbox, runs
from pipeline.tracking.journal import OUTBOX, Journal
from pipeline.tracking.local import connect

pytestmark = pytest.mark.usefixtures("root")


def test_a_refused_record_is_reported_and_delays_no_other(warnings: list[str]) -> None:
    with runs.start("train", "e", params={"epochs": 1}) as run:
        run.params({"epochs": 2})
        run.metrics({"kl": 1.0}, step=1)
    assert history(run, "kl") == [(1, 1.0)]
    assert kept(run).info.status == "FINISHED"
    assert ["refused" in warning for warning in warnings] == [True]


def test_asking_whether_a_database_is_locked_makes_none(tmp_path: Path) -> None:
    assert not outbox._is_locked(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_store_that_hangs_ends_no_run_late(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    with runs.start("train", "e") as run:
        monkeypatch.setattr(client(run), "log_batch", lambda *_given, **_named: ended.wait(600))
        monkeypatch.setattr(outbox, "LOCAL_PATIENCE", 0.2)
        run.metrics({"kl": 1.0}, step=1)
    assert ["2 records wait" in warning and "cvae sync" in warning for warning in warnings] == [True]
    threading.Timer(0.1, ended.set).start()
    assert run._outbox.flush(patient=True) == 0  # who asks anew waits for the record that was given up


@pytest.mark.parametrize(
    ("answers", "failures", "sent", "seconds"),
    [(0, 0, 0, 2), (0, 0, 1.5, 1), (3, 0, 1, 4), (3, 0, 9, 1), (3, 1, 0, 1)],
)
def test_the_end_waits_a_tenth_for_a_server_that_had_its_time(
    monkeypatch: pytest.MonkeyPatch, answers: int, failures: int, sent: float, seconds: float
) -> None:
    """A process of 10 s; the record was sent so many seconds ago, after so many answers and failures."""
    monkeypatch.setattr(outbox, "FIRST_ANSWER", 2.0)
    monkeypatch.setattr(outbox, "NEXT_ANSWER", 5.0)
    monkeypatch.setattr(outbox, "time", Mock(monotonic=lambda: 100.0))
    box = Mock(_is_local=False, _attempts=answers, _failures=failures, _began=90.0, _sent=100.0 - sent)
    assert outbox.Outbox._patience(box) == seconds


def test_a_call_has_a_deadline_as_a_whole_and_what_arrived_is_not_sent_again(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may answer by the drop, so that no timeout for each read ever ends."""
    sent, ended = threading.Event(), threading.Event()
    with runs.start("train", "e") as run:
        store, send = client(run), client(run).log_image

        def hang(*given: Any, **named: Any) -> None:
            send(*given, **named)
            sent.set()
            ended.wait(600)

        run._outbox._is_local = False
        monkeypatch.setattr(outbox, "PAUSE_SECONDS", 600.0)
        monkeypatch.setattr(outbox, "CALL_SECONDS", 0.2)
        monkeypatch.setattr(store, "log_image", hang)
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
        until(lambda: warnings and sent.is_set())
        monkeypatch.setattr(outbox, "CALL_SECONDS", 600.0)
        ended.set()
        deliver(run)
    assert len(store.list_artifacts(run.run_id, "images")) == 2  # the picture and its thumbnail
    assert ["no answer in time" in warning for warning in warnings] == [True, False]


def killed(run: runs.Run) -> None:
    """Leaves a run as a process does that is killed."""
    with run._outbox._changed:
        run._journal.release()
        forget()


def outbox_files() -> list[str]:
    return sorted(path.name for path in OUTBOX.iterdir())


def test_what_a_killed_process_could_not_send_is_sent_by_the_next(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.start("train", "e")
    run.metrics({"kl": 1.0}, step=1)
    store, send = client(run), client(run).log_batch

    def lose_the_answer(*given: Any, **named: Any) -> None:
        send(*given, **named)
        raise ConnectionError("no answer")

    monkeypatch.setattr(store, "log_batch", lose_the_answer)
    monkeypatch.setattr(outbox, "PAUSE_SECONDS", 600.0)
    run.metrics({"kl": 2.0}, step=2)
    until(lambda: warnings)
    for step in (3, 4):
        run.metrics({"kl": float(step)}, step)
    run.image("samples", np.zeros((28, 28), np.uint8), step=4)
    killed(run)
    assert len(outbox_files()) == 2  # the records, and the folder of the picture
    with (OUTBOX / outbox_files()[1]).open("a") as file:
        file.write('{"do": "metr')  # the kill came in the middle of a line

    with runs.start("other", "e") as other:
        pass
    assert history(run, "kl") == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert kept(run).info.status == "FAILED"  # and not RUNNING for ever
    assert len(client(other).list_artifacts(run.run_id, "images")) == 2  # the picture and its thumbnail
    assert kept(other).info.status == "FINISHED"
    assert outbox_files() == []


def test_a_run_that_another_process_went_on_with_stays_finished() -> None:
    first = runs.start("trial", "e")
    first.wait_for_id()
    lost = Journal.new(OUTBOX, first._journal.head)  # a third process had it, too, and was killed
    killed(first)
    with runs.start("trial", "e", key=first.key) as second:
        pass
    assert kept(second).info.status == "FINISHED"
    lost.release()
    with runs.start("other", "e"):
        pass
    assert second.run_id == first.run_id
    assert kept(second).info.status == "FINISHED"
    assert outbox_files() == []


def test_a_run_of_a_living_process_is_left_alone() -> None:
    run = runs.start("train", "e")
    (held,) = (name for name in outbox_files() if name.endswith(".jsonl"))
    assert Journal.adopt(OUTBOX / held) is None
    assert journal.waiting() == {}
    run.end()


def test_a_file_that_is_no_outbox_stops_nothing() -> None:
    OUTBOX.mkdir(parents=True)
    for number, content in enumerate(("", "\0\0\n", "[]\n", "{}\n", '{"store": 1}\n', "null\n")):
        (OUTBOX / f"x-{number}.jsonl").write_text(content)
    with runs.start("train", "e") as run:
        pass
    assert kept(run).info.status == "FINISHED"
    assert outbox_files() == [f"x-{number}.jsonl" for number in range(1, 6)]  # of the empty one, nothing is lost


def test_a_full_disk_leaves_no_half_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal.new(root, {"store": "s", "name": "r", "key": "k", "run_id": "", "ends": True})
    made.append({"do": "first"})
    with monkeypatch.context() as patch:
        half = Mock(wraps=os, write=lambda descriptor, content: os.write(descriptor, content[:5]))
        patch.setattr(journal, "os", half)
        made.append({"do": "second"})
    made.append({"do": "third"})
    made.sent(made.append({"do": "fourth"}), "r")
    assert not made.is_whole
    made.release()
    again = Journal.adopt(made.path)
    assert again is not None
    assert [record["do"] for record in again.waiting.values()] == ["first", "third"]


def test_a_database_that_is_deleted_during_a_run_is_reported_and_a_new_one_takes_the_rest(warnings: list[str]) -> None:
    with runs.start("train", "e", params={"epochs": 3}) as run:
        run.metrics({"kl": 1.0}, step=1)
        assert run._outbox.flush() == 0
        for suffix in ("", "-wal", "-shm"):
            Path(f"mlflow.db{suffix}").unlink(missing_ok=True)
        run.metrics({"kl": 2.0}, step=2)
    assert ["was deleted or replaced: what it held is lost" in warning for warning in warnings] == [True]
    forget()
    assert kept(run).info.status == "FINISHED"
    assert history(run, "kl") == [(2, 2.0)]
    assert outbox_files() == []


def test_an_artifact_that_cannot_be_written_holds_nothing_up(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with runs.start("train", "e") as run:
        store, send = client(run), client(run).log_artifact
        monkeypatch.setattr(store, "log_artifact", full)
        run.artifact("mlflow.db")
        run.metrics({"kl": 1.0}, step=1)
        until(lambda: warnings)  # the end of the run tries it once more
    assert history(run, "kl") == [(1, 1.0)]
    assert ["No space left" in warning for warning in warnings] == [True, False]
    assert "1 record waits" in warnings[1]
    monkeypatch.setattr(store, "log_artifact", send)
    assert run._outbox.flush() == 0
    assert [one.path for one in store.list_artifacts(run.run_id)] == ["mlflow.db"]
    assert outbox_files() == []


def test_a_model_and_a_run_stand_once_however_often_they_are_sent(warnings: list[str]) -> None:
    Path("w.safetensors").write_bytes(b"weights")
    with runs.start("train", "e") as run:
        run._goes_on = True
        for _ in range(2):
            run._put("open", experiment="e", tags={}, goes_on=False)
            run.metrics({"kl": 1.0}, step=1)
            run.image("samples", np.zeros((28, 28), np.uint8), step=1)
        store, experiment = client(run), kept(run).info.experiment_id
        pending = store.create_logged_model(experiment, "model", run.run_id)  # its process was killed here
        for _ in range(2):
            run.model("w.safetensors")
    assert len(store.search_runs([experiment])) == 1
    assert history(run, "kl") == [(1, 1.0)]
    assert len(store.list_artifacts(run.run_id, "images")) == 2
    (model,) = store.search_logged_models([experiment])
    assert (model.model_id, str(model.status)) == (pending.model_id, "READY")
    assert warnings == []


def test_an_unusable_store_ends_no_run(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "file/mlflow.db"
    path.parent.write_text("where a folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with runs.start("train", "e", wait=False) as run:
        assert run.wait_for_id() == ""
    assert [str(path) in warning and "\n" not in warning for warning in warnings] == [True] * 2


def test_an_interrupted_run_goes_on_by_its_key(warnings: list[str]) -> None:
    with runs.start("train", "e") as run:
        run.metrics({"kl": 1.0}, step=1)
    with runs.start("train", "e", key=run.key, wait=False) as again:
        again.metrics({"kl": 1.0}, step=1)  # as the checkpoint has it
        again.metrics({"kl": 2.0}, step=2)
        assert again.wait_for_id() == run.run_id
    assert history(run, "kl") == [(1, 1.0), (2, 2.0)]
    assert warnings == []
    with runs.start("train", "e", key="0" * 32) as other:
        pass
    assert other.run_id != run.run_id
    assert ["is no longer" in warning for warning in warnings] == [True]


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
        renamed.wait(600)
        return function(*given)

    if moment == "before it connects":
        monkeypatch.setattr(outbox.Outbox, "_connect", lambda box, do=outbox.Outbox._connect: held(do, box))
    elif moment == "while it connects":
        monkeypatch.setattr(outbox, "connect", partial(held, connect))
    with runs.start("train", "e", wait=False) as run:
        if moment == "after the first record":
            run.wait_for_id()
        else:
            assert connects.wait(120)
        place.rename(moved)
        renamed.set()
        run.metrics({"kl": 1.0}, step=1)
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
    assert "cvae sync" in warnings[-1]
    assert moment == "while it connects" or not place.exists()
    forget()
    monkeypatch.chdir(moved)
    assert outbox.sync() > 0
    store = connect(f"sqlite:///{moved}/mlflow.db")
    (found,) = store.search_runs(["1"])
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"kl": 1.0})
    assert len(store.list_artifacts(found.info.run_id, "images")) == 2
    assert outbox_files() == []

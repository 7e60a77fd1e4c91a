"""Which processes still work on a study: on this machine a locked file says so, on other machines heartbeats."""

import socket
import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.storages import RDBStorage

from pipeline.study import storage


@contextmanager
def lock_file(folder: Path) -> Iterator[str]:
    """Locks a new file in `folder` while this process works; yields the worker's name, `machine:path`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.lock"
    try:
        with FileLock(path):
            yield f"{machine()}:{path}"
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def beating(database: RDBStorage, live: Collection[int]) -> Iterator[None]:
    """Sends heartbeats of the trials with the ids `live` from a thread; the collection may change meanwhile."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(storage.HEARTBEAT_SECONDS):
            for trial_id in list(live):
                with suppress(Exception):  # one missed heartbeat must not end a training
                    database.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def machine() -> str:
    """A name of this machine."""
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def is_dead(worker: str | None) -> bool | None:
    """Whether a worker's process has ended; None where this machine can't tell.

    A running trial without a worker belongs to a process that died while asking, since asking is done under a lock.
    """
    if worker is None:
        return True
    where, _, path = worker.partition(":")
    if where != machine():
        return None
    try:
        if not Path(path).exists():
            return True
        with FileLock(path, timeout=0):
            Path(path).unlink(missing_ok=True)
            return True
    except Timeout:
        return False
    except PermissionError:  # another user's file
        return None

"""Records on their way to MLflow. A thread of its own sends them in order, so that no training waits for MLflow.

The thread also imports mlflow and creates the database. A call has a deadline as a whole. After a failure the thread
pauses, and the records wait, on disk too: see journal.py. What waits when the process ends is sent by the next one.
"""

import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Any

from pipeline.base import console
from pipeline.base.addresses import address, identity, shown, sqlite_path
from pipeline.base.errors import UserError
from pipeline.base.files import at_home
from pipeline.base.services import within
from pipeline.tracking.journal import OUTBOX, Journal, Record, waiting
from pipeline.tracking.local import check, connect, look_up, reason, tracking_uri
from pipeline.tracking.records import SEND, Line, Target

PAUSE_SECONDS = 10.0  # how long a store that failed is left alone; twice as long after each further failure,
LONGEST_PAUSE_SECONDS = 300.0  # up to this
CALL_SECONDS = 20.0  # the deadline of one record at a server
BYTES_PER_SECOND = 200_000  # and longer for a file
MODEL_SECONDS = 180.0  # and for a model: a hundred files, with a request for each
FIRST_SECONDS = 120.0  # how long the end of a run waits while mlflow is imported and a database created
OWN_SECONDS = 3.0  # how long a record of ours may lock the store's file before another program is taken to hold it
LOCAL_PATIENCE = 30.0  # how long it waits for each record, if the store is a file here that no other program holds
MOST_PATIENCE = 30.0  # how long it waits for any other store at most; before that, a tenth of the process's time so far
FIRST_ANSWER = 2.0  # how long a record that was just sent has at least
NEXT_ANSWER = 5.0  # the same at a server that answered the one before

OF_FILES = ("image", "artifact", "text", "model", "expect_model")  # kinds of records that need room on a disk


class Outbox:
    """The records for one store. All runs of a process share it, so that a dead server is asked once for all."""

    _open: dict[str, "Outbox"] = {}  # noqa: RUF012 (by URI)

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.users = 0  # open runs
        self.client: Any = None
        self.folder = at_home(OUTBOX)
        self.address = address(uri)
        self._path = sqlite_path(uri)
        self._is_local = self._path is not None
        self._folder = identity(self._path and self._path.parent)  # of the SQLite file
        self._file: tuple[int, int] | None = None  # the SQLite file that `client` writes
        self._opened: dict[str, Line] = {}  # the first records of open runs, by their keys
        self._began = time.monotonic()
        self._refused: set[str] = set()  # names of runs of which a record was refused
        self._changed = threading.Condition()  # guards all below
        self._records: deque[Line] = deque()
        self._aside: list[Line] = []  # what could not be written to a disk,
        self._is_full = False  # of which a warning has told
        self._attempts = 0
        self._sent = 0.0  # when the last one was begun
        self._given_up = -1  # the attempt that was not waited for any longer
        self._failures = 0  # of the first record
        self._hurried = False  # makes no pause
        self._adopt()
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    @classmethod
    def at(cls, uri: str) -> "Outbox":
        """The outbox of the store at `uri`. Raises UserError if this is the first use of a store that does not work."""
        if uri not in cls._open:
            check(uri)
            cls._open[uri] = cls(uri)
        return cls._open[uri]

    def journal(self, target: Target, ends: bool) -> Journal:
        """A new journal for the records of a run, which `ends` with its process or had ended before."""
        with self._changed:
            self._adopt(target.key)
        named = {"name": target.name, "key": target.key, "run_id": target.run_id}
        return Journal.new(self.folder, {"store": self.address, **named, "ends": ends})

    def put(self, target: Target, journal: Journal, record: Record, *, again: bool = False) -> None:
        """Returns at once; the record is sent after those before it."""
        with self._changed:
            self._records.append(Line(target, journal, journal.append(record), record, again))
            self._changed.notify_all()

    def close(self, journal: Journal) -> None:
        with self._changed:
            journal.close()

    def wait(self, enough: Callable[[], bool] = lambda: False, failures: int = 1, patient: bool = False) -> None:
        """Returns when all is sent, or `enough`, or the first record failed so often or, unless `patient`, is late."""
        with self._changed:
            while self._records and self._failures < failures and not enough():
                if not self._is_tried(patient):
                    return

    def flush(self, patient: bool = False) -> int:
        """Like `wait`, but a store that is down is tried again. Returns how many records are left."""
        with self._changed:
            self._hurried = True
            self._adopt()
            self._records.extend(self._aside)
            self._aside.clear()
            self._changed.notify_all()
            # The first failure may be of an attempt that began while it was down.
            self.wait(failures=self._failures + 2, patient=patient)
            self._hurried = False
            return len(self._records) + len(self._aside)

    def _is_tried(self, patient: bool) -> bool:
        """Waits for the next attempt; whether it came in time. Only who is `patient` waits twice for one record."""
        attempts = self._attempts
        if attempts == self._given_up and not patient:
            return False
        if self._changed.wait_for(lambda: self._attempts > attempts, None if patient else self._patience()):
            return True
        self._given_up = attempts
        return False

    def _patience(self) -> float:
        """Seconds without any answer after which nobody waits any longer."""
        if self.client is None and not self._failures:
            return FIRST_SECONDS
        if self._is_local and not _is_locked(self.uri):
            return LOCAL_PATIENCE
        now = time.monotonic()
        answer = NEXT_ANSWER if self._attempts and not self._is_local else FIRST_ANSWER
        answer = 0.0 if self._failures else answer
        return max(min((now - self._began) / 10, MOST_PATIENCE), self._sent + answer - now)

    def _adopt(self, key: str = "*") -> None:
        """Takes over what processes have left that ended before all was sent. A run left open has failed."""
        for path in sorted(self.folder.glob(f"{key}-*.jsonl"), key=lambda path: path.stat().st_mtime):
            journal = Journal.adopt(path)
            if journal is None:
                continue
            head = journal.head
            if head["store"] != self.address:
                journal.release()
                continue
            target = Target(head["name"], head["key"], head["run_id"])
            if head["ends"] and all(record["do"] != "end" for record in journal.waiting.values()):
                journal.append({"do": "end", "status": "FAILED", "at": int(time.time() * 1000), "killed": True})
            for number, record in journal.waiting.items():
                self._records.append(Line(target, journal, number, record, again=True))
            journal.delete_if_done()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records)
                line = self._records[0]
            failure: Exception | None = None
            try:
                self._connect()
                self._sent = time.monotonic()
                self._send_in_time(line)
            except Exception as error:
                failure = error
            with self._changed:
                if not self._records or self._records[0] is not line:
                    continue
                self._attempts += 1
                self._changed.notify_all()
                if failure is None or (self.client and _is_refusal(failure)):
                    self._remove(line, failure)
                elif self.client and _is_of_a_disk(failure) and line.record["do"] in OF_FILES:
                    self._put_aside(line, failure)
                else:
                    line.again = True
                    self._pause(failure)

    def _connect(self) -> None:
        self._check_folder()
        if self.client is not None and identity(self._path) != self._file:
            console.warn(f"{shown(self.uri)} was deleted or replaced: what it held is lost, a new run takes the rest")
            self.client._tracking_client.store.engine.dispose()  # or it would write into the deleted file
            self.client = None
        if self.client is None:
            client, opened = connect(self.uri), self._file is not None
            self._check_folder()  # connecting makes a folder that was moved meanwhile anew
            self.client, self._file = client, identity(self._path)
            for line in self._opened.values() if opened else ():
                self._send(line)

    def _check_folder(self) -> None:
        if self._folder is not None and identity(self._path and self._path.parent) != self._folder:
            raise FileNotFoundError("its folder was moved or deleted")  # nobody would look for a new one there

    def _send(self, line: Line) -> None:
        target, do = line.to, line.record["do"]
        if not target.experiment_id and do != "open":
            run = look_up(self.client, target.run_id, target.key)
            if run is None:
                raise UserError(f"run {target.run_id or target.key} is not there")
            target.know(run)
        SEND[do](self.client, line)
        if do == "open":
            self._opened[target.key] = line
        elif do == "end":
            self._opened.pop(target.key, None)

    def _send_in_time(self, line: Line) -> None:
        if self._is_local:  # SQLite has deadlines of its own
            self._send(line)
        else:
            seconds = CALL_SECONDS + line.record.get("bytes", 0) / BYTES_PER_SECOND
            within(seconds + MODEL_SECONDS * (line.record["do"] == "model"), lambda: self._send(line))

    def _pause(self, failure: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            fails = f"MLflow at {shown(self.uri)} fails ({reason(failure)})"
            console.warn(f"{failure if isinstance(failure, UserError) else fails}; records wait, the work goes on")
        pause = min(PAUSE_SECONDS * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE_SECONDS)
        self._changed.wait(0.02)  # gives way to who waits for this failure, and may have seen enough
        self._changed.wait_for(lambda: self._hurried, pause)

    def _put_aside(self, line: Line, failure: Exception) -> None:
        if not self._is_full and threading.main_thread().is_alive():  # at its end a program deletes what is temporary
            self._is_full = True
            what = line.record.get("name", line.record["do"])
            console.warn(f"{what} of run {line.to.name} can't be stored yet ({reason(failure)}); the rest goes on")
        self._aside.append(line)
        self._records.popleft()

    def _remove(self, line: Line, refusal: Exception | None) -> None:
        if self._failures:
            console.warn(f"MLflow at {shown(self.uri)} answers again: the waiting records are being sent")
        if refusal and line.to.name not in self._refused:
            self._refused.add(line.to.name)
            console.warn(f"MLflow refused a record of run {line.to.name}: {reason(refusal)}")
        line.journal.sent(line.number, line.to.run_id)
        self._records.popleft()
        self._failures = 0


def sync() -> int:
    """Sends what processes that have ended left for today's store; returns the number of records.

    A warning names other stores for which something waits. Raises UserError for what can't be sent now.
    """
    uri = tracking_uri()
    found = waiting()
    count = found.pop(address(uri), 0)
    for store, number in found.items():
        console.warn(f"{number} records wait for MLflow at {store}: set MLFLOW_TRACKING_URI to it and run `cvae sync`")
    left = Outbox.at(uri).flush(patient=True) if count else 0
    if left:
        raise UserError(f"MLflow at {shown(uri)} didn't take {left} records: they stay in {OUTBOX}, try again later")
    return count


def _is_locked(uri: str) -> bool:
    """Whether another program holds a SQLite file. MLflow would wait 20 seconds for each record."""
    if identity(sqlite_path(uri)) is None:  # connecting would make an empty one
        return False
    try:
        with closing(sqlite3.connect(str(sqlite_path(uri)), timeout=OWN_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        return True
    return False


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered and would answer the same again. Such a record must not hold up the others."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
        return error.error_code in final
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (400, 404, 413)
    if isinstance(error, FileNotFoundError):  # the file that waited was deleted
        return ".cvae" in str(error.filename)
    return isinstance(error, KeyError | ValueError | TypeError | UserError)


def _is_of_a_disk(error: Exception) -> bool:
    """Whether a file could not be written, here or at the server's place for artifacts."""
    from requests import HTTPError

    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
    return isinstance(error, HTTPError) or (isinstance(error, OSError) and error.errno in full)

"""Records on their way to MLflow. A thread of its own sends them in order, so that no training waits for MLflow.

The thread also imports mlflow and creates the database. After a failure it leaves the store alone for a while, and
the records wait.
"""

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import UserError
from pipeline.tracking.local import connect, reason, shown

PAUSE_SECONDS = 10.0  # how long a store that failed is left alone
STALL_SECONDS = 30.0  # how long the end of a run waits for one record
FIRST_SECONDS = 120.0  # the same, while mlflow is imported and a database created

Warn = Callable[[str], None]
Send = Callable[[Any], Any]  # takes an MlflowClient


class Sender:
    """Whose records these are: a run. `refused` counts the records that the store would never take."""

    name: str
    warn: Warn
    refused: int


@dataclass
class Record:
    sender: Sender
    send: Send
    kept: "tempfile.TemporaryDirectory[str] | None" = None  # copies of the files it needs


class Outbox:
    """The records for one store. All runs of a process share it, so that a dead server is asked once for all."""

    _open: dict[str, "Outbox"] = {}  # noqa: RUF012 (by URI)

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.users = 0  # open runs
        self._client: Any = None
        self._changed = threading.Condition()  # guards all below
        self._asked: deque[tuple[Send, Future[Any]]] = deque()
        self._pending: deque[Record] = deque()
        self._sent = 0
        self._trying = self._down = False
        self._waited = 0  # how many records were sent since the store failed
        self._warned = False  # of a failure, until all is sent
        self._paused_until = 0.0
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    @classmethod
    def at(cls, uri: str) -> "Outbox":
        """The outbox of the store at `uri`."""
        if uri not in cls._open:
            cls._open[uri] = cls(uri)
        return cls._open[uri]

    def put(self, record: Record) -> None:
        """Returns at once; the record is sent after those before it."""
        with self._changed:
            self._pending.append(record)
            self._changed.notify_all()

    def ask(self, send: Send) -> Any:
        """The result of `send`, which goes ahead of all records. Raises what it raises, or TimeoutError."""
        answer: Future[Any] = Future()
        with self._changed:
            self._asked.append((send, answer))
            self._changed.notify_all()
        return answer.result(FIRST_SECONDS)

    def wait(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Returns once all is sent, or `enough`, or the store fails, or a record takes longer than STALL_SECONDS."""
        with self._changed:
            while self._pending and not self._down and not enough():
                sent = self._sent
                self._changed.wait(STALL_SECONDS if self._client else FIRST_SECONDS)
                if self._sent == sent and not self._down:
                    return

    def flush(self) -> int:
        """Like `wait`, but a store that is down is tried once more. Returns how many records are left."""
        for _ in range(2 if self._trying else 1):  # an attempt that runs already may have begun while it was down
            with self._changed:
                self._paused_until, self._down = 0.0, False
                self._changed.notify_all()
            self.wait()
        return len(self._pending)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._asked and (not self._pending or time.monotonic() < self._paused_until):
                    self._changed.wait(self._paused_until - time.monotonic() if self._pending else None)
                question = self._asked.popleft() if self._asked else None
                self._trying = question is None
            if question:
                self._answer(*question)
            else:
                self._try(self._pending[0])

    def _answer(self, send: Send, answer: "Future[Any]") -> None:
        try:
            answer.set_result(send(self._connected()))
        except Exception as error:
            answer.set_exception(error)

    def _connected(self) -> Any:
        self._client = self._client or connect(self.uri)
        return self._client

    def _try(self, record: Record) -> None:
        failure: Exception | None = None
        try:
            record.send(self._connected())
        except Exception as error:
            failure = error
        with self._changed:
            self._trying = False
            if failure and (self._client is None or not _is_refusal(failure)):
                self._pause(failure, record.sender.warn)
            else:
                self._remove(record, failure)
            self._changed.notify_all()

    def _pause(self, failure: Exception, warn: Warn) -> None:
        self._down, self._paused_until, self._waited = True, time.monotonic() + PAUSE_SECONDS, 0
        if not self._warned:
            self._warned = True
            fails = f"MLflow at {shown(self.uri)} fails ({reason(failure)})"
            warn(f"{failure if isinstance(failure, UserError) else fails}; records wait, the work goes on")

    def _remove(self, record: Record, refusal: Exception | None) -> None:
        sender = record.sender
        if refusal:
            sender.refused += 1
            if sender.refused == 1:
                sender.warn(f"MLflow refused a record of run {sender.name}: {reason(refusal)}")
        if record.kept:
            record.kept.cleanup()
        self._pending.popleft()
        self._down, self._sent, self._waited = False, self._sent + 1, self._waited + 1
        if self._warned and not self._pending:
            self._warned = False
            sender.warn(f"MLflow at {shown(self.uri)} answers again: all waiting records are sent ({self._waited})")


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered and would answer the same again. Such a record must not hold up the others."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
        return error.error_code in final
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (400, 404, 413)
    return isinstance(error, ValueError | TypeError | UserError)

"""Records on their way to MLflow. A thread of its own sends them in order, so that no training waits for MLflow.

The thread also imports mlflow and creates the database. After a failure it pauses, and the records wait.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import shown
from pipeline.tracking.local import check, connect, reason

PAUSE_SECONDS = 10.0  # how long a store that failed is left alone
STALL_SECONDS = 30.0  # how long the end of a run waits for one record
FIRST_SECONDS = 120.0  # the same, while mlflow is imported and a database created

Send = Callable[[Any], object]  # takes an MlflowClient


class Outbox:
    """The records for one store. All runs of a process share it, so that a dead server is asked once for all."""

    _open: dict[str, "Outbox"] = {}  # noqa: RUF012 (by URI)

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.users = 0  # open runs
        self.client: Any = None
        self._refused: set[str] = set()  # names of runs of which a record was refused
        self._changed = threading.Condition()  # guards all below
        self._records: deque[tuple[str, Send]] = deque()
        self._attempts = 0
        self._failures = 0  # of the first record
        self._hurried = False  # makes no pause
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    @classmethod
    def at(cls, uri: str) -> "Outbox":
        """The outbox of the store at `uri`. Raises UserError if this is the first use of a store that does not work."""
        if uri not in cls._open:
            check(uri)
            cls._open[uri] = cls(uri)
        return cls._open[uri]

    def put(self, run: str, send: Send) -> None:
        """Returns at once; the record is sent after those before it. `run` is the run's name, for messages."""
        with self._changed:
            self._records.append((run, send))
            self._changed.notify_all()

    def wait(self, enough: Callable[[], bool] = lambda: False, failures: int = 1) -> None:
        """Returns when all is sent, or `enough`, or the first record failed so often or takes over STALL_SECONDS."""
        with self._changed:
            while self._records and self._failures < failures and not enough():
                attempts = self._attempts
                self._changed.wait(STALL_SECONDS if self.client else FIRST_SECONDS)
                if self._attempts == attempts:
                    return

    def flush(self) -> int:
        """Like `wait`, but a store that is down is tried again. Returns how many records are left."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self.wait(failures=self._failures + 2)  # the first may be of an attempt that began while it was down
            self._hurried = False
            return len(self._records)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records)
                run, send = self._records[0]
            failure: Exception | None = None
            try:
                self.client = self.client or connect(self.uri)
                send(self.client)
            except Exception as error:
                failure = error
            with self._changed:
                self._attempts += 1
                self._changed.notify_all()
                if failure and not (self.client and _is_refusal(failure)):
                    self._pause(failure)
                else:
                    self._remove(run, failure)

    def _pause(self, failure: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            fails = f"MLflow at {shown(self.uri)} fails ({reason(failure)})"
            console.warn(f"{failure if isinstance(failure, UserError) else fails}; records wait, the work goes on")
        self._changed.wait_for(lambda: self._hurried, PAUSE_SECONDS)

    def _remove(self, run: str, refusal: Exception | None) -> None:
        if self._failures:
            console.warn(f"MLflow at {shown(self.uri)} answers again: the waiting records are being sent")
        if refusal and run not in self._refused:
            self._refused.add(run)
            console.warn(f"MLflow refused a record of run {run}: {reason(refusal)}")
        self._records.popleft()
        self._failures = 0


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

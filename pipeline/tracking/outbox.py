"""What MLflow is still to be told: records leave in order, and wait while the store is down.

A store that fails is left alone for a while, so that an outage costs a training at most a tenth of its time.
"""

import math
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import UserError
from pipeline.tracking.local import connect, reason, shown

PAUSE_SECONDS = 10.0  # after a failure nothing is tried for at least this long …
PAUSE_FACTOR = 10  # … and for this many times as long as the failure took
CATCH_UP_SECONDS = 5.0  # how long sending old records may hold up a call

Warn = Callable[[str], None]


class Sender:
    """Whose records these are: a run. `refused` counts the records that the store would never take."""

    name: str
    warn: Warn
    refused: int


@dataclass
class Record:
    sender: Sender
    send: Callable[[], Any]
    kept: tempfile.TemporaryDirectory[str] | None = None  # copies of the files it needs


class Outbox:
    """One store and the records for it. All runs of a process share it, so that a dead server is asked once for all."""

    _open: dict[str, "Outbox"] = {}  # noqa: RUF012 (by URI)

    def __init__(self, uri: str) -> None:
        self.uri, self.client = uri, connect(uri)
        self.pending: deque[Record] = deque()
        self._down = False
        self._closed_until = 0.0

    @classmethod
    def at(cls, uri: str) -> "Outbox":
        """The outbox of the store at `uri`. Raises UserError if the store cannot be used."""
        if uri not in cls._open:
            cls._open[uri] = cls(uri)
        return cls._open[uri]

    def put(self, record: Record) -> None:
        """Sends the record after those before it, or keeps it while the store is paused."""
        self.pending.append(record)
        if time.monotonic() >= self._closed_until:
            self.send(CATCH_UP_SECONDS)

    def send(self, seconds: float = math.inf) -> None:
        """Sends pending records for about so long, until the store fails."""
        began, sent = time.monotonic(), 0
        while self.pending and (sent == 0 or time.monotonic() - began < seconds):
            record, tried = self.pending[0], time.monotonic()
            sender = record.sender
            try:
                record.send()
            except Exception as error:
                if not _is_refusal(error):
                    failing = time.monotonic() - tried
                    self._closed_until = time.monotonic() + max(PAUSE_SECONDS, PAUSE_FACTOR * failing)
                    if not self._down:
                        sender.warn(f"MLflow at {shown(self.uri)} fails ({reason(error)}): records wait, work goes on")
                    self._down = True
                    return
                sender.refused += 1
                if sender.refused == 1:
                    sender.warn(f"MLflow refused a record of run {sender.name}: {reason(error)}")
            self.pending.popleft()
            sent += 1
            if record.kept:
                record.kept.cleanup()
        if self._down and not self.pending:
            self._down = False
            sender.warn(f"MLflow at {shown(self.uri)} answers again: all waiting records are sent ({sent})")


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

"""Waiting for what another thread or process does, on a busy machine too."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress


def until(happened: Callable[[], object]) -> None:
    """Waits for it, for two minutes at most; meanwhile a table or file may be missing."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(sqlite3.OperationalError, FileNotFoundError):
            if happened():
                return
        time.sleep(0.01)
    raise AssertionError("it never happened")

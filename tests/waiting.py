"""Waiting for what another thread or process does, on a busy machine too."""

import time
from collections.abc import Callable


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)

"""The process that records: where its code comes from, and how SIGTERM ends it."""

import getpass
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM as an exception, so that `with` and `finally` blocks run before the process ends."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Terminated, unless the process handles it in another way already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def context_tags(root: Path) -> dict[str, str]:
    """Who runs what from which commit, and for which stage and experiment of DVC."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
        commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", lines, re.MULTILINE)
        if commit:
            dirty = any(not line.startswith("#") for line in lines.splitlines())
            tags |= {"mlflow.source.git.commit": commit[1], "git_dirty": str(dirty).lower()}
    for variable in ("DVC_STAGE", "DVC_EXP_NAME"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags

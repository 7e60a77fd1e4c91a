"""A program that has all imports done and forks a process for each stage, which may be killed at a given moment.

Without it, a drill would spend its time on imports. What a stage imports late is imported here, too, once a stage has
come to its end: the next one finds it. It reads a JSON object a line and answers with one:
{"stage": "train", "folder": …, "environment": {…}, "after": 0.3, "signal": 9} → {"status": 0 or −9, "seconds": …}.
"""

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import mounts

STAGES = ("download", "prepare", "spectrum", "judge", "train", "evaluate", "curve", "tune")
LIMIT_SECONDS = 300.0  # what takes longer hangs


def main() -> None:
    from pipeline.tracking import local, package

    os.environ |= local.ENVIRONMENT  # mlflow reads it once

    stages = {name: importlib.import_module(f"pipeline.stages.{name}").main for name in STAGES}
    package.warm_up()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        gc.freeze()  # or the children's collections would copy all memory
        began, child = time.monotonic(), os.fork()
        if child == 0:
            _work(order, stages[order["stage"]])
        status = _watched(child, began, order)
        seconds = time.monotonic() - began
        _learn(Path(order["folder"]).with_suffix(".learnt"))
        print(json.dumps({"status": status, "seconds": seconds}), flush=True)


def _work(order: dict[str, Any], stage: Any) -> None:
    from pipeline.base import console

    status, known = 1, set(sys.modules)
    folder = place = Path(order["folder"])
    try:
        if order["mounts"]:
            place = mounts.confine(folder, order["mounts"])
        os.chdir(place)
        os.environ |= order["environment"]
        tempfile.tempdir = None  # the zygote has looked TMPDIR up
        said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        console.run(stage)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir("/")
        folder.with_suffix(".learnt").write_text("\n".join(name for name in sys.modules if name not in known))
        if place != folder:  # the disk goes with the process
            shutil.rmtree(folder)
            shutil.copytree(place, folder)
        os._exit(status)


def _learn(path: Path) -> None:
    """Imports the modules that a child needed."""
    if path.exists():
        for name in path.read_text().split():
            with suppress(Exception):  # made by a program, or none that can be imported alone
                importlib.import_module(name)
        path.unlink()


def _watched(child: int, began: float, order: dict[str, Any]) -> int:
    """The exit status; that of a killed process is the signal's number, negative. The signal is sent once."""
    due = order.get("after")
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if due is not None and passed >= due:
            os.kill(child, order["signal"])
            due = None
        if passed > LIMIT_SECONDS:
            os.kill(child, 9)
        time.sleep(0.001)


if __name__ == "__main__":
    main()

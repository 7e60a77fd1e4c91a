"""A program that has all imports done and forks a process for each stage, which may be killed at a given moment.

Without it, a drill would spend its time on imports. It reads a JSON object a line and answers with one:
{"stage": "train", "folder": …, "environment": {…}, "after": 0.3, "signal": 9} → {"status": 0 or −9, "seconds": …}.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

STAGES = ("prepare", "judge", "train", "evaluate", "tune")
LIMIT_SECONDS = 300.0  # what takes longer hangs


def main() -> None:
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    from pipeline.tracking import package

    stages = {name: importlib.import_module(f"pipeline.stages.{name}").main for name in STAGES}
    package.warm_up()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began, child = time.monotonic(), os.fork()
        if child == 0:
            _work(order, stages[order["stage"]])
        status = _watched(child, began, order)
        print(json.dumps({"status": status, "seconds": time.monotonic() - began}), flush=True)


def _work(order: dict[str, Any], stage: Any) -> None:
    from pipeline.base import console

    status = 1
    try:
        os.chdir(order["folder"])
        os.environ |= order["environment"]
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        console.run(stage)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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

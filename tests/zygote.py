"""A program that has all imports done and forks a process for each command, which may be killed at a given moment.

Without it, tests would spend their time on imports. What a command imports late is imported here, too, once it has come
to its end: the next one finds it. forked.py sends the orders. It ends with its standard input.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import mounts

from pipeline.base.files import replacing

MODULES = (
    "mlflow.tracking._tracking_service.utils", "dvc.cli", "dvc.commands.repro", "dvc.commands.experiments.run",
    *(f"pipeline.stages.{name}" for name in ("evaluate", "explore", "judge", "prepare", "train", "tune")),
)  # fmt: skip


def main() -> None:
    from pipeline.tracking import local, package

    os.environ |= local.ENVIRONMENT  # mlflow reads it once
    for name in MODULES:
        importlib.import_module(name)
    package.warm_up()
    learnt = Path(f"{sys.argv[1]}.learnt")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(sys.argv[1])
        server.listen(100)
        print(flush=True)  # ready
        while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
            connection, _ = server.accept()
            if learnt.exists():
                names = learnt.read_text().split()
                learnt.unlink()
                for name in names:
                    with suppress(Exception):  # made by a program, or none that can be imported alone
                        importlib.import_module(name)
            gc.freeze()  # or the children's collections would copy all memory
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
            if os.fork() == 0:
                server.close()
                _watch(connection, learnt)
            connection.close()


def _watch(connection: socket.socket, learnt: Path) -> None:
    """Starts the process, passes signals on to it, kills it when the client goes, and answers with its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child is ready for it
    child = os.fork()
    if child == 0:
        connection.close()
        _work(json.loads(content), files, learnt)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in select.select([connection.fileno(), ended], [], [])[0]:
        sent = connection.recv(1)
        os.kill(child, sent[0] if sent else signal.SIGKILL)
        if not sent:
            break
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _work(order: dict[str, Any], files: list[int], learnt: Path) -> None:
    status, known = 1, set(sys.modules)
    folder = place = Path(order["folder"])
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        if order["mounts"]:
            place = mounts.confine(folder, order["mounts"])
        os.chdir(place)
        os.umask(order["umask"])
        os.environ.clear()
        os.environ |= order["environment"]
        tempfile.tempdir = None  # the zygote has looked TMPDIR up
        signal.signal(signal.SIGINT, signal.SIG_IGN if order["deaf"] else signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        _run(order["words"])
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.chdir("/")
        new = [name for name in sys.modules if name not in known]
        if new:
            with replacing(learnt) as part:
                part.write_text("\n".join(new))
        if place != folder:  # the disk goes with the process
            shutil.rmtree(folder)
            shutil.copytree(place, folder)
        os._exit(status)


def _run(words: list[str]) -> None:
    """`dvc WORDS`, `python -m MODULE WORDS` or `python -c CODE WORDS`."""
    sys.argv = words[:1] + words[3:]
    if words[0] == "dvc":
        from dvc.cli import main

        sys.argv = words
        sys.exit(main(words[1:]))
    if words[1] == "-c":
        sys.argv[0] = "-c"
        sys.path.insert(0, "")
        exec(compile(words[2], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.modules.pop(words[2], None)  # runpy would warn of it
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Starts commands that zygote.py forks: as `python` and `dvc` on the PATH, in place of these programs.

It imports little, since it runs once for each stage.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

ADDRESS = "ZYGOTE"  # the environment variable that names the zygote's socket
PROGRAM = "#!{python} -IS\nimport sys\nsys.path.append({folder!r})\nimport forked\nforked.main({name!r})\n"


def start(
    words: Sequence[str], folder: str, environment: Mapping[str, str], files: Sequence[int],
    mounts: Mapping[str, int] | None = None,
) -> socket.socket:  # fmt: skip
    """Has the zygote run `python -m …`, `python -c …` or `dvc …` with three open files as its standard ones.

    A byte sent to the socket goes to the process as a signal; what it answers is the exit status, as subprocess has it.
    """
    os.umask(umask := os.umask(0o22))
    deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    order = {"words": words, "folder": folder, "environment": dict(environment), "deaf": deaf, "umask": umask}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(environment[ADDRESS])
    socket.send_fds(connection, [json.dumps(order | {"mounts": mounts or {}}).encode()], files)
    return connection


def main(name: str) -> None:
    words = sys.argv[1:]
    if name == "python" and words[:1] not in (["-m"], ["-c"]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    passed = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed)  # until they can be passed on
    with start([name, *words], os.getcwd(), os.environ, (0, 1, 2)) as connection:  # noqa: PTH109  pathlib is slow
        for number in passed:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: connection.send(bytes([number])))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
        status = int(connection.recv(16) or -signal.SIGKILL)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)

import shlex
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from stores import kept
from waiting import until

from pipeline.tracking import runs, server

# In place of MLflow's server, which test_page.py starts: a child listens, as its workers do.
SERVER = "{} -m http.server {} --bind 127.0.0.1 & wait"


def test_the_ui_takes_a_free_port_opens_the_experiment_and_ends_with_all_its_processes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.start("train", "e") as run:
        pass
    Path("health").touch()  # which is asked for, and served
    opened: list[str] = []

    def start(uri: str, port: int, log: Any, database: Path) -> "subprocess.Popen[bytes]":
        assert (uri, database) == (run.uri, root / "mlflow.db")
        command = ["sh", "-c", SERVER.format(shlex.quote(sys.executable), port)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def visit(url: str) -> None:
        opened.append(url)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "start", start)
    monkeypatch.setattr(webbrowser, "open", visit)
    with socket.socket() as taken:
        with server.own_port(7600) as port:  # no port that the system gives to others
            taken.bind(("127.0.0.1", port))
        taken.listen()
        server.ui(port, open_browser=True, experiment="e")
    address, _, page = opened[0].partition("/#")
    assert page.startswith(f"/experiments/{kept(run).info.experiment_id}/runs?viewStateShareKey=")
    other = int(address.removeprefix("http://127.0.0.1:"))
    assert other != port

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", other)) != 0

    until(is_gone)


def test_two_that_start_at_once_take_two_ports() -> None:
    with server.own_port(7700) as one, server.own_port(7700) as other:
        assert one != other

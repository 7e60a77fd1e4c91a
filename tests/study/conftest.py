"""Databases for studies."""

import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest
from imports import ROOT
from ports import free_port
from postgres import Server


@pytest.fixture(autouse=True)
def _own_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


@pytest.fixture
def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new, empty PostgreSQL database, which OPTUNA_STORAGE names too."""
    name = f"test_{uuid.uuid4().hex}"
    server.query(f"CREATE DATABASE {name}")
    monkeypatch.setenv("OPTUNA_STORAGE", server.url(name))
    return name


@pytest.fixture
def proxied(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new database, and OPTUNA_STORAGE names Optuna's gRPC storage proxy before it."""
    port = free_port()
    command = [sys.executable, "-m", "pipeline.study.serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        served = re.search(r"grpc://[\w:]+", process.stdout.readline())
        assert served
        monkeypatch.setenv("OPTUNA_STORAGE", served[0])
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:  # it says so before it answers
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield database
        process.terminate()

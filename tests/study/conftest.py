"""Databases for studies."""

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from imports import ROOT
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
    from servers import free_port

    port = free_port()
    command = [sys.executable, "-m", "pipeline.study.serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        served = process.stdout.readline()
        monkeypatch.setenv("OPTUNA_STORAGE", re.search(r"grpc://[\w:]+", served)[0])  # type: ignore[index]
        yield database
        process.terminate()

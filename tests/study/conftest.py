"""Databases for studies."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
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
def proxied(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The name of a new database, and OPTUNA_STORAGE names Optuna's gRPC storage proxy before it."""
    from servers import proxy

    with proxy(tmp_path / "proxy.log") as address:
        monkeypatch.setenv("OPTUNA_STORAGE", address)
        yield database

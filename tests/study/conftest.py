"""Databases for studies."""

import itertools

import pytest
from postgres import Server

COUNT = itertools.count()


@pytest.fixture(autouse=True)
def _own_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


@pytest.fixture
def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new, empty PostgreSQL database, which OPTUNA_STORAGE names too."""
    name = f"test_{next(COUNT)}"
    server.query(f"CREATE DATABASE {name}")
    monkeypatch.setenv("OPTUNA_STORAGE", server.url(name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> None:
    """A test that uses it runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        request.getfixturevalue("database")

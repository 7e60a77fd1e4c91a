"""An empty store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import forget

from pipeline.base import console
from pipeline.tracking import local, outbox


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """Nobody gives a store up because the machine is busy. Tests of giving up set what they need."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST_SECONDS", "LOCAL_PATIENCE", "FIRST_ANSWER", "NEXT_ANSWER", "CALL_SECONDS"):
            patch.setattr(outbox, name, 600.0)
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        yield


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: a project with an empty MLflow database. Further databases are copies of it, too."""
    for variable in ("MLFLOW_TRACKING_URI", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)

    def create(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(database, path)

    monkeypatch.setattr(local, "_create", create)
    yield tmp_path
    forget()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings that a user sees."""
    lines: list[str] = []
    monkeypatch.setattr(console, "warn", lines.append)
    return lines

"""A small project, and a program that forks its stages."""

from collections.abc import Iterator
from pathlib import Path

import drills
import pytest
from stores import forget

from pipeline.tracking import local


@pytest.fixture(scope="session")
def zygote() -> Iterator[drills.Zygote]:
    with drills.zygote() as made:
        yield made


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    local.connect(f"sqlite:///{path}")
    forget()
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, zygote: drills.Zygote, empty_database: Path) -> Path:
    """A project that has not trained yet."""
    folder = drills.make_project(tmp_path_factory.mktemp("faults") / "project", empty_database, *drills.digits())
    for stage in ("prepare", "judge"):
        ended = zygote.run(folder, stage)
        assert ended.status == 0, ended.said
    return folder

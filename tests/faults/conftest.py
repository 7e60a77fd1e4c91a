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
def prepared(tmp_path_factory: pytest.TempPathFactory, zygote: drills.Zygote) -> Path:
    """A project that has not trained yet."""
    folder = tmp_path_factory.mktemp("faults")
    local.connect(f"sqlite:///{folder / 'mlflow.db'}")
    forget()
    return drills.make_project(folder / "project", zygote, folder / "mlflow.db")

"""What the tests of stages share."""

import os

import pytest
from drills import Zygote
from filelock import FileLock
from pipelines import Project, made


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Project:
    """A project that has run the pipeline once. A test that changes more than its experiments works in a copy."""
    own = tmp_path_factory.mktemp("end")
    base = own.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # one for all workers
    with FileLock(base / "lock"):
        if (base / "first/done").exists():
            first = Project(base / "first/clone", base / "first/mirror", zygote.environment())
        else:
            first = made(base / "first", zygote)
            (base / "first/done").touch()
    return first.copy(own / "copy")

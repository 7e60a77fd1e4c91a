"""What the tests of stages share."""

import pytest
from pipelines import Project, made


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run the pipeline once. A test that changes more than its experiments works in a copy."""
    return made(tmp_path_factory.mktemp("end"))

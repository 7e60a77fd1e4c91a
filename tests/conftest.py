"""Fixtures that several test modules share."""

import os

import pytest

from pipeline import data, download
from pipeline.errors import UserError


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, data.Split]:
    """The real data set, by the product's own download and split; skipped where no mirror answers, but not in CI."""
    folder = tmp_path_factory.mktemp("mnist")
    try:
        download.fetch(folder, download.mirrors([], os.environ))
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"MNIST can't be had: {error}")
    train, validation = data.split(*data.read_idx_pair(folder, *data.FILES["train"]), 5000, 0)
    test = data.as_split(*data.read_idx_pair(folder, *data.FILES["test"]))
    return {"train": train, "validation": validation, "test": test}

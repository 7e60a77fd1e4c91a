"""Fixtures that several test modules share."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dvc.logger  # noqa: F401  here: DVC's log keeps the stdout of its first import, and a test's own is closed after it
import postgres
import pytest
from imports import ROOT

if TYPE_CHECKING:
    import drills

    from pipeline.data import splits as data

# Tensors this small gain nothing from threads, and where others use the processor, threads that wait for one another
# took sixty times as long. It must be set before torch is imported; the programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A database waits for the disk at every record, for a tenth of all the tests' time. A run needs 300 MB.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2e9 and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
os.environ.pop("MPLBACKEND", None)  # a notebook's; matplotlib reads it when it is imported
gc.disable()  # the tests import a million objects, which stay: to look through them again and again takes seconds


def pytest_collection_finish() -> None:
    """What has been imported is left out of all later collections, the last of which took seconds."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the longest files begin first: the worker that has one would otherwise end long after the other.

    The second of them needs nothing of the first, which makes what the others need.
    """
    if hasattr(config, "workerinput"):
        longest = ("test_experiments.py", "test_kills.py", "test_repro.py", "test_tune.py")
        items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests and the programs they start see of the machine: neither its owner's settings nor a proxy."""
    settings = tmp_path_factory.mktemp("settings")
    fixed = {
        "GIT_CONFIG_GLOBAL": os.devnull,  # a signing key or a hook would stop the tests' commits
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(settings / "dvc"),
        "DVC_SYSTEM_CONFIG_DIR": str(settings / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(settings / "dvc-cache"),
        "LC_ALL": "C.UTF-8",  # git answers in the user's language
        "PYTHONUTF8": "1",
        "COLUMNS": "120",  # tables and help are as wide as the window
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
    }
    unset = (
        "FORCE_COLOR", "NO_COLOR", "LINES", "LANGUAGE", "PYTHONIOENCODING", "PYTHONWARNINGS",
        "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME",
        "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE",  # git's hooks set them
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fixed.items():
            patch.setenv(name, value)
        for name in unset:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[drills.Zygote]":
    import drills  # here, for torch, as below

    with drills.zygote(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes longer than most tests."""
    from pipeline.tracking import local

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    local.connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, data.Split]":
    """The real data set, by the product's own download and split; skipped where no mirror answers, but not in CI."""
    # Here, for torch: the process that only hands tests to the workers would load it before it starts them.
    from pipeline.base.errors import UserError
    from pipeline.data import download
    from pipeline.data import splits as data
    from pipeline.stages.prepare import read_published

    folder = tmp_path_factory.mktemp("mnist")
    try:
        sums = download.read_checksums(ROOT / "data/SHA256SUMS")
        download.fetch(folder, download.mirrors([]), sums)
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"MNIST can't be had: {error}")
    train, validation = data.split(*read_published(folder, "train"), 5000, 0)
    test = data.as_split(*read_published(folder, "test"))
    return {"train": train, "validation": validation, "test": test}


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of our own; skipped where none is installed, but not in CI."""
    programs = postgres.programs()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL server is installed: .ci/run does it, on Debian, as root")
        pytest.skip("no PostgreSQL server is installed (on Debian: apt-get install postgresql)")
    with postgres.running(programs) as server:
        yield server

"""An empty store, and a server that can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from stores import forget

from pipeline.tracking import local
from pipeline.tracking.server import wait_until_up

# What takes 2 to 10 seconds here can take long on a busy machine. MLflow with its default settings takes 500.
PATIENCE = 150.0
NOISE = (  # MLflow's own queries, classes and tables
    "ignore:The ``noload`` loader strategy:DeprecationWarning",
    "ignore:.*Any type hint is inferred as AnyType:UserWarning",
    "ignore:Operation with range is deprecated:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for noise in NOISE:
                item.add_marker(pytest.mark.filterwarnings(noise))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    local.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with an empty MLflow database."""
    for variable in ("MLFLOW_TRACKING_URI", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    yield tmp_path
    forget()


@pytest.fixture
def warnings() -> list[str]:
    return []


class Server:
    """MLflow's server with its own database. It can be killed and started again on the same port.

    A socket that is bound but does not listen keeps the port from others while the server is down.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        self.held.bind(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.held.getsockname()[1]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers. Does nothing if it runs already."""
        if self.process:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", self.uri.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "served")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_until_up(self.process, self.uri, PATIENCE)

    def kill(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "server.db")
    server = Server(folder)
    yield server
    server.kill()
    server.held.close()


@pytest.fixture
def tracking_server(shared_server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that answers. Tests share it, because it starts slowly."""
    assert root.exists()  # that fixture comes first, because it unsets the variable
    shared_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_server.uri)
    return shared_server

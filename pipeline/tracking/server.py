"""MLflow's UI: its server on this machine, until Ctrl-C."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO

from pipeline.base import console
from pipeline.base.addresses import shown, sqlite_path
from pipeline.base.errors import UserError
from pipeline.tracking.local import ARTIFACTS, connect, experiment_id, one_line, reading_uri, tracking_uri
from pipeline.tracking.page import best_first, comparison

START_SECONDS = 120.0


def ui(port: int, open_browser: bool, experiment: str, study: str = "") -> None:
    """Shows the runs of `experiment` in a browser, or a comparison of the trials of `study`.

    Serves this machine only, on `port` or the next free one. If MLFLOW_TRACKING_URI names a server, it only opens that
    one. Raises UserError if there is no such study, or if the server does not start.
    """
    uri, own = reading_uri(), tracking_uri()
    if uri != own:
        console.warn(f"{shown(own)} can't be written: a copy is shown, as it is now")
    client = connect(uri)
    with one_line(uri):
        number = experiment_id(client, experiment)
        page = comparison(client, number, study) if study else best_first(client, number)
    if uri.startswith("http"):
        _show(shown(uri).rstrip("/") + page, open_browser)
        return
    with own_port(port) as port, tempfile.TemporaryFile("w+") as log:
        server = start(uri, port, log, sqlite_path(own))
        try:
            if is_up(server, f"http://127.0.0.1:{port}"):
                _show(f"http://127.0.0.1:{port}{page}", open_browser)
                print("Ctrl-C ends it", flush=True)
                server.wait()
            log.seek(0)
            said = ["it said nothing", *(line.strip() for line in log if line.strip())]
            error = next((line for line in said if "error" in line.lower()), said[-1])
            raise UserError(f"MLflow's server ended: {error}")
        except KeyboardInterrupt:
            pass
        finally:
            end(server)


def start(uri: str, port: int, log: IO[str], database: Path | None) -> "subprocess.Popen[bytes]":
    """Starts MLflow's server on the store at `uri`, for this machine alone.

    database: the SQLite file beside which artifacts lie, if it is one.
    """
    # Without a proxy for artifacts: runs that write straight to the database cannot use its addresses.
    artifacts = ["--default-artifact-root", database.with_name(ARTIFACTS).as_uri()] if database else []
    # An installation older than this code names no app, and MLflow would not start: `make setup` adds it.
    ours = ["--app-name", "cvae"] if entry_points(group="mlflow.app", name="cvae") else []
    command = [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", *artifacts, *ours]
    command += ["--host", "127.0.0.1", "--workers", "1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # others can read a command line, but not the environment
    folders = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]  # that may name another `pipeline`
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    # In a session of its own: Ctrl-C reaches this process only, which then ends the server with its children.
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def is_up(server: "subprocess.Popen[bytes]", address: str) -> bool:
    """Waits until the server answers. False if it ends before, or takes longer than START_SECONDS."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    until = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        # Before the server listens, a connection to its port can connect to itself and read its own request.
        with suppress(OSError, http.client.HTTPException), opener.open(f"{address}/health", timeout=5):
            return True
        time.sleep(0.1)
    return False


def end(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server with its children, which may first finish what they write."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _show(url: str, open_browser: bool) -> None:
    print(f"MLflow: {url}", flush=True)
    if open_browser:
        webbrowser.open(url)


@contextmanager
def own_port(first: int) -> Iterator[int]:
    """The first free port from `first` on. While the block runs no other process gets it here: it is claimed by UDP."""
    for port in range(first, min(first + 100, 65536)):
        with socket.socket(type=socket.SOCK_DGRAM) as claim, socket.socket() as probe:
            try:
                claim.bind(("127.0.0.1", port))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            probe.close()
            yield port
            return
    raise UserError(f"no free port from {first} on: choose another with --port")

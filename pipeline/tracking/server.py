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
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.base.errors import UserError
from pipeline.tracking.local import ARTIFACTS, connect, is_server, one_line, sqlite_path, tracking_uri
from pipeline.tracking.process import sigterm_raises

START_SECONDS = 120.0


def ui(root: Path, port: int = 5000, open_browser: bool = True, experiment_name: str | None = None) -> None:
    """Shows the runs in a browser, `experiment_name` first. Serves this machine only, on `port` or the next free one.

    If MLFLOW_TRACKING_URI names a server, it only opens that one. Raises UserError if the server does not start.
    """
    uri = tracking_uri(root)
    client = connect(uri)
    with one_line(uri):
        found = client.get_experiment_by_name(experiment_name) if experiment_name else None
    # Without the last part, a new browser would open MLflow's view for language models.
    page = f"/#/experiments{f'/{found.experiment_id}' if found else ''}?workflowType=machine_learning"
    if is_server(uri):
        _show(uri.rstrip("/") + page, open_browser)
        return
    path = sqlite_path(uri)
    # Without a proxy for artifacts: runs that write straight to the database cannot use its addresses.
    artifacts = ["--default-artifact-root", path.with_name(ARTIFACTS).as_uri()] if path else []
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--no-serve-artifacts", *artifacts]
    port = _free_port(port)
    command += ["--host", "127.0.0.1", "--workers", "1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with tempfile.TemporaryFile("w+") as log, sigterm_raises():
        # In a session of its own: Ctrl-C reaches this process only, which then ends the server with its children.
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_until_up(server, f"http://127.0.0.1:{port}")
            _show(f"http://127.0.0.1:{port}{page}", open_browser)
            print("Ctrl-C ends it", flush=True)
            server.wait()
            raise ChildProcessError
        except ChildProcessError:
            raise UserError(f"MLflow's server ended: {_last_line(log)}") from None
        except KeyboardInterrupt:
            pass
        finally:
            _end_session(server)


def wait_until_up(server: "subprocess.Popen[bytes]", address: str, seconds: float = START_SECONDS) -> None:
    """Returns when the server answers. Raises ChildProcessError if it ends or takes longer than `seconds`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        # Before the server listens, a connection to its port can connect to itself and read its own request.
        with suppress(OSError, http.client.HTTPException), opener.open(f"{address}/health", timeout=5):
            return
        time.sleep(0.1)
    raise ChildProcessError


def _show(url: str, open_browser: bool) -> None:
    print(f"MLflow: {url}", flush=True)
    if open_browser:
        webbrowser.open(url)


def _free_port(first: int) -> int:
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(("127.0.0.1", port))
            return port
    raise UserError(f"no free port from {first} on: choose another with --port")


def _end_session(server: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1] if lines else "it said nothing"

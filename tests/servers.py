"""A real MLflow server of our own, which may be stopped and started, and servers that behave badly."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from imports import ROOT
from ports import free_port

from pipeline.tracking import server


@dataclass
class Tracking:
    """An MLflow server with one worker, on a SQLite file in `folder`, unless its environment says otherwise."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self.folder}/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.folder / "kept"),
        }
        environment = environment | self.environment
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        assert server.is_up(self.process, self.address)

    def stop(self) -> None:
        if self.process is not None:
            server.end(self.process)
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def proxy(log: Path) -> Iterator[str]:
    """Optuna's gRPC storage proxy before the database that OPTUNA_STORAGE names: its address, where it answers."""
    port = free_port()
    command = [sys.executable, "-m", "pipeline.study.serve", "--port", str(port)]
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            end = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < end:
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(log.read_text())
            yield f"grpc://127.0.0.1:{port}"
        finally:
            process.kill()


@contextmanager
def s3(bucket: str, key: str) -> Iterator[tuple[dict[str, str], Any]]:
    """A server of S3 with a bucket: the environment that names it, and boto3's client of it."""
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        address = "http://{}:{}".format(*running.get_host_and_port())
        names = {"AWS_ACCESS_KEY_ID": "cvae", "AWS_SECRET_ACCESS_KEY": key, "AWS_DEFAULT_REGION": "us-east-1"}
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="cvae", aws_secret_access_key=key
        )
        client.create_bucket(Bucket=bucket)
        yield names | {"AWS_ENDPOINT_URL": address}, client
    finally:
        running.stop()


DRIPS = {"drop": b"Content-Length: 90000\r\n\r\n"}
FLOODS = {"declared": b"Content-Length: 10000000000\r\n\r\n", "endless": b"\r\n"}
STATUS = {
    "500": "500 Error", "401": "401 Unauthorized", "html": "200 OK", "redirect": "302 Found\r\nLocation: /again",
}  # fmt: skip


@contextmanager
def bad(behaviour: str) -> Iterator[str]:
    """A server that is up (`/health`) and then misbehaves at each request. Yields its address.

    `hang` never answers; a status or `html` is the answer. DRIPS send a byte now and then, FLOODS all they can.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                request = connection.recv(65536)
                if b"GET /health" in request:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
                elif behaviour == "hang":
                    ended.wait()
                elif behaviour in DRIPS | FLOODS:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n" + (DRIPS | FLOODS)[behaviour])
                    while not ended.wait(0.2 if behaviour in DRIPS else 0):
                        connection.sendall(b"1" if behaviour in DRIPS else bytes(65536))
                else:
                    body = b"<html>no"
                    head = f"HTTP/1.1 {STATUS[behaviour]}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
                    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server that answers by `handler`: its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()


@contextmanager
def failing(address: str, how: str) -> Iterator[tuple[str, threading.Event]]:
    """A proxy before a server at `address`: its own address, and an event. While that is set, requests fail.

    how: "expired", all answers are 401; "hangs", there is none, and the server gets none of them later.
    """
    fails, opener = threading.Event(), urllib.request.build_opener(urllib.request.ProxyHandler({}))

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            request = urllib.request.Request(address + self.path, body, dict(self.headers), method=self.command)
            if how == "hangs" and fails.is_set():
                while fails.is_set():
                    time.sleep(0.05)
                return
            try:
                if fails.is_set() and self.path != "/health":
                    raise urllib.error.HTTPError(address, 401, "Unauthorized", Message(), io.BytesIO(b"{}"))
                with opener.open(request, timeout=60) as found:
                    status, content = found.status, found.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            with suppress(OSError):  # the client has ended
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 (their names are http.server's)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as own:
        yield own, fails

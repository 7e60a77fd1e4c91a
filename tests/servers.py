"""A real MLflow server of our own, which may be stopped and started, and servers that behave badly."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tracking import server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


DRIPS = {
    "headers": b"X-More: ",
    "drop": b"Content-Length: 90000\r\n\r\n",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n1;",
}
FLOODS = {"declared": b"Content-Length: 10000000000\r\n\r\n", "endless": b"\r\n"}
STATUS = {
    "500": "500 Error", "401": "401 Unauthorized", "403": "403 Forbidden", "html": "200 OK",
    "redirect": "302 Found\r\nLocation: /again",
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
            time.sleep(0)

"""A private PostgreSQL server: in a temporary folder, on a free port of this machine, gone when the tests are."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, PASSWORD = "cvae", "secret"  # of the server's owner, who connects by password alone


def programs() -> Path | None:
    """The folder of initdb and postgres: on the PATH, or the newest of those that Debian keeps aside."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).parent
    kept = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in kept), key=lambda path: float(path.parent.name), default=None)


@dataclass
class Server:
    """A server that can be stopped and started. account: who runs its programs, which refuse to be root."""

    programs: Path
    folder: Path
    port: int
    account: dict[str, Any]
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Unless it runs. Raises AssertionError where it doesn't answer within a minute."""
        import psycopg

        if self._process is not None:
            return
        words = [f"-cport={self.port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.folder}"]
        self._process = self.run("postgres", "-D", str(self.folder / "data"), *words, "-cfsync=off")
        for _ in range(600):
            try:
                self.query("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        self.stop()
        raise AssertionError(f"no PostgreSQL server answers on port {self.port}")

    def stop(self) -> None:
        """At once, without telling those who are connected."""
        if self._process is not None:
            with self._process as process:
                process.send_signal(signal.SIGQUIT)
                process.wait(timeout=60)
            self._process = None

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, words: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement that runs on its own."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            result = connection.execute(words.encode())
            return result.fetchall() if result.description else []

    def run(self, program: str, *words: str) -> "subprocess.Popen[bytes]":
        plain = {"LC_ALL": "C", "PATH": os.defpath}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [str(self.programs / program), *words], cwd=self.folder, env=plain, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, **self.account,
            )  # fmt: skip


@contextmanager
def running(programs: Path) -> Iterator[Server]:
    """A new server that answers. Raises AssertionError, with what initdb says, where it can't be made."""
    with tempfile.TemporaryDirectory(prefix="cvae-postgres-") as name, socket.socket() as probe:
        folder, account = Path(name), dict[str, Any]()
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            users = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        probe.bind(("127.0.0.1", 0))
        server = Server(programs, folder, probe.getsockname()[1], account)
        probe.close()
        words = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        with server.run("initdb", "--pgdata", str(folder / "data"), *words, "--no-sync") as made:
            assert made.wait(timeout=120) == 0, (folder / "log").read_text()
        try:
            server.start()
            yield server
        finally:
            server.stop()

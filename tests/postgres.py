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

USER, PASSWORD = "cvae", "secret"  # of the server's owner, who comes in by password alone


def programs() -> Path | None:
    """The folder of initdb and postgres: on the PATH, or the newest of those that Debian keeps aside."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).parent
    kept = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in kept), key=lambda path: float(path.parent.name), default=None)


@dataclass
class Server:
    """A server that can be sent away and called back."""

    programs: Path
    folder: Path
    port: int
    _process: "subprocess.Popen[bytes] | None" = None

    def make(self) -> None:
        """Raises AssertionError, with what initdb says, where it can't."""
        (self.folder / "password").write_text(PASSWORD)
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            account = pwd.getpwnam(_unprivileged())
            for path in (self.folder, self.folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        words = ["--username", USER, "--pwfile", str(self.folder / "password"), "--auth", "scram-sha-256"]
        with self._run("initdb", "--pgdata", str(self.data), *words, "--encoding", "UTF8", "--no-sync") as made:
            assert made.wait(timeout=120) == 0, self.log.read_text()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Unless it runs. Raises AssertionError where it doesn't answer within a minute."""
        import psycopg

        if self._process is not None:
            return
        words = [f"-cport={self.port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.folder}"]
        self._process = self._run("postgres", "-D", str(self.data), *words, "-cfsync=off")
        for _ in range(600):
            try:
                self.query("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        self.stop()
        raise AssertionError(f"no PostgreSQL server answers on port {self.port}")

    def stop(self) -> None:
        """At once, and without a word to those who are connected."""
        if self._process is not None:
            with self._process as process:
                process.send_signal(signal.SIGQUIT)
                process.wait(timeout=60)
            self._process = None

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, words: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Whatever rows the statement gives, run on its own."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            result = connection.execute(words.encode())
            return result.fetchall() if result.description else []

    def _run(self, program: str, *words: str) -> "subprocess.Popen[bytes]":
        """Not as root, which these programs refuse to be."""
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(_unprivileged())
            account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        command, plain = [str(self.programs / program), *words], {"LC_ALL": "C", "PATH": os.defpath}
        with self.log.open("a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=plain, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **account
            )


@contextmanager
def running(programs: Path) -> Iterator[Server]:
    """A server that answers, until the end, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="cvae-postgres-") as folder:
        server = Server(programs, Path(folder), _free_port())
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"

"""A private PostgreSQL server: in a temporary folder, on a free port of this machine, gone when the tests are."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port

USER, PASSWORD = "cvae", "secret"  # of the server's owner, who connects by password alone


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: on the PATH, or the newest of those that Debian keeps aside."""
    found = shutil.which("initdb")
    if found and shutil.which("pg_ctl"):
        return Path(found).parent
    kept = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    return max((path.parent for path in kept), key=lambda path: float(path.parent.name), default=None)


@dataclass
class Server:
    """A server that can be stopped and started. account: who runs its programs, which refuse to be root."""

    programs: Path
    folder: Path
    port: int
    account: dict[str, Any]
    is_running: bool = False

    def start(self) -> None:
        """Unless it runs."""
        if not self.is_running:
            options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
            options += " -c autovacuum=off"  # its processes would be seen among a test's connections
            self.run("pg_ctl", "start", "--wait", "--log", str(self.folder / "server.log"), "--options", options)
            self.is_running = True

    def stop(self) -> None:
        """At once, without telling those who are connected."""
        if self.is_running:
            self.run("pg_ctl", "stop", "--mode", "immediate")
            self.is_running = False

    @contextmanager
    def away(self) -> Iterator[None]:
        """Stopped, and started again afterwards."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It accepts and never answers, and goes on afterwards."""
        first = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        others = self.query("SELECT pid FROM pg_stat_activity WHERE pid != pg_backend_pid()")
        pids = [first, *(pid for (pid,) in others)]
        try:
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, words: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement that runs on its own."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            result = connection.execute(words.encode())
            return result.fetchall() if result.description else []

    def run(self, program: str, *words: str) -> None:
        """Raises AssertionError, with what the program says, where it fails."""
        plain = {"LC_ALL": "C", "PATH": os.defpath, "PGDATA": str(self.folder / "data"), "PGCTLTIMEOUT": "300"}
        log = self.folder / "log"
        command = [str(self.programs / program), *words]
        with log.open("w") as said:
            done = subprocess.run(
                command, cwd=self.folder, env=plain, stdout=said, stderr=said, timeout=400, check=False, **self.account
            )
        assert done.returncode == 0, log.read_text()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # the process of a connection that has just been closed
        os.kill(pid, number)


@contextmanager
def running(programs: Path) -> Iterator[Server]:
    """A new server that answers."""
    with tempfile.TemporaryDirectory(prefix="cvae-postgres-") as name:
        folder, account = Path(name), dict[str, Any]()
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            users = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        server = Server(programs, folder, free_port(), account)
        words = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        server.run("initdb", *words, "--no-sync")
        try:
            server.start()
            yield server
        finally:
            server.stop()

"""Programs on a terminal of a given width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

from imports import ROOT

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(NamedTuple):
    """What a program wrote to its terminal, with colours, and its exit status."""

    status: int
    written: str

    @property
    def lines(self) -> list[str]:
        """Without colours. Of a line that was written over, what came last."""
        plain = ESCAPE.sub("", self.written).replace("\r\n", "\n")
        return [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def width(self) -> int:
        return max(map(len, self.lines))


def cvae_on_terminal(folder: Path, words: str, columns: int = 80, lines: int = 24, **environment: str) -> Screen:
    """Runs `cvae WORDS` in a folder on a terminal with so many columns and lines."""
    return on_terminal(folder, [sys.executable, "-m", "pipeline.cli", *words.split()], columns, lines, **environment)


def on_terminal(folder: Path, command: list[str], columns: int = 80, lines: int = 24, **environment: str) -> Screen:
    """Runs a command in a folder on a terminal with so many columns and lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "PYTHONUTF8")
    }
    surroundings = inherited | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen(command, cwd=folder, env=surroundings, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = bytearray()
        while chunk := _read(ours):
            written += chunk
    os.close(ours)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return Screen(process.returncode, written.decode(encoding))


def _read(terminal: int) -> bytes:
    """The next bytes; none where the last program has closed the terminal, which Linux reports as an error."""
    try:
        return os.read(terminal, 2**16)
    except OSError:
        return b""

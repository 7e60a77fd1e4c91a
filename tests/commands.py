"""What a `cvae` command answers."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Cvae = Callable[[str], Answer]


def one_line(text: str) -> str:
    return " ".join(text.split())


def assert_refused(folder: Path, cvae: Cvae, words: str, reason: str) -> None:
    """The command ends with status 2 and the reason in one line, and changes no file."""

    def files() -> list[Path]:
        return sorted(path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))  # SQLite's own

    before = files()
    answer = cvae(words)
    assert answer.status == 2
    assert reason in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert files() == before

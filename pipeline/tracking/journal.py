"""What is on its way to MLflow, on disk: nothing is lost when a process is killed or a server stays away.

Each open run has a file `.cvae/outbox/KEY-….jsonl`, which its process holds a lock on. Its first line says whose
records they are, each further line is a record or says that one has been sent. A file without a lock belongs to a
process that has ended: the next one, or `cvae sync`, sends the rest.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.base import console
from pipeline.base.files import at_home

OUTBOX = Path(".cvae/outbox")

Record = dict[str, Any]  # `do`: its kind, see records.py; the rest is what its kind needs


class Journal:
    """The records of one run by one process. head: `store`, `name`, `key`, `run_id`, and whether it `ends` the run."""

    def __init__(self, path: Path, descriptor: int, head: Record) -> None:
        self.path, self.head, self._descriptor = path, head, descriptor
        self.files = path.with_suffix("")  # a folder with copies of the files that wait
        self.waiting: dict[int, Record] = {}  # by their numbers
        self.closed = False  # no record will follow
        self.is_whole = descriptor >= 0  # whether the disk has what memory has
        self._count = 0

    @classmethod
    def new(cls, folder: Path, head: Record) -> "Journal":
        """An empty journal in `folder`. Where it can't be written, a warning says so, and memory alone holds it."""
        path = folder / f"{head['key']}-{uuid4().hex[:8]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            journal = cls(path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600), head)
            fcntl.flock(journal._descriptor, fcntl.LOCK_EX)
            if os.fstat(journal._descriptor).st_nlink == 0:  # another process took it for an ended one's
                journal.release()
                return cls.new(folder, head)
        except OSError as error:
            console.warn(f"{folder} can't be written ({error.strerror}): what MLflow doesn't get is lost at the end")
            return cls(path, -1, head)
        journal._write(head)
        return journal

    @classmethod
    def adopt(cls, path: Path) -> "Journal | None":
        """The journal of a process that has ended; None if its process lives, or another one has adopted it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # what follows is half a line
            if not lines:  # its process was killed at once
                path.unlink()
            journal = cls(path, descriptor, lines[0])
            for line in lines[1:]:
                if "sent" in line:
                    journal.waiting.pop(line["sent"], None)
                    journal.head |= {name: line[name] for name in ("run_id",) if name in line}
                else:
                    number = line.pop("number", journal._count)  # a full disk may have left some out
                    journal.waiting[number] = line
                    journal._count = number + 1
            assert journal.head.keys() >= {"store", "name", "key", "run_id", "ends"}
        except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError):
            os.close(descriptor)
            return None
        journal.closed = True
        return journal

    def append(self, record: Record) -> int:
        """Keeps a record; returns its number."""
        number, self._count = self._count, self._count + 1
        self.waiting[number] = record
        self._write(record | {"number": number})
        return number

    def sent(self, number: int, run_id: str) -> None:
        """Notes that MLflow has a record, and the id of its run. The last one of a closed journal deletes the file."""
        record = self.waiting.pop(number)
        self._write({"sent": number, "run_id": run_id})
        if "file" in record:
            (self.files / record["file"]).unlink(missing_ok=True)
        self.delete_if_done()

    def close(self) -> None:
        """No record will follow."""
        self.closed = True
        self.delete_if_done()

    def delete_if_done(self) -> None:
        if self.closed and not self.waiting and self._descriptor >= 0:
            shutil.rmtree(self.files, ignore_errors=True)
            self.path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Leaves the file to others, as the end of the process would."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def keep(self, content: bytes, suffix: str) -> str:
        """Keeps a file's content; returns its name in `files`. Raises OSError."""
        self.files.mkdir(parents=True, exist_ok=True)
        name = f"{uuid4().hex}{suffix}"
        (self.files / name).write_bytes(content)
        return name

    def _write(self, line: Record) -> None:
        """On a full disk, memory still has the line; no half of it may stay, since others follow."""
        if self._descriptor >= 0:
            size, content = os.fstat(self._descriptor).st_size, json.dumps(line).encode() + b"\n"
            try:
                whole = os.write(self._descriptor, content) == len(content)
            except OSError:
                whole = False
            if not whole:
                self.is_whole = False
                os.ftruncate(self._descriptor, size)


def waiting() -> dict[str, int]:
    """How many records wait for each store in journals of processes that have ended."""
    counts = Counter[str]()
    for path in sorted(at_home(OUTBOX).glob("*.jsonl")):
        journal = Journal.adopt(path)
        if journal is not None:
            counts[journal.head["store"]] += max(len(journal.waiting), 1)
            journal.release()
    return counts

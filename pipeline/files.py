"""Whole files or none: what is written appears under its name only once it is complete."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on success it takes the name, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path | str, content: Any) -> None:
    """Plain values as JSON, indented and ending in a line feed."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def home(root: Path) -> Path:
    """The user's own project folder, absolute: `root`, or the project in front of DVC's temporary copy of it.

    `dvc exp run --temp` and `--queue` work in `<project>/.dvc/tmp/exps/…`, which DVC deletes afterwards.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root

"""Files that are complete or absent: a file gets its name only when all of it is written."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`. It is renamed to `path` at the end, or removed after an error."""
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
    """Writes plain values as indented JSON."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path | str, tensors: "Mapping[str, Tensor]", notes: Mapping[str, str]) -> None:
    """Writes a safetensors file with `notes` as its metadata.

    The metadata is sorted, since the library's random order would make a changed file to DVC. The file is: the length
    of the header, the header as JSON, the tensors.
    """
    from safetensors.torch import save

    file = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(notes))
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    with replacing(path) as part:
        part.write_bytes(len(text).to_bytes(8, "little") + text + file[end:])


def sqlite_path(url: str) -> Path | None:
    """The file of a database `sqlite:///FILE`; None for a server."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0]) if url.startswith("sqlite:///") else None


def shown(url: str) -> str:
    """A database's address without its password, for messages."""
    return url if sqlite_path(url) else re.sub(r"//.*@", "//", url).partition("?")[0]


def home(root: Path) -> Path:
    """The user's project folder, absolute: `root`, or the project of which `root` is DVC's temporary copy.

    `dvc exp run --temp` and `--queue` work in `<project>/.dvc/tmp/exps/…`, which DVC deletes afterwards.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root

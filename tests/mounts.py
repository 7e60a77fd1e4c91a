"""Disks of few bytes and read-only folders, for a process of its own: Linux shows them to nobody else."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # of unshare(2)
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18  # of mount(2)
PAGE = 4096


@cache
def can_mount() -> bool:
    """Whether this machine lets us; containers often don't."""
    program = "import mounts, pathlib, sys; mounts.confine(pathlib.Path(sys.argv[1]), {'full': 4096, 'read-only': 0})"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, folder]
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=False).returncode == 0


def confine(folder: Path, mounts: Mapping[str, int]) -> Path:
    """Mounts for this process, by paths below `folder`: a disk of so many bytes, or for 0 the folder read-only.

    "." puts the whole folder on a disk with so many bytes left; where that lies is returned. Call it in a new process.
    """
    user, group = os.geteuid(), os.getegid()
    _call("unshare", NEW_MOUNTS | (NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    place = folder
    for name, size in mounts.items():
        path = folder / name
        path.mkdir(exist_ok=True)
        if size and name == ".":
            used = sum(-(-file.stat().st_size // PAGE) for file in folder.rglob("*") if file.is_file())
            place = folder.with_suffix(".disk")
            place.mkdir()
            _mount("tmpfs", str(place), "tmpfs", 0, f"size={used * PAGE + size}")
            shutil.copytree(folder, place, dirs_exist_ok=True)
        elif size:
            _mount("tmpfs", str(path), "tmpfs", 0, f"size={size}")
        else:
            _mount(str(path), str(path), None, BIND)
            kept = os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)  # only root may lift them
            _mount(None, str(path), None, BIND | REMOUNT | READ_ONLY | kept)
    return place


def _mount(source: str | None, place: str, kind: str | None, flags: int, options: str | None = None) -> None:
    _call("mount", *(word and word.encode() for word in (source, place, kind)), flags, options and options.encode())


def _call(name: str, *words: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

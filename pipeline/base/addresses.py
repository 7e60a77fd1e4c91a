"""Addresses of databases and servers: which file they name, and what of them may be shown."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pipeline.base.files import home


def sqlite_path(url: str) -> Path | None:
    """The file of a database `sqlite:///FILE`; None for a server."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0]) if url.startswith("sqlite:///") else None


def identity(path: Path | None) -> tuple[int, int] | None:
    """Which file or folder a path names now; None if none. Programs go on writing into a file that was deleted."""
    try:
        found = path and path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def shown(url: str) -> str:
    """A database's address without user, password and options: what messages and files may hold."""
    return url if sqlite_path(url) else re.sub(r"//.*@", "//", url, flags=re.DOTALL).partition("?")[0]


def address(url: str) -> str:
    """`shown`, for files: a SQLite file in the project folder is relative to it, so that the project may move."""
    path = sqlite_path(url)
    if path is None:
        return shown(url)
    path = home() / path
    return f"sqlite:///{path.relative_to(home()) if path.is_relative_to(home()) else path}"


def hide(text: str) -> str:
    """The text with *** for the passwords that the environment's addresses and tokens hold, however they are quoted."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) >= 4 else text.replace(f":{secret}@", ":***@")
    return text


def _secrets() -> set[str]:
    found = {os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OPTUNA_STORAGE"):
        address = os.environ.get(name, "")
        login = re.match(r"[^/]*//[^:]*:(.*)@", address, re.DOTALL)
        if login:
            found.add(login[1])
        try:
            found |= {value for key, value in parse_qsl(urlsplit(address).query) if key in ("password", "sslpassword")}
        except ValueError:  # not an address
            continue
    plain = {unquote(secret) for secret in found}
    return {form for secret in found | plain for form in (secret, quote(secret), quote(secret, safe=""))} - {""}


def for_reading(url: str) -> str:
    """The database itself, or a copy of a SQLite file that can't be written, or its folder: SQLite writes to read.

    The copy lasts as long as the process.
    """
    path = sqlite_path(url)
    if path is None or not path.exists() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return url
    folder = tempfile.TemporaryDirectory(prefix="cvae-")
    atexit.register(folder.cleanup)
    for file in (path, path.with_name(f"{path.name}-wal")):
        if file.exists():
            shutil.copyfile(file, Path(folder.name, file.name))
    return f"sqlite:///{folder.name}/{path.name}"

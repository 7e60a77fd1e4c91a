"""A deadline for any server, and what to do about one that can't be used, from what it or its driver says."""

import re
import threading
from collections.abc import Callable
from typing import TypeVar

REMEDIES = (
    ("permission denied", "grant the user of {login} rights on it"),
    ("certificate has expired", "renew the server's certificate"),
    ("mismatch, certificate|does not match host", "name the host in {variable} as its certificate does"),
    ("certificate verify failed|root certificate file|CA certificate bundle",
     "name the file of the CA that signed the server's certificate (docs/machines.md, Security)"),
    ("wrong version number|record layer failure|to HTTPS port|does not support SSL",
     "correct http or https, and the port, in {variable}, or turn TLS on at the server"),
    ("authenticat|not authorized|error code 40[13]|InvalidAccessKey|SignatureDoesNotMatch|Forbidden|credentials",
     "correct user and password in {login}"),
    ("database .* does not exist", "create the database, as with `createdb`, or correct its name in {variable}"),
    ("bucket does not exist|NoSuchBucket", "create the bucket, or correct its name"),
    ("too many clients", "use Optuna's storage proxy (docs/machines.md), or raise max_connections"),
    ("out-of-date database schema|no longer compatible with the table schema",
     "make a backup, then run `{upgrade}` with the version that is installed here"),
    ("No module named '(psycopg|grpc|boto3|dvc_s3|s3fs)|(psycopg|grpc) is not installed|dvc-s3",
     "pip install '.[{extra}]'"),
    ("too many 50[0-9] error|error code 5", "read the server's own log: it can't reach its database or its files"),
    ("refused|timeout|timed out|in time|deadline|not known|resolve|unreachable|unavailable|connect to the endpoint",
     "start the server, or correct host and port in {variable}"),
)  # fmt: skip
EXTRAS = {"psycopg": "postgres", "grpc": "grpc"}

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises TimeoutError after that time; the call is then left to itself.

    A timeout for each read would not do: a server may answer by the drop.
    """
    done: list[T | BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no answer in time: it took more than {seconds:g} s")
    if isinstance(done[0], BaseException):
        try:
            raise done[0]
        finally:
            done.clear()  # or the error would hold itself, and with it an open connection
    return done[0]


def remedy(reason: str, variable: str, upgrade: str, otherwise: str, login: str = "") -> str:
    """A remedy for `reason`; `otherwise` where it is none that we know.

    variable: the environment variable with the server's address. login: those with user and password, if they are
    others. upgrade: the command for an older schema.
    """
    for pattern, words in REMEDIES:
        if re.search(pattern, reason, re.IGNORECASE):
            extra = next((extra for module, extra in EXTRAS.items() if module in reason), "s3")
            return words.format(variable=variable, login=login or variable, upgrade=upgrade, extra=extra)
    return otherwise

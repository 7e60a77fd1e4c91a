"""Ports for servers that must be told one."""

import atexit
import socket


def free_port() -> int:
    """It stays bound, but nobody listens there until a server does: the system gives it to no other."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
    held.bind(("127.0.0.1", 0))
    atexit.register(held.close)
    return int(held.getsockname()[1])

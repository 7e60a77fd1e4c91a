"""What a `cvae` command answers."""

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Cvae = Callable[[str], Answer]

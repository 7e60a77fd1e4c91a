"""What the terminal can show: its characters, colours and width."""

import codecs
import io
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping
from typing import Any, TextIO

WIDEST = 100  # characters of a line: longer ones are hard to read
SPELLED = {
    "β": "beta", "σ": "sigma", "λ": "lambda", "μ": "mu", "η": "eta", "∣": "|", "−": "-", "–": "-", "·": "-", "×": "x",
    "÷": "/", "±": "+-", "→": "->", "★": "*", "✗": "x", "≤": "<=", "≥": ">=", "≈": "~", "○": "o",
}  # fmt: skip
COLOURS = {"red": 31, "yellow": 33, "bold": 1}


def spell_out() -> None:
    """Lets stdout and stderr write any text in any encoding: what a terminal lacks is spelled, such as β as beta."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelling, error.object[error.start : error.end])), error.end


codecs.register_error("spelled", _spell)


def _spelling(character: str) -> str:
    """`beta` for β, `e` for é, `...` for …, and `?` where nothing similar is known."""
    similar = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return SPELLED.get(character) or similar or "?"


def spelled(text: str) -> str:
    """The text as `spell_out` makes it, for what must know its length before."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "spelled").decode(encoding)


def has_colours(stream: TextIO | Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream goes to a terminal that shows colours, and its user wants them (https://no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"


def painted(text: str, colour: str, stream: TextIO | Any) -> str:
    """The text in a colour of `COLOURS` where the stream shows it."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if has_colours(stream) else text


def width() -> int:
    """Columns of the terminal; 80 where there is none, unless COLUMNS names another number."""
    return shutil.get_terminal_size().columns


def height() -> int:
    """Lines of the terminal; 24 where there is none, unless LINES names another number."""
    return shutil.get_terminal_size().lines


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines that fit the terminal and are not too long to read; all lines but the first are indented."""
    return textwrap.fill(
        spelled(text), min(width(), WIDEST), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )

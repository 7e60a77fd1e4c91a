"""What a terminal can show."""

import io
import sys

import pytest

from pipeline.base import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "β = 1 · σ → é 数"),
        ("latin-1", "beta = 1 · sigma -> é ?"),
        ("ascii", "beta = 1 - sigma -> e ?"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    terminal.spell_out()
    said = "β = 1 · σ → é 数"
    print(said, end="", flush=True)
    assert written.getvalue().decode(encoding) == text == terminal.spelled(said)


@pytest.mark.parametrize(
    ("environment", "stream", "shown"),
    [
        ({"TERM": "xterm"}, Terminal(), True),
        ({"TERM": "xterm"}, io.StringIO(), False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Terminal(), False),
        ({"TERM": "dumb"}, Terminal(), False),
        ({}, Terminal(), False),
    ],
)
def test_colours_are_for_terminals_whose_users_want_them(
    environment: dict[str, str], stream: io.StringIO, shown: bool
) -> None:
    assert terminal.has_colours(stream, environment) == shown


def test_a_paragraph_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = terminal.wrapped("Doctor  reports/figures/latent-space.png and a few words", " " * 8).splitlines()
    assert lines == ["Doctor", "        reports/figures/latent-space.png", "        and a few", "        words"]

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
    ("environment", "shown"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, False)],
)
def test_colours_are_for_terminals_whose_users_want_them(environment: dict[str, str], shown: bool) -> None:
    assert terminal.has_colours(Terminal(), environment) == shown
    assert not terminal.has_colours(io.StringIO(), environment)


def test_a_paragraph_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = terminal.wrapped("Doctor  reports/figures/latent-space.png and a few words", " " * 8).splitlines()
    assert lines == ["Doctor", "        reports/figures/latent-space.png", "        and a few", "        words"]

"""Pictures on a terminal: every pixel is at its place."""

import re

import numpy as np
import pytest

from pipeline.show import pictures

IMAGES = np.random.default_rng(0).random((2, 5, 28, 28))


def pixels(text: str) -> np.ndarray:
    """The greys of a picture in 24-bit half blocks, two rows a line."""
    rows: list[list[int]] = []
    for line in text.split("\n"):
        upper, lower, pair = list[int](), list[int](), (0, 0)
        for above, below, block in re.findall(r"\x1b\[38;2;(\d+);\d+;\d+;48;2;(\d+);\d+;\d+m|(▀)", line):
            if block:
                upper.append(pair[0])
                lower.append(pair[1])
            else:
                pair = (int(above), int(below))
        rows += [upper, lower]
    return np.array(rows)


@pytest.mark.parametrize("height", [6, 7])
def test_a_half_block_shows_two_pixels(height: int) -> None:
    ink = np.random.default_rng(1).random((height, 9))
    ink[:, 3:5] = ink[:, 2:3]  # runs of one colour, which is written once
    shown = pixels(pictures.characters(ink, "true"))
    assert np.array_equal(shown[:height], (255 * ink).round())
    assert not shown[height:].any()


def test_greys_get_lighter_with_the_ink() -> None:
    text = pictures.characters(np.linspace(0, 1, 50)[None], "greys")
    codes = [int(code) for code in re.findall(r"38;5;(\d+)", text)]
    assert (codes[0], codes[-1]) == (16, 255)
    assert codes[1:] == sorted(codes[1:])
    assert text.endswith("\x1b[0m")


def test_plain_characters_get_denser_with_the_ink() -> None:
    assert pictures.characters(np.array([[0.0, 0.5, 1.0]] * 2), "none") in (" =@", " +@")


@pytest.mark.parametrize(
    ("environment", "encoding", "kind"),
    [
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "utf-8", "true"),
        ({"TERM": "xterm-256color"}, "UTF-8", "greys"),
        ({"TERM": "xterm", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "utf-8", "none"),
        ({"TERM": "dumb"}, "utf-8", "none"),
        ({}, "utf-8", "none"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "ascii", "none"),
    ],
)
def test_the_terminals_settings_choose_the_colours(environment: dict[str, str], encoding: str, kind: str) -> None:
    assert pictures.colours(environment, encoding) == kind


def test_images_that_fit_stand_side_by_side_at_full_size() -> None:
    picture = pictures.arranged(IMAGES, 5 * 30 - 2)
    assert picture.shape == (2 * 30 - 2, 5 * 30 - 2)
    for row, column in np.ndindex(2, 5):
        shown = picture[row * 30 : row * 30 + 28, column * 30 : column * 30 + 28]
        assert np.array_equal(shown, IMAGES[row, column])


@pytest.mark.parametrize("width", [1, 31, 79, 147])
def test_a_narrow_terminal_gets_half_the_size_and_more_lines(width: int) -> None:
    picture = pictures.arranged(IMAGES, width)
    assert picture.shape[1] <= max(width, 14)
    fit = max(min(5, (width + 2) // 16), 1)
    lines = -(-5 // fit)
    assert picture.shape[0] == 2 * lines * 16 - 2
    assert picture.sum() * 4 == pytest.approx(IMAGES.sum())

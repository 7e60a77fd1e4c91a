"""Pictures on a terminal: every pixel is at its place."""

import re

import numpy as np
import pytest

from pipeline.show import pictures

IMAGES = np.random.default_rng(0).random((2, 5, 28, 28))


@pytest.mark.parametrize("height", [6, 7])
def test_a_half_block_shows_two_pixels(height: int) -> None:
    ink = np.random.default_rng(1).random((height, 9))
    ink[:, 3:5] = ink[:, 2:3]  # runs of one colour, which is written once
    shown: list[list[int]] = []
    for line in pictures.characters(ink, colours=True).split("\n"):
        runs = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m(▀+)", line)
        shown += [[int(run[half]) for run in runs for _ in run[2]] for half in (0, 1)]
    greys = np.array(shown)
    assert np.array_equal(greys[:height], np.where(ink < 0.02, 16, 232 + (23 * ink).round()))
    assert (greys[height:] == 16).all()


def test_plain_characters_get_denser_with_the_ink() -> None:
    assert pictures.characters(np.array([[0.0, 0.5, 1.0]] * 2), colours=False) in (" =@", " +@")


@pytest.mark.parametrize(
    ("environment", "encoding", "colours"),
    [
        ({"TERM": "xterm-256color"}, "UTF-8", True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", False),
        ({"TERM": "dumb"}, "utf-8", False),
        ({"TERM": "xterm"}, "ascii", False),
    ],
)
def test_the_terminals_settings_choose_the_colours(environment: dict[str, str], encoding: str, colours: bool) -> None:
    assert pictures.has_colours(environment, encoding) == colours


def test_images_that_fit_stand_side_by_side_at_full_size() -> None:
    picture = pictures.arranged(IMAGES, 5 * 30 - 2)
    assert picture.shape == (2 * 30 - 2, 5 * 30 - 2)
    for row, column in np.ndindex(2, 5):
        shown = picture[row * 30 : row * 30 + 28, column * 30 : column * 30 + 28]
        assert np.array_equal(shown, IMAGES[row, column])


@pytest.mark.parametrize(("width", "shape"), [(1, (10 * 16 - 2, 14)), (79, (2 * 16 - 2, 5 * 16 - 2))])
def test_a_narrow_terminal_gets_half_the_size_and_more_lines(width: int, shape: tuple[int, int]) -> None:
    picture = pictures.arranged(IMAGES, width)
    assert picture.shape == shape
    assert picture.sum() * 4 == pytest.approx(IMAGES.sum())

"""Pictures on a terminal and in files: every pixel is at its place."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.show import pictures

IMAGES = np.random.default_rng(0).random((2, 5, 28, 28))


def test_a_half_block_shows_two_pixels_and_a_plain_character_gets_denser_with_the_ink() -> None:
    ink = np.random.default_rng(1).random((7, 9))
    ink[:, 3:5] = ink[:, 2:3]  # runs of one colour, which is written once
    shown: list[list[int]] = []
    for line in pictures.characters(ink, colours=True).split("\n"):
        runs = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m(▀+)", line)
        shown += [[int(run[half]) for run in runs for _ in run[2]] for half in (0, 1)]
    greys = np.array(shown)
    assert np.array_equal(greys[:7], np.where(ink < 0.02, 16, 232 + (23 * ink).round()))
    assert (greys[7:] == 16).all()
    assert pictures.characters(np.array([[0.0, 0.5, 1.0]] * 2), colours=False) in (" =@", " +@")


def test_half_blocks_need_an_encoding_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for encoding, colours in (("UTF-8", True), ("ascii", False)):
        monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding=encoding, isatty=lambda: True))
        assert pictures.has_colours() == colours


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (5 * 29 - 1 + 3, 32, (28, 5, 2)), (5 * 29 - 1 + 3, 31, (14, 5, 2)), (79, 18, (14, 5, 2)), (79, 17, (14, 5, 1)),
        (60, 90, (14, 3, 2)), (1, 1, (14, 1, 1)),
    ],
)  # fmt: skip
def test_rows_fit_the_terminal_at_full_or_half_size(
    width: int, height: int, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    fit = pictures.fitting(2, 5, ["z0", "z1"], [], wraps=True)
    assert fit == expected
    drawn = pictures.screen(IMAGES, fit, ["z0", "z1"], [], colours=False)
    assert max(map(len, drawn.splitlines())) <= max(width, 14 + 3)


def test_a_screen_holds_every_pixel_beside_its_label_and_below_its_caption() -> None:
    lines = pictures.screen(IMAGES, pictures.Fit(28, 5, 2), ["z0", "z1"], list("abcde"), colours=False).splitlines()
    assert lines[0].split() == list("abcde")
    assert [line[:2] for line in lines if line[:2].strip()] == ["z0", "z1"]
    for row, column in np.ndindex(2, 5):
        expected = pictures.characters(IMAGES[row, column], colours=False).split("\n")
        block = lines[1 + row * 14 : 15 + row * 14]
        assert [line.ljust(200)[3 + column * 29 :][:28].rstrip() for line in block] == expected


def test_a_wide_row_goes_on_below_with_its_own_captions() -> None:
    lines = pictures.screen(IMAGES, pictures.Fit(14, 3, 2), [], list("abcde"), colours=False).splitlines()
    assert [line.split() for line in lines[:: 2 * 7 + 1]] == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize("scale", [1, 3])
def test_a_picture_holds_its_images_enlarged_beside_their_labels(scale: int) -> None:
    bare = pictures.picture(IMAGES, scale)
    assert bare.shape == ((2 * 30 - 2) * scale, (5 * 30 - 2) * scale)
    ink = (255 - IMAGES * 255).round()
    for row, column in np.ndindex(2, 5):
        cell = bare[row * 30 * scale :, column * 30 * scale :][: 28 * scale, : 28 * scale]
        assert np.array_equal(cell, ink[row, column].repeat(scale, 0).repeat(scale, 1))
    named = pictures.picture(IMAGES, scale, ["3", "8"], [["", "b"]])
    top, margin = (both - alone for both, alone in zip(named.shape, bare.shape, strict=True))
    assert min(top, margin) > 5
    assert np.array_equal(named[top:, margin:], bare)
    assert (named[top:, :margin] < 128).any()
    assert (named[:top] < 128).any()


def test_the_scale_of_a_large_picture_falls_and_one_that_is_too_large_is_refused() -> None:
    assert [pictures.fitting_scale(10, 10, None), pictures.fitting_scale(10, 10_000, None)] == [4, 1]
    assert pictures.fitting_scale(10, 10, 9) == 9
    with pytest.raises(UserError, match="--scale 9 makes a picture of"):
        pictures.fitting_scale(10, 10_000, 9)

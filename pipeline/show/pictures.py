"""Pictures as PNG and GIF files, or as characters on a terminal, and a picture file as numbers."""

import sys
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base import terminal
from pipeline.base.errors import UserError
from pipeline.base.files import png, replacing

SIDE = 28
ENLARGED = 4  # times, unless --scale names another number
MOST_PIXELS, USUAL_PIXELS = 100_000_000, 30_000_000  # of a picture: with --scale, and without
TEXT = 27  # nearly black
HALVED = 14  # the smaller side of an image on a terminal
BETWEEN = 1  # columns between images on a terminal
AFTER = 4  # lines of a terminal that images leave to what is said of them, and to the prompt
RAMP = " .:-=+*#%@"  # from no ink to full ink


def save_png(path: Path, picture: np.ndarray) -> None:
    """A picture (H, W) or (H, W, 3) uint8."""
    with replacing(path) as part:
        part.write_bytes(png(picture))


def save_gif(path: Path, frames: Sequence[np.ndarray], milliseconds: int) -> None:
    """Frames (H, W) uint8, each shown for so many milliseconds, in an endless loop."""
    from PIL import Image

    # With 16 greys the file is a third as large, and the difference can't be seen.
    images = [Image.fromarray(17 * (frame / 17).round().astype(np.uint8)) for frame in frames]
    with replacing(path) as part, open(part, "wb") as file:
        # Without disposal=1, Pillow merges equal frames, and the animation runs too fast.
        images[0].save(
            file, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0, disposal=1
        )


def picture(
    ink: np.ndarray, scale: int, left: Sequence[str] = (), above: Sequence[Sequence[str]] = (), gap: int = 2
) -> np.ndarray:
    """Images (R, C, 28, 28) of ink in [0, 1] as one picture (H, W) uint8, dark on white, each pixel `scale` wide.

    left: a label for each row. above: captions for the cells of each row; a row without captions needs no room.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows, columns, side, _ = ink.shape
    cell, font = (side + gap) * scale, ImageFont.load_default(size=9 + 2 * scale)
    room = 13 + 2 * scale  # for a line of text
    margin = max((round(font.getlength(text)) for text in left), default=0) + 5 * scale * bool(left)
    tops, height = [], 0
    for row in range(rows):
        height += room * any(above[row] if row < len(above) else ())
        tops.append(height)
        height += cell
    sheet = np.full((height - gap * scale, margin + columns * cell - gap * scale), 255, np.uint8)
    greys = (255 - ink * 255).round().astype(np.uint8).repeat(scale, 2).repeat(scale, 3)
    for row, column in np.ndindex(rows, columns):
        x, y, long = margin + column * cell, tops[row], side * scale
        sheet[y : y + long, x : x + long] = greys[row, column]
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for top, text in zip(tops, left, strict=False):
        draw.text((margin - 3 * scale, top + side * scale / 2), text, fill=TEXT, font=font, anchor="rm")
    for top, captions in zip(tops, above, strict=False):
        for column, text in enumerate(captions):
            middle = margin + column * cell + side * scale / 2
            draw.text((middle, top - room / 2), text, fill=TEXT, font=font, anchor="mm")
    return np.asarray(image)


def fitting_scale(rows: int, columns: int, wanted: int | None) -> int:
    """How wide a pixel is drawn: as wanted, or 4, or less in a very large picture. Raises UserError for too large."""
    pixels = rows * columns * (SIDE + 2) ** 2
    if wanted and wanted > 1 and pixels * wanted**2 > MOST_PIXELS:
        most = max(int((MOST_PIXELS / pixels) ** 0.5), 1)
        size = f"a picture of {pixels * wanted**2:,} pixels"
        raise UserError(f"--scale {wanted} makes {size}: at most {most} is possible")
    return wanted or max(min(int((USUAL_PIXELS / pixels) ** 0.5), ENLARGED), 1)


def has_colours() -> bool:
    """Whether the terminal can show 24 greys and half blocks."""
    return terminal.has_colours(sys.stdout) and (sys.stdout.encoding or "").lower().startswith("utf")


def characters(ink: np.ndarray, colours: bool) -> str:
    """A picture (H, W) of ink in [0, 1], light on dark, in H / 2 lines of W characters.

    With colours, each character is an upper half block: its colour is the upper pixel, its background the lower one.
    """
    rows = np.pad(ink, ((0, len(ink) % 2), (0, 0)))
    if not colours:
        levels = ((rows[::2] + rows[1::2]) / 2 * (len(RAMP) - 1)).round().astype(int)
        return "\n".join("".join(RAMP[level] for level in line).rstrip() for line in levels)
    # 16 is black, 232 to 255 are 24 greys from nearly black to nearly white.
    greys = np.where(rows < 0.02, 16, 232 + (23 * rows).round()).astype(int)
    lines = []
    for upper, lower in zip(greys[::2], greys[1::2], strict=True):
        runs = groupby(zip(upper, lower, strict=True))
        blocks = [f"\x1b[38;5;{above};48;5;{below}m" + "▀" * len(list(run)) for (above, below), run in runs]
        lines.append("".join(blocks) + "\x1b[0m")
    return "\n".join(lines)


class Fit(NamedTuple):
    """What fits a terminal: the side of an image in columns, at least one image of a row, and at least one row."""

    side: int
    columns: int
    rows: int


def fitting(rows: int, columns: int, left: Sequence[str], above: Sequence[str], wraps: bool) -> Fit:
    """How many images of so many rows and columns fit with their labels: at full size, if all do, or else at half.

    wraps: whether a row that is too wide goes on below, and needs its lines once more.
    """
    width, height = terminal.width() - max((len(label) + 1 for label in left), default=0), terminal.height() - AFTER
    for side in (SIDE, HALVED):
        across = min(max((width + BETWEEN) // (side + BETWEEN), 1), columns)
        blocks = -(-columns // across) if wraps else 1
        down = max((height // blocks - bool(above)) // (side // 2), 1)
        if across == columns and down >= rows:
            break
    return Fit(side, across, min(down, rows))


def screen(images: np.ndarray, fit: Fit, left: Sequence[str], above: Sequence[str], colours: bool) -> str:
    """Images (R, C, 28, 28) in [0, 1] as lines: rows with their labels, and captions above the columns.

    A row of more images than fit goes on in a second block of rows, with its own captions.
    """
    side, margin = fit.side, max(map(len, left), default=-1) + 1
    if side < SIDE:
        images = images.reshape(*images.shape[:2], side, 2, side, 2).mean((3, 5))
    lines: list[str] = []
    for start in range(0, images.shape[1], fit.columns):
        block, captions = images[:, start : start + fit.columns], above[start : start + fit.columns]
        if any(captions):
            cells = [f"{text:^{side}}" for text in captions]
            lines.append(" " * margin + (" " * BETWEEN).join(cells).rstrip())
        for row, label in zip_longest(block, left, fillvalue=""):
            strip = np.concatenate([np.pad(image, ((0, 0), (0, BETWEEN))) for image in row], 1)[:, :-BETWEEN]
            drawn = characters(strip, colours).split("\n")
            for place, line in enumerate(drawn):
                name = label if place == len(drawn) // 2 else ""
                lines.append(f"{name:>{margin - 1}} {line}" if margin else line)
    return "\n".join(lines)

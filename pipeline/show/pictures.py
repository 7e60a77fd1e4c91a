"""Pictures as PNG and GIF files, or as characters on a terminal, and a picture file as numbers."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import replacing

SIDE = 28
ENLARGED = 4  # times, in animations
RAMP = " .:-=+*#%@"  # from no ink to full ink


def save_png(path: Path, picture: np.ndarray) -> None:
    """A picture (H, W) or (H, W, 3) uint8."""
    from PIL import Image

    with replacing(path) as part, open(part, "wb") as file:
        Image.fromarray(picture).save(file, format="PNG")


def save_gif(path: Path, frames: Sequence[np.ndarray], milliseconds: int) -> None:
    """Frames (H, W) uint8, each shown for so many milliseconds, in an endless loop."""
    from PIL import Image

    # With 16 greys the file is a third as large, and the difference can't be seen.
    greys = [17 * (frame / 17).round().astype(np.uint8) for frame in frames]
    images = [Image.fromarray(grey.repeat(ENLARGED, 0).repeat(ENLARGED, 1)) for grey in greys]
    with replacing(path) as part, open(part, "wb") as file:
        # Without disposal=1, Pillow merges equal frames, and the animation runs too fast.
        images[0].save(
            file, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0, disposal=1
        )


def read_grey(path: Path) -> np.ndarray:
    """A picture file as (28, 28) float32 in [0, 1], light values high.

    Raises UserError for a file that is no picture, has another size, or would lose colours, transparency or frames.
    """
    from PIL import Image

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file: name a picture")
    try:
        with Image.open(path) as image:
            if image.size != (SIDE, SIDE):  # before it is unpacked, which a bomb would use
                size = f"{image.size[0]} × {image.size[1]}"
                raise UserError(f"{path} is {size} pixels, not {SIDE} × {SIDE}: crop and scale it first")
            frames, mode = getattr(image, "n_frames", 1), image.mode
            eight = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if mode == "I;16" else image
            grey = np.asarray(eight.convert("L"), np.float32) / 255
            *colours, alpha = np.moveaxis(np.asarray(eight.convert("RGBA"), int), -1, 0)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error})") from None
    refusals = {
        f"holds {frames} frames: give one picture": frames > 1,
        "holds more than 16 bits a pixel: save it with 8": mode in ("I", "F"),
        "is transparent in places: flatten it onto a plain background first": alpha.min() < 255,
        "is coloured: make it grey first": np.ptp(colours, axis=0).max() > 8,  # JPEG changes greys a little
    }
    for reason, applies in refusals.items():
        if applies:
            raise UserError(f"{path} {reason}")
    return grey


def on_terminal() -> bool:
    """Whether the output goes to a terminal."""
    return sys.stdout.isatty()


def has_colours(environment: Mapping[str, str] = os.environ, encoding: str | None = None) -> bool:
    """Whether the terminal can show 24 greys and half blocks."""
    unicode = (encoding or sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return unicode and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"


def characters(ink: np.ndarray, colours: bool) -> str:
    """A picture (H, W) of ink in [0, 1], light on dark, in H / 2 lines of W characters.

    With colours, each character is an upper half block: its colour is the upper pixel, its background the lower one.
    """
    rows = np.vstack([ink, np.zeros((len(ink) % 2, ink.shape[1]))])
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


def arranged(images: np.ndarray, width: int, gap: int = 2) -> np.ndarray:
    """Images (R, C, 28, 28) in [0, 1] as one picture of at most `width` columns (or one image, if that is wider).

    If a row does not fit, the images are shown at half size; if it still does not fit, the row is wrapped.
    """
    rows, columns, side, _ = images.shape
    if columns * (side + gap) - gap > width:
        images = images.reshape(rows, columns, side // 2, 2, side // 2, 2).mean((3, 5))
        side //= 2
    fit = max(min(columns, (width + gap) // (side + gap)), 1)
    padded = np.concatenate([images, np.zeros((rows, -columns % fit, side, side))], 1).reshape(-1, fit, side, side)
    cells = np.pad(padded, ((0, 0), (0, 0), (0, gap), (0, gap)))
    picture = cells.transpose(0, 2, 1, 3).reshape(len(padded) * (side + gap), fit * (side + gap))
    return picture[: -gap or None, : -gap or None]


def show(images: np.ndarray) -> None:
    """Prints images (R, C, 28, 28) in [0, 1] in the best way that the terminal supports."""
    width = shutil.get_terminal_size().columns
    print(characters(arranged(images, width), has_colours()), flush=True)

"""Pictures as PNG and GIF files, or as characters on a terminal, and a picture file as numbers."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import replacing

if TYPE_CHECKING:
    from PIL import Image

ENLARGED = 4  # times, in animations
RAMP = " .:-=+*#%@"  # from no ink to full ink
Colours = Literal["true", "greys", "none"]


def save_png(path: Path, picture: np.ndarray) -> None:
    """A picture (H, W) or (H, W, 3) uint8."""
    from PIL import Image

    with replacing(path) as part, open(part, "wb") as file:
        Image.fromarray(picture).save(file, format="PNG")


def captioned(images: np.ndarray, captions: Sequence[str], columns: int = 9, times: int = 3) -> np.ndarray:
    """Images (N, 28, 28) in [0, 1] in rows, enlarged, dark on white, each above its caption: (H, W) uint8."""
    from PIL import Image, ImageDraw

    side, room, gap = images.shape[1] * times, 14, 6
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    whole = Image.new("L", (columns * (side + gap) - gap, rows * (side + room + gap) - gap), 255)
    pen = ImageDraw.Draw(whole)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (side + gap), index // columns * (side + room + gap)
        grey = (255 - 255 * image).round().astype(np.uint8).repeat(times, 0).repeat(times, 1)
        whole.paste(Image.fromarray(grey), (left, top))
        pen.text((left + side // 2, top + side + room // 2), caption, fill=60, anchor="mm")
    return np.asarray(whole)


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


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays, compressed."""
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_grey(path: Path, side: int) -> tuple[np.ndarray, list[str]]:
    """A picture file as (side, side) float32 in [0, 1], light values high, and notes on each conversion.

    Raises UserError for a file that is no picture, has another size, or would lose colours, transparency or frames.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.size != (side, side):
                width, height = image.size
                raise UserError(f"{path} is {width} × {height} pixels, not {side} × {side}: crop and scale it first")
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise UserError(f"{path} holds {frames} frames: give one picture")
            return _grey(path, image)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no picture that can be read ({reason})") from None


def _grey(path: Path, image: "Image.Image") -> tuple[np.ndarray, list[str]]:
    notes = []
    if image.mode.startswith("I"):  # 16 bits, which Pillow may widen to 32
        values = np.asarray(image).astype(np.float64) / 65535
        if not 0 <= values.min() <= values.max() <= 1:
            raise UserError(f"{path} holds values beyond 16 bits: save it with 8 bits a pixel")
        return values.astype(np.float32), ["16 bits a pixel, scaled to 8"]
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point values: save it with 8 bits a pixel")
    if image.has_transparency_data:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise UserError(f"{path} is transparent in places: flatten it onto a plain background first")
        notes.append("opaque, alpha ignored")
    if image.mode not in ("1", "L", "LA"):
        colours = np.asarray(image.convert("RGB")).astype(int)
        if (colours.max(-1) - colours.min(-1)).max() > 8:  # JPEG changes greys a little
            raise UserError(f"{path} is coloured: make it grey first")
        notes.append("stored in colour, read as grey")
    return np.asarray(image.convert("L"), np.float32) / 255, notes


def on_terminal() -> bool:
    """Whether the output goes to a terminal."""
    return sys.stdout.isatty()


def colours(environment: Mapping[str, str] = os.environ, encoding: str | None = None) -> Colours:
    """What the terminal can show: 24-bit colours, 24 greys, or plain characters alone."""
    unicode = (encoding or getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").startswith("utf")
    if not unicode or environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb":
        return "none"
    return "true" if environment.get("COLORTERM") in ("truecolor", "24bit") else "greys"


def terminal_width() -> int:
    """Columns of the terminal; 80 where it does not say."""
    return shutil.get_terminal_size((80, 24)).columns


def characters(ink: np.ndarray, kind: Colours) -> str:
    """A picture (H, W) of ink in [0, 1], light on dark, in H / 2 lines of W characters.

    Each character is an upper half block: its colour is the upper pixel, its background the lower one.
    """
    rows = np.vstack([ink, np.zeros((len(ink) % 2, ink.shape[1]))])
    upper, lower = rows[::2], rows[1::2]
    if kind == "none":
        levels = ((upper + lower) / 2 * (len(RAMP) - 1)).round().astype(int)
        return "\n".join("".join(RAMP[level] for level in line).rstrip() for line in levels)
    return "\n".join(_half_blocks(*pair, kind) for pair in zip(upper, lower, strict=True))


def _half_blocks(upper: np.ndarray, lower: np.ndarray, kind: Colours) -> str:
    parts, before = [], ""
    for above, below in zip(upper, lower, strict=True):
        style = f"\x1b[38;{_colour(above, kind)};48;{_colour(below, kind)}m"
        parts.append(("" if style == before else style) + "▀")
        before = style
    return "".join(parts) + "\x1b[0m"


def _colour(value: float, kind: Colours) -> str:
    if kind == "true":
        grey = round(255 * float(value))
        return f"2;{grey};{grey};{grey}"
    # 16 is black, 232 to 255 are 24 greys from nearly black to nearly white.
    return f"5;{16 if value < 0.02 else 232 + round(23 * float(value))}"


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
    print(characters(arranged(images, terminal_width()), colours()), flush=True)

"""A picture file of any size and kind as 28 × 28 grey pixels."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.show.pictures import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

LONG = 40 * SIDE  # pixels: a larger picture is first made smaller, to use little memory


class Read(NamedTuple):
    """grey: (28, 28) float32 in [0, 1], light values high. done: what was done to the picture, in words."""

    grey: np.ndarray
    done: list[str]


def read_grey(path: Path) -> Read:
    """A picture file, made grey, padded to a square in the colour of its border, and scaled to 28 × 28.

    Raises UserError for a file that is no picture, or has so many pixels that it may be made to fill the memory.
    """
    from PIL import Image, ImageOps

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file: name a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                done = ["the first of its frames"] if getattr(file, "n_frames", 1) > 1 else []
                turned = ImageOps.exif_transpose(file)
                width, height = turned.size
                image = _eight_bits(turned)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Exception as error:  # each format's reader has errors of its own
        raise UserError(f"{path} is no picture that can be read ({error})") from None
    image, flattened = _flattened(image)
    if flattened:
        done.append(f"put on {flattened}")
    if np.ptp(np.asarray(image.resize((SIDE, SIDE)), int), axis=2).max() > 8:  # JPEG changes greys a little
        done.append("made grey")
    grey = image.convert("L")
    if (width, height) != (SIDE, SIDE):
        square = " padded to a square," if width != height else ""
        done.append(f"{width} × {height} pixels,{square} scaled to {SIDE} × {SIDE}")
        grey = _scaled(grey)
    return Read(np.asarray(grey, np.float32) / 255, done)


def _eight_bits(image: "Image") -> "Image":
    """A picture of 16 or 32 bits a pixel with 8: integers by their range, other numbers from their lowest to highest.

    Raises ValueError where a pixel is not finite.
    """
    from PIL import Image

    is_16, has_eight = image.mode.startswith("I;16"), not image.mode.startswith(("I", "F"))
    if not has_eight:
        image = (image.convert("I") if is_16 else image).convert("F")
    elif image.mode == "P":
        image = image.convert("RGBA")
    if max(image.size) > LONG:
        image.thumbnail((LONG, LONG), Image.Resampling.BOX)
    if has_eight:
        return image.convert("RGBA")
    values = np.asarray(image, float)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not finite")
    low, high = (0.0, 65535.0) if is_16 else (values.min(), values.max())
    share = (values - low) / max(high - low, 1e-12)
    return Image.fromarray((255 * share).round().astype(np.uint8)).convert("RGBA")


def _flattened(image: "Image") -> "tuple[Image, str]":
    """A picture (RGBA) as RGB. If parts are transparent, on the ground that its visible parts differ from most."""
    from PIL import Image

    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image.convert("RGB"), ""
    seen = np.asarray(image.convert("L").resize((SIDE, SIDE)), float)
    weight = np.asarray(alpha.resize((SIDE, SIDE)), float)
    light = (seen * weight).sum() > 127.5 * weight.sum()
    ground = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(ground, image).convert("RGB"), "black" if light else "white"


def _scaled(grey: "Image") -> "Image":
    """A grey picture in the middle of a square, by the mean of the pixels that become one."""
    from PIL import Image, ImageOps

    pixels, long = np.asarray(grey), max(grey.size)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = ImageOps.pad(grey, (long, long), color=int(np.median(border)))
    return square.resize((SIDE, SIDE), Image.Resampling.BOX)

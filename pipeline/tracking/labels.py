"""Labels on a picture of digits: MLflow's page shows pictures without a caption."""

from collections.abc import Sequence

import numpy as np

SCALE = 3  # times; a tile of the page shows half of it, the full picture is for a closer look
LETTERS = 28  # pixels; half of it can be read


def labelled(picture: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> np.ndarray:
    """A sheet (H, W) uint8, dark on white, larger, with a name above each column and before each row.

    The second half of the columns stands below the first: a tile of the page is nearly square.
    """
    half, middle = len(columns) // 2, picture.shape[1] // 2
    parts = (picture[:, :middle], columns[:half]), (picture[:, -middle:], columns[half:])
    return np.concatenate([_part(part, names, rows) for part, names in parts])


def _part(picture: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(LETTERS)
    left = max(round(font.getlength(name)) for name in rows) + LETTERS // 2
    top = LETTERS + LETTERS // 4
    height, width = (SCALE * size for size in picture.shape)
    whole = Image.new("L", (left + width, top + height), 255)
    whole.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(whole)
    for index, name in enumerate(columns):
        draw.text((left + (index + 0.5) * width / len(columns), top // 2), name, fill=0, font=font, anchor="mm")
    for index, name in enumerate(rows):
        draw.text((0, top + (index + 0.5) * height / len(rows)), name, fill=0, font=font, anchor="lm")
    return np.asarray(whole)

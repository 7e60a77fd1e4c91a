"""Labels on a strip of samples: MLflow's page shows pictures without a caption."""

from collections.abc import Sequence

import numpy as np

ROWS = ("prior", "fitted")  # as pipeline/model/samples.py draws them
SCALE = 3  # times; a tile of the page shows half of it, the full picture is for a closer look
LETTERS = 28  # pixels; half of it can be read


def labelled(strip: np.ndarray) -> np.ndarray:
    """The strip (H, W) uint8, dark on white, larger, with a digit above each column and a sampler before each row.

    The digits from 5 on stand below the others: a tile of the page is nearly square.
    """
    middle = strip.shape[1] // 2
    return np.concatenate([_part(strip[:, :middle], "01234"), _part(strip[:, -middle:], "56789")])


def _part(picture: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(LETTERS)
    left = max(round(font.getlength(name)) for name in ROWS) + LETTERS // 2
    top = LETTERS + LETTERS // 4
    height, width = (SCALE * size for size in picture.shape)
    whole = Image.new("L", (left + width, top + height), 255)
    whole.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(whole)
    for index, name in enumerate(columns):
        draw.text((left + (index + 0.5) * width / len(columns), top // 2), name, fill=0, font=font, anchor="mm")
    for index, name in enumerate(ROWS):
        draw.text((0, top + (index + 0.5) * height / len(ROWS)), name, fill=0, font=font, anchor="lm")
    return np.asarray(whole)

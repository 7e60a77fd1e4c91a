"""The page to play with: one HTML file that holds a network, its figures and the program that draws them.

The page's own text and program are in the folder `explore/` beside this file. The file needs no server and no network.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import files

TEMPLATES = Path(__file__).parent / "explore"
PARTS = ("page.css", "network.js", "digits.js", "drawing.js", "page.js")  # each replaces a comment in page.html


def page(data: Mapping[str, Any]) -> str:
    """The page's HTML; data: what page.js reads, as JSON allows it."""
    html = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    for name in PARTS:
        html = html.replace(f"/* {name} */", (TEMPLATES / name).read_text(encoding="utf-8"))
    return html.replace("/* data */", json.dumps(data, allow_nan=False).replace("<", "\\u003c"))


def steps(numbers: np.ndarray, bits: int) -> dict[str, Any]:
    """Numbers as whole steps, in 8 to 16 bits each. Each row, which is the last axis, has a step size of its own.

    An error is at most half a step: 1 ÷ (2^bits − 2) of the largest number of its row.
    """
    rows = numbers.reshape(-1, numbers.shape[-1]).astype(np.float64)
    most = 2 ** (bits - 1) - 1
    sizes = (np.abs(rows).max(1) / most).clip(1e-30).astype("<f4")
    whole = (rows / sizes[:, None]).round().clip(-most, most).astype(np.int32) + most
    ones = (whole[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(ones.astype(np.uint8))
    return {"bits": bits, "sizes": text(sizes.tobytes()), "steps": text(packed.tobytes())}


def text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def png(picture: np.ndarray) -> str:
    """A picture (H, W) uint8 as a PNG file in base64."""
    return text(files.png(picture, optimize=True))

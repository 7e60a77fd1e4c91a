"""The page to play with: one HTML file that holds a network, its figures and the program that draws them.

The page's own text and program are in the folder `explore/` beside this file. The file needs no server and no network.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATES = Path(__file__).parent / "explore"
PARTS = ("page.css", "network.js", "page.js")  # each replaces the comment with its name in page.html


def page(data: Mapping[str, Any]) -> str:
    """The page's HTML; data: what page.js reads, as JSON allows it."""
    html = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    for name in PARTS:
        html = html.replace(f"/* {name} */", (TEMPLATES / name).read_text(encoding="utf-8"))
    return html.replace("/* data */", json.dumps(data, allow_nan=False).replace("<", "\\u003c"))


def layer(weights: np.ndarray, bias: np.ndarray) -> dict[str, str]:
    """A linear layer, weights (outputs, inputs), in half precision."""
    return {"weights": halves(weights), "bias": halves(bias)}


def small_layer(weights: np.ndarray, bias: np.ndarray) -> dict[str, str]:
    """The same in half the size: a weight is a number of steps, in 8 bits. Each output has a step size of its own.

    A weight's error is at most 1/254 of the largest weight of its output.
    """
    sizes = (np.abs(weights).max(1) / 127).clip(2.0**-14).astype("<f2")
    steps = (weights / sizes[:, None].astype(np.float32)).round().clip(-127, 127).astype(np.int8)
    return {"weights": text(steps.tobytes()), "step_sizes": halves(sizes), "bias": halves(bias)}


def halves(numbers: np.ndarray) -> str:
    """Any array as half precision numbers, little endian, in base64."""
    return text(np.ascontiguousarray(numbers, dtype="<f2").tobytes())


def text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def png(picture: np.ndarray) -> str:
    """A picture (H, W) uint8 as a PNG file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return text(file.getvalue())

"""What the tests of figures share."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

SOURCE = np.random.default_rng(0)


def sheet(rows: int = 10, columns: int = 4) -> np.ndarray:
    return SOURCE.integers(0, 256, (30 * rows - 2, 30 * columns - 2), dtype=np.uint8)


def words(figure: Figure) -> str:
    """All text of a figure."""
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in (*axes.texts, *axes.get_yticklabels())]
    return "\n".join(found)


def check_drawn(figure: Figure) -> None:
    """The figure can be drawn, and is not one blank colour."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=40)  # sizes are in inches: the layout is that of any other dpi
    low, high = Image.open(content).convert("L").getextrema()
    assert low != high

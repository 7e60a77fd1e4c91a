"""Saved figures look like drawn ones, in few colours."""

from pathlib import Path

import numpy as np
from figures import SOURCE, sheet
from PIL import Image

from pipeline.show import model
from pipeline.show.style import save


def test_a_saved_figure_looks_like_the_drawn_one_in_few_colours(tmp_path: Path) -> None:
    picture = sheet(10, 8)
    model.digits(picture, "a title").savefig(tmp_path / "plain.png", format="png")
    drawn = save(model.digits(picture, "a title"), tmp_path / ".few.png.part")  # as a stage names it first
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / ".few.png.part") as few:
        difference = np.abs(np.asarray(plain.convert("RGB")).astype(int) - np.asarray(few.convert("RGB")))
        assert few.mode == "P"
        assert np.array_equal(np.asarray(few.convert("RGB")), drawn)
    assert difference.max() <= 255 / 31 / 2 + 1
    assert drawn[0, 0].tolist() == [255, 255, 255]
    assert (tmp_path / ".few.png.part").stat().st_size < (tmp_path / "plain.png").stat().st_size / 1.5


def test_a_figure_with_many_colours_keeps_them_all(tmp_path: Path) -> None:
    """A palette of 256 gave 0 and 9 one colour in the legend of the latent space."""
    drawn = save(model.latent_space(SOURCE.normal(size=(3000, 4)), SOURCE.integers(0, 10, 3000)), tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as saved:
        assert np.array_equal(np.asarray(saved.convert("RGB")), drawn)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 256

"""Records the page to play with into docs/explore.gif, which README shows; it needs Chromium and a minute.

python -m benchmarks.explore_gif
"""

import io
import math
import shutil

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline.base.paths import EXPLORE

GIF = "docs/explore.gif"
FRAMES = 28  # along the track and back
WIDTH = 640  # of the picture
COLOURS = 128  # of the picture


def frame(page: Page, share: float) -> Image.Image:
    """The slider and the digits, with the slider at this share of its way."""
    page.locator("#weight").fill(str(round(1000 * share)))
    page.wait_for_timeout(150)
    parts = [
        Image.open(io.BytesIO(page.locator(place).screenshot())).convert("RGB")
        for place in ("#weight-section", "#digits-title + p + .columns")
    ]
    height = sum(part.height for part in parts) + 16
    whole = Image.new("RGB", (parts[0].width, height), "white")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], ((whole.width - parts[1].width) // 2, parts[0].height + 16))
    return whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)


def main() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(EXPLORE.resolve().as_uri())
        page.check("input[value=prior]")
        shares = [0.5 - 0.48 * math.cos(2 * math.pi * place / FRAMES) for place in range(FRAMES)]
        frames = [frame(page, share) for share in np.round(shares, 3)]
        browser.close()
    ends = Image.fromarray(np.concatenate([np.asarray(frames[place]) for place in (0, FRAMES // 2)]))
    palette = ends.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    first, *rest = [each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames]
    first.save(GIF, save_all=True, append_images=rest, duration=180, loop=0, optimize=True)
    print(f"{GIF} written")


if __name__ == "__main__":
    main()

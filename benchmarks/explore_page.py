"""What a frame of the page to play with takes, and how far its pixels are from torch's; it needs Chromium and a minute.

python -m benchmarks.explore_page      after `dvc repro explore`
"""

import shutil

import numpy as np
import torch
from playwright.sync_api import sync_playwright

from pipeline.base.paths import CURVE, EXPLORE
from pipeline.stages.saved import load_curve

FRAMES = 100
SLIDE = """share => { // what a move of the slider costs: ten digits, their figures, and one round of the drawing
  element('weight').value = 1000 * share;
  element('weight').dispatchEvent(new Event('input'));
  frame();
}"""
DECODE = "([z, weight]) => Array.from(network.decode(new Float32Array(z), digitLabels, weight))"


def main() -> None:
    model, _ = load_curve(CURVE)
    z, labels = torch.randn(10, model.latent_size, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    with sync_playwright() as started:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})  # CPU seconds, whatever else runs

        def milliseconds() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return next(1000 * one["value"] for one in metrics if one["name"] == "TaskDuration")

        page.goto(EXPLORE.resolve().as_uri())
        shares = np.linspace(0, 1, FRAMES).tolist()
        taken = []
        for share in [*shares, *shares]:
            before = milliseconds()
            page.evaluate(SLIDE, share)
            taken.append(milliseconds() - before)
        frames = np.array(taken[FRAMES:])  # compiled by then
        apart = []
        for weight in np.geomspace(*model.span, 61)[:-1].tolist():
            ours = np.array(page.evaluate(DECODE, [z.flatten().tolist(), weight])).reshape(10, 784)
            apart.append(np.abs(ours - model.at(weight).decode(z, labels).sigmoid().numpy()).max())
        browser.close()
    print(
        f"a frame takes {np.median(frames):.1f} ms of CPU in the median, 95 % at most {np.quantile(frames, 0.95):.1f}"
    )
    print(f"pixels differ from torch's by at most {max(apart):.1e}, at {len(apart)} weights")


if __name__ == "__main__":
    main()

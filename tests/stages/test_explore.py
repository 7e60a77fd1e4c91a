"""The page to play with, in a browser: its own program draws what torch draws, and its controls do what they say."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from browser import browser_page, needs_chromium
from latents import normal
from settings import OBJECTIVE, model_params

from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.model import multirate
from pipeline.model.cvae import resolve
from pipeline.model.multirate import MultiRate
from pipeline.show.page import page, png
from pipeline.stages import playing

if TYPE_CHECKING:
    from playwright.sync_api import Page

WEIGHTS = [0.01, 0.1, 0.5, 1.0, 4.0, 30.0]
LATENTS = 5
pytestmark = [needs_chromium, pytest.mark.slow]


def told(**changes: Any) -> MultiRate:
    """A multi-rate CVAE whose weights matter, as a trained one's do."""
    shape = {"latent_size": LATENTS, "encoder_hidden": (40, 30), "decoder_hidden": (30, 40)} | changes
    model = multirate.build(resolve(model_params(**shape)), (0.01, 30.0), 0.5, seed=0)
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            weight.add_(0.15 * normal(*weight.shape, seed=place))
    return model.requires_grad_(requires_grad=False)


def digits(rows: int) -> Split:
    images = (normal(rows, 1, 28, 28).sigmoid() * 255).byte()
    return Split(images, torch.arange(rows) % 10)


def contents(model: MultiRate) -> dict[str, Any]:
    names = ("kl", "reconstruction", "active_units", *(f"{sampler}/{metric}" for sampler in ("prior", "fitted")
             for metric in ("frechet", "class_accuracy", "diversity")))  # fmt: skip
    curve = pd.DataFrame({f"validation/{name}": [float(10 + place) for place in range(len(WEIGHTS))] for name in names})
    curve.insert(0, "kl_weight", WEIGHTS)
    best = {"uses": {"draw_fitted": {"interval": [0.1, 0.5]}}}
    picture = png(np.zeros((28, 280), np.uint8))
    runs = [{"name": f"β = {weight}", "words": "", "png": picture} for weight in WEIGHTS]
    split = digits(400)
    return playing.content(model, {"objective": OBJECTIVE}, split, split, curve, {"collapse": 45.2}, best, runs)


@pytest.fixture(scope="module")
def model() -> MultiRate:
    return told()


@pytest.fixture(scope="module")
def file(model: MultiRate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_text(page(contents(model)), encoding="utf-8")
    return path


@pytest.fixture
def shown(file: Path) -> "Iterator[Page]":
    with browser_page() as opened:
        opened.goto(file.as_uri())
        opened.wait_for_timeout(200)
        yield opened


def digit_pixels(shown: "Page", place: str = "#digits") -> np.ndarray:
    """The grey values (N, 784) of the canvases of a place, after the next frames."""
    shown.wait_for_timeout(400)
    script = """place => [...document.querySelectorAll(place + ' canvas')].filter(c => !c.hidden).map(canvas =>
        [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0))"""
    return np.array(shown.evaluate(script, place))


def slide(shown: "Page", weight: float) -> None:
    share = shown.evaluate("weight => Math.round(1000 * shareOfTrack(weight))", weight)
    shown.locator("#weight").fill(str(share))


def test_pixels_are_torch_s(shown: "Page", model: MultiRate) -> None:
    """1e-3 at the weights whose layers the page holds, in half precision; between them it interpolates."""
    z, labels = normal(10, LATENTS).float(), torch.arange(10)
    for weight, off in [(0.1, 1e-3), (4.0, 1e-3), (30.0, 1e-3), (0.25, 5e-2)]:
        script = "([z, weight]) => Array.from(network.decode(new Float32Array(z), digitLabels, weight))"
        ours = np.array(shown.evaluate(script, [z.flatten().tolist(), weight])).reshape(10, 784)
        theirs = model.at(weight).decode(z, labels).sigmoid().numpy()
        assert np.abs(ours - theirs).max() < off


def test_the_encoder_is_torch_s_up_to_8_bits(shown: "Page", model: MultiRate) -> None:
    images, labels = normal(10, 1, 28, 28).float().sigmoid(), torch.arange(10)
    script = "([x, weight]) => Object.values(network.encode(new Float32Array(x), digitLabels, weight)).map(v => [...v])"
    mu, log_var = shown.evaluate(script, [images.flatten().tolist(), 1.0])
    q = model.at(1.0).encode(images, labels)
    assert np.abs(np.array(mu) - q.mu.numpy().ravel()).max() < 0.05 * q.mu.abs().max()
    assert np.abs(np.array(log_var) - q.log_var.numpy().ravel()).max() < 0.05 * q.log_var.abs().max()


def test_a_latent_is_one_of_the_fitted_density_s(shown: "Page", model: MultiRate) -> None:
    fitted = playing.densities(model, WEIGHTS[:1], digits(400), "grey", 10)[0]
    noise = normal(LATENTS).float()
    script = "([w, noise]) => [...densities.at(w).sample(3, 0, new Float32Array(noise))]"
    ours = np.array(shown.evaluate(script, [WEIGHTS[0], noise.tolist()]))
    assert np.allclose(ours, (fitted.means[3, 0] + fitted.roots[3, 0] @ noise).numpy(), atol=2e-2)
    script = "([w, noise]) => [...densities.at(w).style(3, new Float32Array(noise))]"
    mean, covariance = fitted.moments()
    turned = torch.linalg.eigh(covariance[3])
    root = turned.eigenvectors * turned.eigenvalues.sqrt() @ turned.eigenvectors.T
    ours = np.array(shown.evaluate(script, [WEIGHTS[0], noise.tolist()]))
    assert np.allclose(ours, (mean[3] + root @ noise).numpy(), atol=3e-2)


def test_the_weight_the_sampler_the_seed_and_latents_change_the_digits(shown: "Page") -> None:
    before = digit_pixels(shown)
    slide(shown, 4.0)
    assert shown.text_content("#weight-value") == "3.99"  # the slider's nearest step
    assert shown.locator("#weight").get_attribute("aria-valuetext") == "beta 3.99"
    assert "14" in (shown.text_content("#figures") or "")  # the curve's figure at its fifth weight
    at_four = digit_pixels(shown)
    shown.check("input[value=prior]")
    from_prior = digit_pixels(shown)
    shown.click("#new-seed")
    other_seed = digit_pixels(shown)
    shown.click("summary")
    shown.locator("#latents input").first.fill("3")
    moved = digit_pixels(shown)
    seen = [before, at_four, from_prior, other_seed, moved]
    assert all(np.abs(one - other).max() > 5 for one, other in itertools.pairwise(seen))
    shown.click("#reset-latents")
    assert np.array_equal(digit_pixels(shown), other_seed)
    shown.fill("#seed", "0")
    assert np.array_equal(digit_pixels(shown), from_prior)


def test_same_style_gives_all_digits_the_same_latents(shown: "Page") -> None:
    shown.check("input[value=prior]")
    shown.check("#same-style")
    z = np.array(shown.evaluate("() => [...digitLatents()]")).reshape(10, LATENTS)
    assert (z == z[0]).all()


def test_the_track_shows_the_study_s_interval_and_the_words_the_collapse(shown: "Page") -> None:
    assert shown.locator("#marks .band").count() == 1
    words = shown.text_content("#marks-words") or ""
    assert "0.1 to 0.5" in words
    assert "45.2" in words
    shown.check("input[value=prior]")  # whose interval this study does not have
    assert shown.locator("#marks .band").count() == 0


def test_a_drawing_is_read_again_and_its_hidden_part_completed(shown: "Page") -> None:
    shown.click("#clear")
    shown.wait_for_timeout(400)
    assert "Draw something first" in (shown.text_content("#labels-words") or "")
    box = shown.locator("#pad").bounding_box()
    assert box is not None
    shown.mouse.move(box["x"] + 140, box["y"] + 60)
    shown.mouse.down()
    shown.mouse.move(box["x"] + 140, box["y"] + 220, steps=4)
    shown.mouse.up()
    shown.wait_for_timeout(400)
    assert shown.evaluate("() => state.ink.reduce((sum, value) => sum + value)") > 20
    assert "the network reads a" in (shown.text_content("#labels-words") or "")
    whole = digit_pixels(shown, "#labels")
    assert len(whole) == 10
    shown.locator("#labels button").nth(4).click()
    assert len(np.unique(digit_pixels(shown, "#completions"), axis=0)) > 1  # samples of the drawing's latents
    shown.locator("#labels button").nth(4).click()
    shown.click("#hide-half")
    shown.wait_for_timeout(400)
    assert "visible part" in (shown.text_content("#labels-words") or "")
    completed = digit_pixels(shown, "#labels")
    visible = completed.reshape(10, 28, 28)[:, :10]
    assert (visible == visible[0]).all()  # of a completion, the visible part is the drawing's own
    shown.locator("#labels button").nth(4).click()
    shown.wait_for_timeout(400)
    assert "Six completions as a 4" in (shown.text_content("#completions-title") or "")
    assert len(np.unique(digit_pixels(shown, "#completions"), axis=0)) > 1


def test_it_works_by_keyboard(shown: "Page") -> None:
    shown.focus("#weight")
    before = shown.text_content("#weight-value")
    shown.keyboard.press("ArrowRight")
    assert shown.text_content("#weight-value") != before
    shown.click("#clear")
    shown.focus("#pad")
    for key in ("ArrowDown", " ", "ArrowDown", " "):
        shown.keyboard.press(key)
    assert shown.evaluate("() => state.ink.some(value => value > 0.5)")


def test_runs_stand_side_by_side_as_ticked(shown: "Page") -> None:
    visible = shown.locator("#runs figure:visible")
    count = visible.count()
    assert 0 < count < len(WEIGHTS)
    shown.locator("#run-choices input:not(:checked)").first.check()
    assert visible.count() == count + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1600])
def test_it_fits_any_width_and_its_words_can_be_read(file: Path, width: int, scheme: str) -> None:
    """Contrast of at least 4.5 : 1 (WCAG 2.1) between the colours of text and of what lies behind it."""
    with browser_page(width, scheme) as opened:
        opened.goto(file.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        colours = opened.evaluate("""() => ['--ink', '--quiet', '--accent', '--paper', '--card'].map(name => {
            const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
            return [1, 3, 5].map(at => parseInt(value.slice(at, at + 2), 16) / 255) })""")
    light = [sum(share * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
                 for share, c in zip((0.2126, 0.7152, 0.0722), colour, strict=True)) for colour in colours]  # fmt: skip
    for text in light[:3]:
        for behind in light[3:]:
            assert (max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5


def test_a_network_that_the_page_cannot_show_is_refused() -> None:
    with pytest.raises(UserError, match="conditioning"):
        playing.network(told(conditioning="sum"), WEIGHTS)

"""The page to play with, in a browser: its own program draws what torch draws, and its controls do what they say."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from browser import LEAST_CONTRAST, Firefox, chromium, firefox_page, nameless, needs_chromium, needs_firefox, page_of
from latents import normal
from settings import OURS, model_params, objective_params

from pipeline.base.errors import UserError
from pipeline.base.params import parse
from pipeline.base.paths import EXPLORE
from pipeline.data.splits import Split
from pipeline.model import multirate
from pipeline.model.cvae import resolve
from pipeline.model.density import Densities, Density
from pipeline.model.multirate import MultiRate
from pipeline.show.page import page, png
from pipeline.stages import explore, playing
from pipeline.weight import curve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WEIGHTS = [0.01, 0.1, 0.5, 1.0, 4.0, 30.0]
LATENTS = 5
PIXELS = """place => [...document.querySelectorAll(place + ' canvas')].filter(c => !c.hidden).map(canvas =>
    [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0))"""
SETTLED = "() => !pending && state.chains.round === ROUNDS"
pytestmark = [needs_chromium, pytest.mark.slow]


def told(**changes: Any) -> MultiRate:
    """A multi-rate CVAE whose weights matter, as a trained one's do."""
    shape = {"latent_size": LATENTS, "encoder_hidden": (40, 30), "decoder_hidden": (30, 40)} | changes
    model = multirate.build(resolve(model_params(**shape)), (0.01, 30.0), 0.5, seed=0)
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            weight.add_(0.15 * normal(*weight.shape, seed=place))
    return model.requires_grad_(requires_grad=False)


def digits() -> Split:
    """One picture of each."""
    return Split((normal(10, 1, 28, 28).sigmoid() * 255).byte(), torch.arange(10))


def contents(model: MultiRate, fitted: Densities) -> dict[str, Any]:
    table = pd.DataFrame({name: [float(10 + place) for place in range(len(WEIGHTS))] for name in playing.FIGURES})
    table.insert(0, "kl_weight", WEIGHTS)
    best = {"uses": {"draw_fitted": {"interval": [0.1, 0.5]}}}
    picture = png(np.zeros((28, 280), np.uint8))
    runs = [{"name": f"β = {weight}", "words": "", "png": picture} for weight in WEIGHTS]
    return playing.content(model, fitted, digits(), table, {"collapse": 45.2}, best, runs)


def density(*shape: int) -> Density:
    """Random densities. shape: (…, classes, components)."""
    roots = 0.2 * normal(*shape, LATENTS, LATENTS, seed=1).tril(-1) + torch.eye(LATENTS)
    return Density(torch.full(shape, 1 / shape[-1]), normal(*shape, LATENTS).float(), roots.float())


@pytest.fixture(scope="module")
def model() -> MultiRate:
    return told()


@pytest.fixture(scope="module")
def file(model: MultiRate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    fitted = Densities(torch.tensor(WEIGHTS), density(len(WEIGHTS), 10, 2))
    path.write_text(page(contents(model, fitted)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with firefox_page(tmp_path_factory.mktemp("firefox")) as started:
        yield started


@pytest.fixture
def shown(browser: "Browser", file: Path) -> "Iterator[Page]":
    with page_of(browser) as opened:
        opened.goto(file.as_uri())
        settle(opened)
        yield opened


def settle(shown: "Page") -> None:
    """Waits until all frames are drawn and all rounds of the reconstructions are done."""
    shown.wait_for_function(SETTLED)


def text(shown: "Page", selector: str) -> str:
    settle(shown)
    return shown.text_content(selector) or ""


def digit_pixels(shown: "Page", place: str = "#digits") -> np.ndarray:
    """The grey values (N, 784) of the canvases of a place, after the next frames."""
    settle(shown)
    return np.array(shown.evaluate(PIXELS, place))


def slide(shown: "Page", weight: float) -> None:
    share = shown.evaluate("weight => Math.round(1000 * shareOfTrack(weight))", weight)
    shown.locator("#weight").fill(str(share))


Z = normal(10, LATENTS).float()
DECODE = "([z, weight]) => Array.from(network.decode(new Float32Array(z), digitLabels, weight))"
RECONSTRUCT = """([x, weight]) => Array.from(network.decode(
    network.encode(new Float32Array(x), digitLabels, weight).mu, digitLabels, weight))"""
BETWEEN = [0.01, 0.013, 0.25, 2.2, 20.0, 30.0]  # four of them are not among the measured ones


def torch_s_pixels(model: MultiRate, weight: float) -> np.ndarray:
    found: np.ndarray = model.at(weight).decode(Z, torch.arange(10)).sigmoid().numpy()
    return found


def assert_network_is(model: MultiRate, shown: "Page", weights: list[float]) -> None:
    """Its pixels and its reconstructions are torch's."""
    images, labels = normal(10, 1, 28, 28).float().sigmoid(), torch.arange(10)
    for weight in weights:
        ours = np.array(shown.evaluate(DECODE, [Z.flatten().tolist(), weight])).reshape(10, 784)
        assert np.abs(ours - torch_s_pixels(model, weight)).max() < 1e-3, weight
        ours = np.array(shown.evaluate(RECONSTRUCT, [images.flatten().tolist(), weight])).reshape(10, 784)
        at = model.at(weight)
        assert np.abs(ours - at.decode(at.encode(images, labels).mu, labels).sigmoid().numpy()).max() < 1e-2, weight


def test_the_network_is_torch_s_at_every_weight_and_a_latent_one_of_its_density_s(
    shown: "Page", model: MultiRate
) -> None:
    assert_network_is(model, shown, BETWEEN)
    fitted = Density(*(part[0] for part in density(len(WEIGHTS), 10, 2)))
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


@pytest.mark.parametrize("conditioning", ["sum", "mean", "product"])
def test_other_conditions_are_torch_s(conditioning: str, browser: "Browser", tmp_path: Path) -> None:
    """Also where the encoder sees no label, as in the article's network."""
    model = told(conditioning=conditioning, encoder_sees_label=False)
    fitted = Densities(torch.tensor(WEIGHTS[:2]), density(2, 10, 1))
    (tmp_path / "page.html").write_text(page(contents(model, fitted)), encoding="utf-8")
    with page_of(browser) as opened:
        opened.goto((tmp_path / "page.html").as_uri())
        assert_network_is(model, opened, [0.013, 2.2])


@needs_firefox
def test_firefox_slides_and_draws_as_chromium_does(
    firefox: Firefox, file: Path, model: MultiRate, shown: "Page"
) -> None:
    """By its keys and its pointer, to torch's pixels and to a grey level of Chromium's, without a warning."""
    for _ in range(3):
        shown.press("#weight", "ArrowRight")
    theirs, chosen = digit_pixels(shown), shown.text_content("#weight-value")
    firefox.send("WebDriver:Navigate", {"url": file.as_uri()})
    for weight in (0.013, 2.2):
        ours = np.array(firefox.evaluate(DECODE, [Z.flatten().tolist(), weight])).reshape(10, 784)
        assert np.abs(ours - torch_s_pixels(model, weight)).max() < 1e-3
    firefox.send("WebDriver:ElementSendKeys", {"id": firefox.find("#weight"), "text": "\ue014" * 3})
    firefox.wait_for(SETTLED)
    assert firefox.evaluate("() => element('weight-value').textContent") == chosen
    assert np.abs(np.array(firefox.evaluate(PIXELS, "#digits")) - theirs).max() <= 1

    firefox.send("WebDriver:ElementClick", {"id": firefox.find("#clear")})
    pad = {"element-6066-11e4-a52e-4f735466cecf": firefox.find("#pad")}
    moves = [
        {"type": "pointerMove", "origin": pad, "x": 0, "y": -80},
        {"type": "pointerDown", "button": 0},
        {"type": "pointerMove", "origin": pad, "x": 0, "y": 80, "duration": 100},
        {"type": "pointerUp", "button": 0},
    ]
    firefox.send("WebDriver:PerformActions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})
    firefox.wait_for(SETTLED)
    assert firefox.evaluate("() => state.ink.reduce((sum, value) => sum + value)") > 20
    assert "the network reads a" in firefox.evaluate("() => element('labels-words').textContent")
    assert firefox.said(file.as_uri()) == []


def test_the_weight_the_sampler_the_seed_and_latents_change_the_digits(shown: "Page") -> None:
    before = digit_pixels(shown)
    slide(shown, 4.0)
    assert text(shown, "#weight-value") == "3.99"  # the slider's nearest step
    assert shown.locator("#weight").get_attribute("aria-valuetext") == "beta 3.99"
    assert "14" in text(shown, "#figures")  # the curve's figure at its fifth weight
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
    shown.check("#same-style")
    z = np.array(shown.evaluate("() => [...digitLatents()]")).reshape(10, LATENTS)
    assert (z == z[0]).all()


def test_the_study_s_interval_its_runs_and_the_collapse_are_shown(shown: "Page") -> None:
    assert shown.locator("#marks .band").count() == 1
    words = text(shown, "#marks-words")
    assert "0.1 to 0.5" in words
    assert "45.2, beyond the slider's end" in words
    assert shown.locator("#marks .beyond").count() == 1
    shown.check("input[value=prior]")  # whose interval this study does not have
    assert shown.locator("#marks .band").count() == 0
    visible = shown.locator("#runs figure:visible")
    count = visible.count()
    assert 0 < count < len(WEIGHTS)
    shown.locator("#run-choices input:not(:checked)").first.check()
    assert visible.count() == count + 1


def test_a_drawing_is_read_again_and_its_hidden_part_completed(shown: "Page") -> None:
    shown.click("#clear")
    assert "Draw something first" in text(shown, "#labels-words")
    box = shown.locator("#pad").bounding_box()
    assert box is not None
    shown.mouse.move(box["x"] + 140, box["y"] + 60)
    shown.mouse.down()
    shown.mouse.move(box["x"] + 140, box["y"] + 220, steps=4)
    shown.mouse.up()
    assert "the network reads a" in text(shown, "#labels-words")
    assert shown.evaluate("() => state.ink.reduce((sum, value) => sum + value)") > 20
    whole = digit_pixels(shown, "#labels")
    assert len(whole) == 10
    slide(shown, 20.0)
    assert np.abs(digit_pixels(shown, "#labels") - whole).max() > 5  # the reconstructions follow the slider
    slide(shown, 1.0)
    shown.locator("#labels button").nth(4).click()
    assert len(np.unique(digit_pixels(shown, "#completions"), axis=0)) > 1  # samples of the drawing's latents
    shown.locator("#labels button").nth(4).click()
    shown.click("#hide-half")
    assert "visible part" in text(shown, "#labels-words")
    completed = digit_pixels(shown, "#labels")
    visible = completed.reshape(10, 28, 28)[:, :10]
    assert (visible == visible[0]).all()  # of a completion, the visible part is the drawing's own
    shown.locator("#labels button").nth(4).click()
    assert "Six completions as a 4" in text(shown, "#completions-title")
    assert len(np.unique(digit_pixels(shown, "#completions"), axis=0)) > 1


def test_keys_slide_and_draw_and_a_finger_draws_erases_and_hides(shown: "Page") -> None:
    shown.focus("#weight")
    before = shown.text_content("#weight-value")
    shown.keyboard.press("ArrowRight")
    assert shown.text_content("#weight-value") != before
    shown.click("#clear")
    shown.focus("#pad")
    for key in ("ArrowDown", " ", "ArrowDown", " "):
        shown.keyboard.press(key)
    assert shown.evaluate("() => state.ink.some(value => value > 0.5)")

    shown.click("#clear")
    ink, hidden = "() => state.ink.some(Boolean)", "() => state.hidden.some(Boolean)"
    pad = shown.locator("#pad")
    pad.tap()
    assert shown.evaluate(ink)
    shown.check("input[value=hide]")
    pad.tap()
    assert shown.evaluate(hidden)
    assert "visible part" in text(shown, "#labels-words")
    shown.check("input[value=erase]")
    for place in itertools.product((124, 140, 156), repeat=2):
        pad.tap(position={"x": place[0], "y": place[1]})
    assert not shown.evaluate(ink)
    assert not shown.evaluate(hidden)


@needs_firefox
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1600, "light")])
def test_it_fits_firefox_too(firefox: Firefox, file: Path, width: int, scheme: str) -> None:
    firefox.look(width, scheme)
    firefox.send("WebDriver:Navigate", {"url": file.as_uri()})
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    firefox.wait_for(f"(width, dark) => innerWidth === width && {dark} === dark", width, scheme == "dark")
    assert firefox.evaluate("() => document.documentElement.scrollWidth") <= width
    least, words = firefox.evaluate(LEAST_CONTRAST)
    assert least >= 4.5, words
    assert firefox.said(file.as_uri()) == []


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1600, "light")])
def test_it_fits_any_width_and_can_be_read(browser: "Browser", file: Path, width: int, scheme: str) -> None:
    """By people (a contrast of 4.5 : 1, WCAG 2.1) and by a screen reader, which has a name for every control."""
    with page_of(browser, width, scheme) as opened:
        opened.goto(file.as_uri())
        opened.click("summary")
        settle(opened)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        least, words = opened.evaluate(LEAST_CONTRAST)
        assert least >= 4.5, words
        assert nameless(opened) == []


def test_the_page_of_the_default_network_is_one_file_of_4_mb() -> None:
    """With the densities at all 25 weights; eight trials' samples take 100 kB."""
    weight, aim = parse(curve.WeightParams, OURS["weight"], "weight"), objective_params()
    weights, components = curve.measured_weights(weight), OURS["sample"]["components"]
    network = curve.build(model_params(), aim, weight, seed=0)
    shape = len(weights), 10, components, network.latent_size
    roots = torch.eye(network.latent_size).expand(*shape, -1)
    every = Density(torch.full(shape[:-1], 1 / components), normal(*shape).float(), roots)
    html = page(contents(network.requires_grad_(requires_grad=False), Densities(torch.tensor(weights), every)))
    assert 3_000_000 < len(html) < 3_900_000


def test_a_network_that_the_page_cannot_show_is_refused_and_an_experiment_with_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: Path) -> None:
        playing.network(told(prior="class"))

    with pytest.raises(UserError, match=r"can't show a network with model\.prior class: it needs standard"):
        write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explore, "write_page", write)
    for name in ("load", "load_json", "add_to"):
        monkeypatch.setattr(explore, name, MagicMock())
    explore.main()
    assert "model.prior class" in (tmp_path / EXPLORE).read_text(encoding="utf-8")

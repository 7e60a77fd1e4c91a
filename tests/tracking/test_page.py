"""What a fresh browser shows of MLflow's page, at the addresses that `cvae ui` opens."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PROGRAM
from stores import client

from pipeline.base.errors import UserError
from pipeline.tracking import page, runs, server

STUDY = "kl-weight-abc"
SECONDS = 120_000  # milliseconds: a busy machine


def recorded(root: Path) -> runs.Run:
    """A study of three trials and a training, as the stages record them."""
    tags = {"study": STUDY, "group": f"study {STUDY}"}
    with runs.start(f"study {STUDY}", "e", tags=tags | {"kind": "study"}, about="The **answer**.", root=root) as study:
        for number, (weight, frechet) in enumerate([(0.1, 9.0), (1.0, 4.0), (10.0, 16.0)]):
            about = tags | {"kind": "trial", "mlflow.parentRunId": study.run_id}
            given = {"objective.kl_weight": weight, "train.epochs": 2}
            with runs.start(f"trial {number}", "e", tags=about, params=given, root=root) as trial:
                for step in (1, 2):
                    trial.metrics({"train/kl": 30.0 / step, "train/kl_weight": weight}, step)
                figures = {"validation/fitted/frechet": frechet, "validation/fitted/class_accuracy": 0.9}
                trial.metrics(figures | {"validation/fitted/diversity": 0.8, "validation/prior/frechet": 99.0}, 2)
                trial.samples(np.full((58, 298), 200, np.uint8), "0123456789", ("prior", "fitted"))
    with runs.start("training", "e", tags={"group": "trainings"}, root=root) as training:
        training.metrics({"validation/fitted/frechet": 2.0}, 0)
    return study


@pytest.fixture
def shown(root: Path) -> Iterator[Any]:
    """A function that opens an address of MLflow's page in a fresh browser, and gives Playwright's page."""
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium is installed: .ci/run does it, on Debian, as root")
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    port = server._free_port(5900)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", "--workers", "1", "--port", str(port)]
    surroundings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{root}/mlflow.db",
    }
    with open(root / "server.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | surroundings, start_new_session=True
        )
    try:
        assert server.is_up(process, address), (root / "server.log").read_text()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])

            def visit(path: str) -> Any:
                opened = browser.new_page(viewport={"width": 1920, "height": 1000})
                opened.set_default_timeout(SECONDS)
                opened.goto(address + path)
                return opened

            yield visit
            browser.close()
    finally:
        server.end(process)


@pytest.mark.slow
def test_the_page_opens_on_the_best_runs_and_compares_a_studys_trials(root: Path, shown: Any) -> None:
    study = recorded(root)
    store, number = client(study), study.experiment_id

    best = shown(page.best_first(store, number))
    best.get_by_text("Group: trainings").wait_for()
    best.get_by_role("link", name="trial 2").wait_for()
    headings = best.locator('[role="columnheader"]').all_inner_texts()
    for name in (page.WEIGHT, "validation/fitted/frechet", "validation/fitted/class_accuracy"):
        assert any(name in heading for heading in headings), headings
    links = [text for text in best.get_by_role("link").all_inner_texts() if text.startswith(("trial", "training"))]
    assert links == ["training", "trial 1", "trial 0", "trial 2"]  # the best first, a study's trials together
    assert "Model registry" in best.locator("body").inner_text()  # model training, not language models

    charts = shown(page.comparison(store, number, STUDY))
    first = charts.locator('[data-testid="experiment-view-compare-runs-card"]').first
    first.locator(".js-plotly-plot path.point").nth(2).wait_for()
    assert "validation/fitted/frechet" in first.inner_text()
    assert "train/kl_weight" in first.inner_text()
    places = "points => new Set(points.map(point => point.getAttribute('transform'))).size"
    assert first.locator(".js-plotly-plot path.point").evaluate_all(places) == 3  # a weight each
    with pytest.raises(UserError, match=f"did you mean '{STUDY}'"):
        page.comparison(store, number, "kl-weight-abd")


@pytest.mark.slow
def test_a_picture_is_visible_in_its_tile_without_scrolling(root: Path, shown: Any) -> None:
    study = recorded(root)
    charts = shown(page.comparison(client(study), study.experiment_id, STUDY))
    tile = charts.locator('[data-testid="experiment-view-compare-runs-card"]').filter(has=charts.locator("img")).first
    tile.scroll_into_view_if_needed()
    picture = tile.locator("img").first
    picture.wait_for()
    inner, outer = picture.bounding_box(), tile.bounding_box()
    assert inner is not None
    assert outer is not None
    assert inner["width"] > 150
    assert outer["y"] <= inner["y"]
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"]
    assert "train.epochs" not in tile.inner_text()  # parameters would push the picture out of sight

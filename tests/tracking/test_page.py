"""The server that `cvae ui` starts: what a fresh browser shows of its page, and what it gets after it was away."""

import json
import os
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import LIMIT, PROGRAM, chromium
from imports import ROOT
from servers import failing
from stores import deliver, forget, history, kept
from waiting import until

from pipeline.base.errors import UserError
from pipeline.tracking import package, page, runs, server
from pipeline.tracking.local import connect

Visit = Callable[[str], Any]

STUDY = "kl-weight-abc"
WIDTH, HEIGHT = 1280, 900  # pixels: a small laptop's window


def recorded() -> runs.Run:
    """A study of three trials and a training, as the stages record them."""
    tags = {"study": STUDY, "group": f"study {STUDY}"}
    with runs.start(f"study {STUDY}", "e", tags=tags | {"kind": "study"}, about="The **answer**.") as study:
        for number, (weight, frechet) in enumerate([(0.1, 9.0), (1.0, 4.0), (10.0, 16.0)]):
            about = tags | {"kind": "trial", "mlflow.parentRunId": study.run_id}
            given = {"objective.kl_weight": weight, "train.epochs": 2}
            with runs.start(f"trial {number}", "e", tags=about, params=given) as trial:
                for step in (1, 2):
                    trial.metrics({"train/kl": 30.0 / step, "train/kl_weight": weight}, step)
                figures = {"validation/fitted/frechet": frechet, "validation/fitted/class_accuracy": 0.9}
                trial.metrics(figures | {"validation/fitted/diversity": 0.8, "validation/prior/frechet": 99.0}, 2)
                trial.samples(np.full((58, 298), 200, np.uint8))
    with runs.start("training", "e", tags={"group": "trainings"}) as training:
        training.metrics({"validation/fitted/frechet": 2.0}, 0)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[runs.Run]:
    folder = tmp_path_factory.mktemp("page")
    shutil.copy(database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield recorded()
    forget()


@pytest.fixture(scope="module")
def address(study: runs.Run) -> Iterator[str]:
    folder = Path(study.uri.removeprefix("sqlite:///")).parent
    installed = folder / "site/cvae_pipeline-0.dist-info"  # what an installer writes, whatever this machine has
    installed.mkdir(parents=True)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    lines = [f"{name} = {value}" for name, value in declared["mlflow.app"].items()]
    (installed / "entry_points.txt").write_text("\n".join(["[mlflow.app]", *lines]), encoding="utf-8")
    with server.own_port(5900) as port:
        with pytest.MonkeyPatch.context() as patch, open(folder / "server.log", "w+") as log:
            patch.syspath_prepend(installed.parent)
            patch.setenv("PYTHONPATH", str(installed.parent))
            process = server.start(study.uri, port, log, folder / "mlflow.db")
        try:
            assert server.is_up(process, f"http://127.0.0.1:{port}"), (folder / "server.log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(
                process.pid, signal.SIGKILL
            )  # nothing of it is needed: test_server.py tries how `cvae ui` ends it
            process.wait()


@pytest.fixture(scope="module")
def visit(address: str) -> Iterator[Visit]:
    """Opens a path of the server in a fresh browser, and gives Playwright's page."""
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium is installed: .ci/run does it, on Debian, as root")
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    with chromium() as browser:

        def opened(path: str) -> Any:
            for earlier in browser.contexts:
                earlier.close()
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(LIMIT)
            page.goto(address + path)
            return page

        yield opened


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_comes_back(
    address: str, root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = root / "cvae.safetensors"
    weights.write_bytes(b"weights")
    with failing(address, "expired") as (proxy, fails):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy)
        with runs.start("study", "away") as run:
            run.metrics({"kl": 0.0}, step=0)
            deliver(run)
            fails.set()
            for step in range(1, 50):
                run.metrics({"kl": float(step)}, step)
            run.model(weights)
            with runs.start("trial", "away", wait=False) as trial:
                trial.metrics({"kl": 1.0}, step=1)
            weights.write_bytes(b"others")
            until(lambda: warnings)
            fails.clear()
            deliver(run)
        assert history(run, "kl") == [(step, float(step)) for step in range(50)]
        assert kept(run).info.status == kept(trial).info.status == "FINISHED"
        assert history(trial, "kl") == [(1, 1.0)]
        assert ["answers again" in warning for warning in warnings] == [False, True]
        copy = package.download_model(f"runs:/{run.run_id}")
        assert (copy.name, copy.read_bytes()) == (f"{run.run_id}.safetensors", b"weights")


def for_training(opened: Any) -> bool:
    """Whether a page is MLflow's view for model training, not for language models, with its assistant closed."""
    opened.get_by_text("Model registry").first.wait_for()
    return (
        not opened.get_by_text("Welcome to MLflow Assistant").count()
        and not opened.get_by_text("Prompts", exact=True).count()
    )


def place_of(run: runs.Run) -> tuple[Any, str]:
    """MLflow's client, and the id of the experiment."""
    return connect(run.uri), kept(run).info.experiment_id


@pytest.mark.slow
def test_the_page_opens_on_the_best_runs_and_compares_a_studys_trials(
    visit: Visit, address: str, study: runs.Run
) -> None:
    """By weight and by pictures."""
    store, experiment = place_of(study)
    shown = visit(page.best_first(store, experiment))
    shown.get_by_text("Group: trainings").wait_for()
    shown.get_by_role("link", name="trial 2").wait_for()

    def is_in_sight(column: str) -> bool:
        place = shown.locator('[role="columnheader"]').filter(has_text=column).first.bounding_box()
        return place is not None and place["x"] + place["width"] <= WIDTH

    for column in (page.WEIGHT, "validation/fitted/frechet", "validation/fitted/class_accuracy"):
        until(partial(is_in_sight, column))

    def links() -> list[str]:
        return [text for text in shown.get_by_role("link").all_inner_texts() if text.startswith(("trial", "training"))]

    until(lambda: links() == ["training", "trial 1", "trial 0", "trial 2"])  # a study's trials together, the best first

    shown.goto(address + page.comparison(store, experiment, STUDY))
    cards = shown.locator('[data-testid="experiment-view-compare-runs-card"]')
    first = cards.first
    points = first.locator(".js-plotly-plot path.point")
    points.nth(2).wait_for()
    assert "validation/fitted/frechet" in first.inner_text()
    assert "train/kl_weight" in first.inner_text()

    def are_apart_and_in_sight() -> Any:
        heights = sorted(set(points.evaluate_all("points => points.map(point => point.getBoundingClientRect().y)")))
        gaps = np.diff(heights)  # logarithmic: between 10, 1 and 0.1 alike
        return len(gaps) == 2 and abs(gaps[0] - gaps[1]) < 1 and gaps[0] > 40 and heights[2] < HEIGHT

    until(are_apart_and_in_sight)

    tile = cards.filter(has=shown.locator("img")).first
    tile.scroll_into_view_if_needed()

    def shows_the_whole_picture() -> Any:
        inner, outer = tile.locator("img").first.bounding_box(), tile.bounding_box()
        is_large = inner and outer and inner["width"] > 200 and inner["height"] > 150  # 32 a digit
        return is_large and outer["y"] <= inner["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"]

    until(shows_the_whole_picture)
    assert "train.epochs" not in tile.inner_text()  # parameters would push the picture out of sight
    with pytest.raises(UserError, match=f"did you mean '{STUDY}'"):
        page.comparison(store, experiment, "kl-weight-abd")


@pytest.mark.slow
def test_every_page_stays_in_the_view_for_training(visit: Visit, address: str, study: runs.Run) -> None:
    """Also where MLflow's own links name no view: a run's page, and its page that compares the runs that are chosen."""
    store, experiment = place_of(study)
    trials = [run.info.run_id for run in store.search_runs([experiment], "tags.kind = 'trial'")]
    compared = visit(f"/#/experiments/{experiment}/runs/{study.run_id}")
    compared.get_by_text("The answer.").wait_for()
    assert for_training(compared)

    compared.goto(f"{address}/#/compare-runs?runs={json.dumps(trials)}&experiments={json.dumps([experiment])}")
    compared.get_by_text("Comparing 3 Runs").wait_for()
    assert for_training(compared)
    compared.get_by_text("Parallel Coordinates Plot").wait_for()
    compared.get_by_text(page.WEIGHT).first.wait_for()  # against a metric that tells something, the first of them
    compared.get_by_text("train/kl").first.wait_for()

    compared.get_by_text("GenAI").click()  # what a person chooses stays
    compared.reload()
    compared.get_by_text("Prompts", exact=True).first.wait_for()

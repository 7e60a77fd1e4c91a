"""The page and the card to hand on."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import packaged
import pandas as pd
import pytest
from bands import banded
from browser import LEAST_CONTRAST, browser_page, nameless, needs_chromium
from commands import Cvae, assert_refused
from imports import ROOT
from ruamel.yaml import YAML
from settings import objective_params

from pipeline.base import paths
from pipeline.base.files import write_json
from pipeline.base.params import plain
from pipeline.base.paths import CURVE_TABLE, TRIALS, VALIDATION
from pipeline.cli import handing
from pipeline.cli.card import CARD, write_card
from pipeline.cli.handing import unlike
from pipeline.model.cvae import build, resolve
from pipeline.show.pictures import save_png
from pipeline.stages import playing
from pipeline.stages.saved import load_cvae, save_curve, save_cvae, save_splits

MODEL = "models/cvae.safetensors"


@pytest.fixture
def reported(reported: Path) -> Path:
    """The same without a study."""
    paths.BEST.unlink()
    return reported


def test_trainings_of_different_length_or_data_are_not_set_side_by_side_in_silence(reported: Path, cvae: Cvae) -> None:
    model, density, params = load_cvae(Path(MODEL))
    save_cvae(Path("same.safetensors"), model, density, params)
    assert "different" not in cvae("report --html report.html workspace same.safetensors").err
    save_cvae(Path("short.safetensors"), model, density, params | {"train": params["train"] | {"epochs": 4}})
    sentence = "different length (workspace, same.safetensors: epochs 10, batch 128; short.safetensors: epochs 4, batch"
    assert sentence in cvae("report --html report.html workspace same.safetensors short.safetensors").err
    assert sentence in (reported / "report.html").read_text(encoding="utf-8")
    data = {"a": "4e5f", "b": None, "c": "6a7b"}
    (other,) = unlike(dict.fromkeys(data, params["train"]), data)
    assert "on different data (a; c)" in other


@needs_chromium
@pytest.mark.slow
def test_a_page_shows_a_run_beside_a_file(reported: Path, cvae: Cvae) -> None:
    """Without network, script or console message, no wider than the window, and to be read in light and dark."""
    save_png(paths.CURVE_FIGURE, np.full((40, 60), 200, np.uint8))
    named = f"models/{'0123456789abcdef' * 2}.safetensors"
    Path(named).write_bytes(Path(MODEL).read_bytes())
    assert cvae(f"report --html report.html workspace {named}").status == 0
    with browser_page() as shown:
        shown.goto((reported / "report.html").as_uri())
        for width in (375, 1600):
            shown.set_viewport_size({"width": width, "height": 900})
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("dark", "light"):
            shown.emulate_media(color_scheme=scheme)
            least, dim = shown.evaluate(LEAST_CONTRAST)
            assert least >= 4.5, (scheme, dim)
        assert shown.locator("script").count() == 0
        assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert shown.locator("img").count() == 3  # two strips and the curve
        assert nameless(shown) == []
        words = shown.inner_text("body")
        headings = shown.locator("h2").all_inner_texts()
    assert headings[-1] == "At the end, test"
    assert words.index("2.36") < words.index("3.75")
    for word in ("workspace", named, "0a1b", "4e5f", "objective.kl_weight", "dvc exp run evaluate", "\t9.5", "\t19.5"):
        assert word in words


def test_a_bad_page_is_refused_in_one_line_and_nothing_is_written(reported: Path, cvae: Cvae) -> None:
    for words, reason in (
        ("report --html report.pdf", "must end in .html"),
        ("report --html params.yaml/report.html", "can't be written"),
        ("report --html report.html absent.safetensors", "absent.safetensors not found"),
        ("report --html report.html runs:/0123abcd", "there is no run 0123abcd"),
        (f"report {MODEL}", "give --html FILE.html"),
        ("report --html report.html heavier", "heavier has no run in MLflow"),
        ("report --html report.html study", "best.json not found: run `dvc repro tune` first"),
    ):
        assert_refused(reported, cvae, words, reason)
    figures = json.loads(VALIDATION.read_text(encoding="utf-8"))
    write_json(VALIDATION, figures | {"protocol": figures["protocol"] | {"kl_weight": 3.0}})
    assert_refused(reported, cvae, "report --html report.html", "is of another model")
    VALIDATION.unlink()
    assert_refused(reported, cvae, "report --html report.html", "run `dvc repro evaluate` first")


def test_an_experiment_is_its_run_in_mlflow_and_a_study_its_best(
    reported: Path, monkeypatch: pytest.MonkeyPatch, cvae: Cvae
) -> None:
    """Beside one another, and beside a file; the experiment's models/run.json says which run."""
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=lambda *_: {"tmp", "cache", "config.local"})
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm one", "branch heavier"):
        subprocess.run(["git", *words.split()], check=True)
    write_json(paths.BEST, {"run_id": "77", "study": "kl-weight-1a2b"})
    side, find = handing._other(MODEL), Mock(return_value=SimpleNamespace(info=SimpleNamespace(run_id="0a1b")))
    other = Mock(side_effect=lambda _, name="": side._replace(known=side.known._replace(name=name)))
    monkeypatch.setattr(handing, "_other", other)
    monkeypatch.setattr("pipeline.tracking.local.find", find)
    trials = {"headings": ["β"], "rows": [("0.3 ★", [])], "pictures": []}
    monkeypatch.setattr(handing, "_study", lambda **_: {"answer": [], "trials": trials})
    assert cvae(f"report --html report.html heavier study {MODEL}").status == 0
    assert find.call_args.args[1:] == ("0a1b", "2c3d")
    assert [call.args[0] for call in other.call_args_list] == ["runs:/0a1b", "runs:/77", MODEL]
    html = (reported / "report.html").read_text(encoding="utf-8")
    for word in (">heavier<", "the best of study kl-weight-1a2b", "0.3 ★", "3 runs side by side"):
        assert word in html


def test_a_report_leaves_out_a_curve_of_other_data_than_the_study_and_says_so(
    reported: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing, "_study", lambda **_: {"answer": ["take 0.3"], "trials": None})
    save_png(paths.CURVE_FIGURE, np.full((40, 60), 200, np.uint8))
    save_curve(paths.CURVE, packaged.multi_rate(), {"data": "4e5f"})
    for data, is_shown in (("4e5f", True), ("6a7b", False)):
        write_json(paths.BEST, {"data": data})
        answer = cvae("report --html report.html")
        assert answer.status == 0
        assert (f"the report has no curve: {paths.CURVE} is the curve of other data" in answer.err) is not is_shown
        page = (reported / "report.html").read_text(encoding="utf-8")
        assert ("The curve over all weights" in page) is is_shown


@pytest.fixture
def playable(project: Path) -> Path:
    """The project as before `dvc repro explore`, with a small curve and a study of one trial."""
    packaged.save_three(project / "models")
    save_splits(paths.PREPARED, {"validation": banded(1, 0)})
    row = {"trial": 0, "kl_weight": 1.0} | dict.fromkeys(playing.FIGURES, 2.0)
    for path in (CURVE_TABLE, TRIALS):
        path.parent.mkdir(parents=True)
        pd.DataFrame([row, row | {"kl_weight": 2.0}]).to_csv(path, index=False)
    write_json(paths.SPECTRUM, {"collapse": 45.2})
    write_json(paths.BEST, {})
    save_png(paths.STUDY_SHEETS / "0_1.png", np.full((40, 60), 200, np.uint8))
    return project


def test_a_page_to_play_with_shows_runs_of_the_same_latents_or_is_refused(playable: Path, cvae: Cvae) -> None:
    assert cvae(f"explore --out page.html --runs {MODEL}").status == 0
    assert f', {MODEL}", "words": ""' in (playable / "page.html").read_text(encoding="utf-8")
    _, density, params = load_cvae(Path(MODEL))
    wide = replace(packaged.SHAPE, latent_size=3)
    save_cvae(Path("other.safetensors"), build(resolve(wide), 0, "bernoulli"), density, params | {"model": plain(wide)})
    for words, reason in (
        (
            f"--runs {MODEL} --runs other.safetensors",
            "other.safetensors has 3 latent dimensions, and the page's network 2",
        ),
        ("--runs absent.safetensors", "absent.safetensors not found"),
        ("--runs models/completer.safetensors", "completer.safetensors holds no cvae"),
        ("--out params.yaml/page.html", "params.yaml"),
    ):
        assert_refused(playable, cvae, f"explore --out page.html {words}", reason)
    paths.CURVE.unlink()
    assert_refused(playable, cvae, "explore --out page.html", "curve.safetensors not found: run `dvc repro curve`")


def test_a_name_of_a_run_is_text_and_a_whole_architecture_is_its_changes(reported: Path, cvae: Cvae) -> None:
    """A study keeps of its models what a preset gives them, too."""
    model, density, params = load_cvae(Path(MODEL))
    whole = params | {"model": plain(model.architecture) | {"preset": "strong"}}
    save_cvae(reported / "<b>&.safetensors", model, density, whole)
    save_cvae(reported / "bare.safetensors", model, density, {name: params[name] for name in ("model", "objective")})
    assert cvae("report --html report.html '<b>&.safetensors' bare.safetensors").status == 0
    html = (reported / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;.safetensors" in html
    assert "-S model.latent_size=2 -S &#39;model.encoder_hidden=[8]&#39;" in html
    assert "-S model.conditioning=null" in html  # as the preset has it


def test_a_card_has_the_headings_and_a_result_for_each_split(reported: Path) -> None:
    def card(today: float, **row: float) -> tuple[dict[str, dict[str, float]], str]:
        """The values of the card's model-index by split, and the whole card."""
        setting = Mock(aim=objective_params(kl_weight=today), hashes={"data": "4e5f"})
        write_card(setting, "It does best.", None, row)
        whole = (reported / CARD).read_text(encoding="utf-8")
        results = YAML(typ="safe").load(whole.split("---\n")[1]).get("model-index", [{"results": []}])[0]["results"]
        found = {one["dataset"]["split"]: {each["type"]: each["value"] for each in one["metrics"]} for one in results}
        return found, whole

    figures = {"fitted/frechet": 4.25, "kl": 2e-5, "nll": math.nan, "unknown": 1.0}
    trial, text = card(3.0, kl_weight=0.5, **{f"validation/{name}": value for name, value in figures.items()})
    # YAML 1.1, which the Hub reads, takes 2e-05 for a text and has no nan.
    assert trial == {"validation": {"fitted/frechet": 4.25, "kl": 2e-5}}
    assert "e-05" not in text.split("---\n")[1]
    for heading in ("Model Details", "Uses", "Bias, Risks, and Limitations", "Training Details", "Evaluation"):
        assert f"## {heading}\n" in text
    for words in ("β = 0.5", "It does best.", "| fitted/frechet | 4.25 |", "`likelihood`: bernoulli", "`4e5f`"):
        assert words in text
    measured, _ = card(0.2)
    assert [split["fitted/frechet"] for split in (measured["validation"], measured["test"])] == [2.36, 3.75]
    assert "model-index" not in card(3.0)[1]  # it must have results

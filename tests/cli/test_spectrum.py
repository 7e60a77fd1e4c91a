"""`cvae spectrum` and its stage, called as a user does, their figure, and `cvae curve` beside a study."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import packaged
import pandas as pd
import pytest
from bands import banded
from commands import Cvae, assert_refused

from pipeline.base.files import sha256, write_json
from pipeline.base.params import write
from pipeline.base.paths import BEST, CURVE, CURVE_TABLE, JUDGE, PREPARED, SEEDS, SPECTRUM, SPECTRUM_FIGURE
from pipeline.cli.curve import COLUMNS
from pipeline.show.spectrum import spectrum_of_trials
from pipeline.stages import spectrum as stage
from pipeline.stages.saved import save_curve, save_splits
from pipeline.weight.spectrum import Spectrum, of_split

TRAIN = banded(12, 0)


def add_data(project: Path) -> None:
    save_splits(project / PREPARED, {"train": TRAIN})


@pytest.fixture(scope="module")
def found() -> Spectrum:
    return of_split(TRAIN, "bernoulli", "grey", 1.0, 3, solve=False)


def test_the_command_says_where_all_collapses_which_weight_meets_a_budget_and_what_did_not_settle(
    project: Path, cvae: Cvae, found: Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(project, cvae, "spectrum", "run `dvc repro prepare` first")
    add_data(project)
    monkeypatch.setattr("pipeline.weight.spectrum.of_split", lambda *_: found)
    settled = cvae("spectrum --latents 3")
    assert f"{found.collapse():.4g}" in settled.out
    assert "With 3 latents, bernoulli on grey pixels" in settled.out
    assert settled.err == ""
    assert f"at β = {found.weight_for(2):.3g}, with 3 latents" in cvae("spectrum --latents 3 --nats 2").out
    assert_refused(project, cvae, "spectrum --nats 0", "a budget must be a positive number of nats")
    monkeypatch.setattr("pipeline.weight.spectrum.of_split", lambda *_: replace(found, unsettled=((4, 0.3),)))
    off = cvae("spectrum --latents 3")
    assert (off.status, off.out) == (0, settled.out)
    told = "warning: the expected kl of digit 4 may be off around β = 0.3: its solution did not settle in 500 steps"
    assert off.err.startswith(told)


def test_the_stage_writes_what_the_command_prints_and_a_figure(
    project: Path, found: Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_data(project)
    write({("model", "latent_size"): 3}, project / "params.yaml")
    monkeypatch.setattr("pipeline.weight.spectrum.of_split", lambda *_: found)
    stage.main()
    written = json.loads(SPECTRUM.read_text(encoding="utf-8"))
    assert written["latent_size"] == 3
    assert written["collapse"] == max(written["collapse_by_class"]) == pytest.approx(found.collapse())
    for row in written["expected"]:
        assert row["kl"] == pytest.approx(found.rate(row["kl_weight"]))
    assert SPECTRUM_FIGURE.exists()


def test_a_likelihood_without_a_spectrum_stops_the_command_but_not_the_pipeline(project: Path, cvae: Cvae) -> None:
    add_data(project)
    write({("objective", "likelihood"): "discretized_logistic"}, project / "params.yaml")
    assert_refused(project, cvae, "spectrum", "no closed form for objective.likelihood discretized_logistic")
    stage.main()
    assert "discretized_logistic" in json.loads(SPECTRUM.read_text(encoding="utf-8"))["unknown"]
    assert SPECTRUM_FIGURE.exists()


@pytest.fixture
def beside(project: Path) -> Path:
    """The project with a curve and a study of the same data."""
    add_data(project)
    (project / JUDGE).write_bytes(b"there")
    row = {"trial": 0, "seed": 0, "kl_weight": 1.0} | dict.fromkeys((f"validation/{name}" for name in COLUMNS), 2.0)
    for path in (CURVE_TABLE, SEEDS):
        path.parent.mkdir(parents=True)
        pd.DataFrame([row, row | {"kl_weight": 2.0}]).to_csv(path, index=False)
    write_json(BEST, {"data": sha256(PREPARED)})
    save_curve(CURVE, packaged.multi_rate(), {"data": sha256(PREPARED)})
    return project


def test_a_curve_is_drawn_beside_a_study_of_the_same_data_alone(beside: Path, cvae: Cvae) -> None:
    assert cvae("curve --out beside.png").status == 0
    assert (beside / "beside.png").exists()
    save_curve(CURVE, packaged.multi_rate(), {"data": "of others"})
    for words in ("study", "promote", "tune", "curve --out curve.png", "explore --out page.html"):
        assert_refused(beside, cvae, words, f"{CURVE} is the curve of other data than ")
    assert cvae("curve").status == 0  # without a study


def test_a_study_draws_its_complete_trials_over_the_spectrum() -> None:
    rows = [{"kl_weight": weight, "kl": kl, "active_units": 3} for weight, kl in ((0.1, 9.0), (1.0, 5.0))]
    trials = pd.DataFrame({"kl_weight": [0.5, 2.0], "validation/kl": [7.0, 4.0], "validation/kl_error": [0.5, None]})
    trials["state"] = ["COMPLETE", "RUNNING"]
    ((name, figure),) = spectrum_of_trials({"expected": rows, "collapse": 8.0}, trials)
    assert name == "spectrum"
    kl, active = figure.axes
    assert [np.asarray(line.get_xydata()).tolist() for line in kl.lines[:2]] == [[[0.1, 9], [1, 5]], [[0.5, 7]]]
    assert len(active.lines) == 2  # trials without a column of their own
    assert all(np.asarray(axes.lines[-1].get_xdata())[0] == 8 for axes in (kl, active))
    assert not [*spectrum_of_trials({"unknown": "no closed form"}, trials)]

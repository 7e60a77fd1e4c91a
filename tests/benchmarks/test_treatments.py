"""The comparison of treatments on tiny data: test is read last, an interrupted run continues, the page follows."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bands import JUDGES, banded
from imports import ROOT
from settings import train_params
from studies import having

from benchmarks import treatments, treatments_report
from benchmarks.results import between
from benchmarks.treatments import CHOICE, TABLE, Budget, Treatment
from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.measure.evaluator import Evaluator
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.samples import SAMPLERS
from pipeline.training import population

STUDY = having(trials=1, epochs=1, population=1, kl_weight=(1e-4, 1e4), seeds=1)
SETTING = replace(STUDY, train=train_params(epochs=1, batch_size=50))
SIZES = {"seeds": 2, "nll_images": 10, "nll_draws": 3, "train_images": 200, "validation_images": 80, "test_images": 90}
BUDGET = Budget(SETTING, dict.fromkeys(LIKELIHOODS, (0.5, 2.0)), prior_components=2, sizes=SIZES)
TRAIN, VALIDATION, TEST = banded(20, 0), banded(8, 1), banded(9, 2)
EVALUATOR = Evaluator(JUDGES, VALIDATION, TRAIN, "grey", 0)
EACH = [Treatment(name, "mixture") for name in LIKELIHOODS]
EACH += [Treatment("bernoulli", "standard", treatment="free_bits")]
TWO = [Treatment("bernoulli", "standard"), Treatment("sigma_optimal", "class")]


def run(folder: Path, read_test: Callable[[], Split] = lambda: TEST) -> pd.DataFrame:
    treatments.run(BUDGET, TWO, TRAIN, EVALUATOR, read_test, folder, folder / "kept")
    return pd.read_csv(folder / TABLE).drop(columns="train_seconds")


@pytest.mark.slow
def test_test_is_read_last_and_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> Split:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, closed)
    choice = pd.read_csv(tmp_path / CHOICE)
    assert len(choice) == 4
    assert choice["fitted_frechet"].notna().all()
    assert not (tmp_path / TABLE).exists()
    table = run(tmp_path)
    key = [*treatments.SETTING, "sampler", "choice", "seed"]
    assert len(table) == len(table[key].drop_duplicates()) == 2 * 2 + 2 * 2 * 2
    assert table[["nll", "frechet", "coverage", "active_units"]].notna().all(axis=None)
    assert not set(choice["seed"]) & set(table["seed"])
    for _, row in table.iterrows():
        own = treatments_report.of_setting(choice, row)
        assert row["kl_weight"] == (treatments.chosen(own, row["sampler"]) if row["choice"] == "tuned" else 1.0)
    with monkeypatch.context() as patch:  # what is measured is not trained again
        patch.setattr(population, "fit", lambda *_: 1 / 0)
        assert run(tmp_path).equals(table)
    page = treatments_report.render(treatments_report.read(tmp_path))
    assert page.count("*untuned*") == 1 + 3  # the protocol and three tables


def test_every_likelihood_is_trained_and_measured() -> None:
    on_test = replace(EVALUATOR, split=TEST)
    for treatment in EACH:
        (row,) = treatments.measured(BUDGET, treatment, {("fitted", "tuned"): 0.5}, 1, TRAIN, on_test)
        assert np.isfinite([row["nll"], row["frechet"]]).all(), treatment
        assert ("bits_per_dimension" in row) == (treatment.likelihood == "discretized_logistic")


def test_a_treatment_names_its_study_and_a_longer_grid_keeps_it() -> None:
    every = treatments.treatments(list(LIKELIHOODS), schedules=True)
    assert len({BUDGET.of(treatment).name() for treatment in every}) == len(every)
    longer = replace(BUDGET, grids=dict.fromkeys(LIKELIHOODS, (0.5, 2.0, 8.0)))
    assert longer.of(TWO[0]).name() == BUDGET.of(TWO[0]).name()


def test_a_collapsed_or_diverged_weight_is_chosen_only_where_all_are() -> None:
    rows = pd.DataFrame({"likelihood": "x", "kl_weight": [0.5, 1, 2], "prior_frechet": [math.nan, 5, 1]})
    rows["prior_diversity"] = [math.nan, 0.5, 0.1]
    assert [treatments.chosen(rows, "prior"), treatments.chosen(rows[2:], "prior")] == [1, 2]
    with pytest.raises(UserError, match="diverged at every weight"):
        treatments.chosen(rows[:1], "prior")


def test_the_page_agrees_with_the_published_tables() -> None:
    page, results = ROOT / treatments_report.DOC, treatments_report.read(ROOT / "benchmarks")
    inside = treatments_report.render(results)
    assert between(page, treatments_report.BEGIN, treatments_report.END, inside) == page.read_text(encoding="utf-8")
    assert set(results.rows["sampler"]) == set(SAMPLERS)
    assert (ROOT / treatments_report.DOC).with_name("treatments.png").exists()

"""What the study says: sentences and tables made from figures, and the weight that is written into params.yaml."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import SETTING, finished, having, refused

from pipeline.base import console
from pipeline.base.paths import BEST, CURVE_TABLE, STUDY_FIGURES, STUDY_SHEETS, TRIALS
from pipeline.stages import playing
from pipeline.stages.study import files, words
from pipeline.stages.study.files import Results, read_curve
from pipeline.stages.study.promotion import promotion, rounded
from pipeline.study.space import Setting
from pipeline.study.uses import answers, summary

ROWS = {  # fitted frechet, diversity; prior frechet, class_accuracy; reconstruction, nll
    0.05: (6.0, 0.9, 300.0, 0.3, 60.0, 99.0),
    0.1: (4.0, 0.9, 250.0, 0.4, 62.0, 97.0),
    0.3: (4.1, 0.9, 100.0, 0.6, 65.0, 95.0),
    1.0: (9.0, 0.8, 30.0, 0.85, 75.0, 95.1),
    3.0: (30.0, 0.4, 9.0, 0.95, 95.0, 99.0),
    9.0: (60.0, 0.1, 60.0, 0.99, 150.0, 150.0),
}
NAMES = ("fitted/frechet", "fitted/diversity", "prior/frechet", "prior/class_accuracy", "reconstruction", "nll")


def figures(seeds: int = 4) -> pd.DataFrame:
    """The trainings of a study, with 1 % of noise."""
    source = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for trial, (weight, values) in enumerate(ROWS.items()):
            noisy = np.array(values) * np.exp(source.normal(0, 0.01, len(values)) * [1, 0, 1, 0, 0.1, 0.1])
            named = {f"validation/{name}": value for name, value in zip(NAMES, noisy, strict=True)}
            rows.append({"trial": trial, "seed": seed, "kl_weight": weight, **named})
    return pd.DataFrame(rows)


def said(seeds: pd.DataFrame, setting: Setting = SETTING) -> dict[str, str]:
    found = answers(seeds, setting)
    return dict(zip(found, words.sentences(found, seeds, setting), strict=True))


def test_the_answer_is_said_in_sentences_made_from_the_figures() -> None:
    text = said(figures())
    assert text["draw_fitted"].startswith("For drawing with the fitted density, anything from 0.1 to 0.3 does (")
    assert "at β = 0.05 frechet is 1.5 times as high" in text["draw_fitted"]
    assert "from β = 3 on you lose half of the variety" in text["draw_fitted"]
    assert text["draw_prior"].startswith("For drawing with the prior, take 3 (frechet 8.99 ±0.06)")
    assert "at β = 1 15% of samples are not the digit asked for" in text["draw_prior"]
    assert text["reconstruct"].startswith("For reconstructing images, take 0.05 (reconstruction 59.96 ±0.01)")
    assert "at β = 0.1 you lose 2.1 nats an image" in text["reconstruct"]
    assert "anything from 0.3 to 1 does" in text["explain"]
    assert text["balance"].startswith("For all of these in balance, take 1 (where draw_prior loses 34% of its range)")


def test_one_seed_tells_nothing_apart_and_says_so() -> None:
    for text in said(figures(1)).values():
        assert "anything from 0.05 to 9 does" in text
        assert "more seeds" in text


def test_disagreeing_judges_and_samples_that_nobody_can_read_are_said() -> None:
    seeds = figures()
    seeds["validation/fitted/frechet_tolerant"] = np.where(seeds["kl_weight"] == 1.0, 2.0, seeds["kl_weight"] + 5)
    text = said(seeds)["draw_fitted"]
    assert "By the judge that forgives blur it would be 1 (1): the two judges disagree." in text
    assert "tune.least_class_accuracy" in said(seeds, having(least_class_accuracy=0.999))["draw_prior"]


def table(seeds: pd.DataFrame) -> pd.DataFrame:
    frame = summary(seeds, SETTING).reset_index().rename(columns={"index": "trial"})
    return frame.assign(state="COMPLETE", run_id=None, feasible=True)


def test_the_table_has_a_row_for_each_weight_with_errors_and_marks() -> None:
    seeds = figures()
    found = answers(seeds, SETTING)
    headings, rows = words.table(found, table(seeds), SETTING)
    assert headings == ["β", "trial", "seeds", "draw_fitted", "draw_prior", "reconstruct", "explain"]
    assert [row[0] for row in rows] == ["0.05", "0.1", "0.3", "1", "3", "9"]
    assert [row[3][-1] for row in rows] == [" ", "★", "≈", " ", " ", " "]
    assert all("±" in cell for row in rows for cell in row[3:])
    assert console.markdown(headings, rows).count("\n") == 7
    diverged = table(seeds).assign(state="DIVERGED")
    assert {row[3] for row in words.table(found, diverged, SETTING)[1]} == {"diverged"}


@pytest.mark.parametrize(
    ("use", "today", "written"),
    [(None, 0.2, None), (None, 0.1, None), (None, 1.0, 0.1), ("draw_prior", 0.2, 3.0), ("explain", 0.2, 0.3)],
)
def test_a_round_weight_from_the_interval_is_promoted_unless_todays_is_inside(
    use: str | None, today: float, written: float | None
) -> None:
    setting, seeds = replace(SETTING, aim=replace(SETTING.aim, kl_weight=today)), figures()
    chosen, why = promotion(setting, Results(None, seeds, table(seeds), "from a file"), None, use)
    assert (None if chosen is None else chosen.params) == (
        None if written is None else {"objective.kl_weight": written}
    )
    assert ("every other weight that was tried is worse" if use == "draw_prior" else "can't be told apart") in why


def test_what_cannot_be_promoted_is_refused_in_one_line() -> None:
    seeds = figures()
    results = Results(None, seeds, table(seeds), "from a file")
    with refused("there is no use 'cake': --for takes draw_fitted, draw_prior"):
        promotion(SETTING, results, None, "cake")
    with refused("has no figures for explain yet: run `cvae tune`"):
        bare = Results(None, seeds.drop(columns="validation/nll"), table(seeds), "from a file")
        promotion(SETTING, bare, None, "explain")
    with refused("the database of study .* is not here"):
        promotion(SETTING, results, 3, None)
    with refused("no complete trial of study .* reaches tune.least_class_accuracy"):
        promotion(having(least_class_accuracy=0.999), results, None, "draw_prior")


def test_the_curves_best_weights_are_read_unless_its_table_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "check_curve", lambda *_: None)
    assert read_curve("ours") == {}
    CURVE_TABLE.parent.mkdir(parents=True)
    curve = {"kl_weight": [0.1234, 2.0], "validation/fitted/frechet": [4, 9], "validation/prior/frechet": [90, 9]}
    pd.DataFrame(curve).to_csv(CURVE_TABLE)
    assert read_curve("ours") == {"prior": 2.0, "fitted": 0.12}
    CURVE_TABLE.write_text("kl_weight\n", encoding="utf-8")
    with refused("curve.csv can't be read .*: run `dvc repro curve`"):
        read_curve("ours")


def test_the_page_shows_the_trials_that_have_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted one may have a picture all the same, which its second try has too."""
    monkeypatch.chdir(tmp_path)
    STUDY_SHEETS.mkdir(parents=True)
    for name in ("0_3", "1_0.5", "2_0.5"):
        (STUDY_SHEETS / f"{name}.png").touch()
    pd.DataFrame({"trial": [0, 1, 2], "validation/fitted/frechet": [9.0, None, 4.0]}).to_csv(TRIALS)
    assert [run["words"] for run in playing.of_study()] == ["trial 2, fitted frechet 4", "trial 0, fitted frechet 9"]


@pytest.mark.slow
def test_a_study_of_several_objectives_and_parameters_exports_its_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wide = having(objectives=("reconstruction", "kl"), latent_size=(2, 4), trials=4, epochs=1, seeds=1)
    files.export(finished(tmp_path, wide), {})
    best = json.loads(BEST.read_text(encoding="utf-8"))
    assert best["trial"] in best["front"]
    assert best["params"].keys() == {"objective.kl_weight", "model.latent_size"}
    assert {"pareto.png", "importances.png"} < {path.name for path in STUDY_FIGURES.iterdir()}


def test_a_weight_has_as_few_digits_as_keep_it_in_its_interval() -> None:
    assert rounded(0.1873, 0.1, 0.5) == 0.2
    assert rounded(0.0949, 0.0949, 0.3) == 0.095
    assert rounded(1 / 3, 1 / 3, 1 / 3) == 1 / 3

"""`cvae doctor` and `cvae reproduce`, called as a user does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from bands import banded
from commands import Cvae, one_line
from settings import model_params, objective_params
from stores import forget

from pipeline.base.files import write_json, write_table
from pipeline.base.params import digest, flat, write
from pipeline.base.paths import HISTORY, JUDGE, MODEL, PREPARED, RUN
from pipeline.cli.doctor import Gathered, screen
from pipeline.measure.doctor import Case, diagnose
from pipeline.measure.judge import Judges
from pipeline.measure.judge import build as build_judge
from pipeline.model.cvae import resolve
from pipeline.stages.saved import load_cvae, save_judges, save_splits
from pipeline.tracking import runs as tracking
from pipeline.tracking.outbox import Outbox
from pipeline.weight import article

LOSSES = [200.0, 150.0, 130.0, 110.0]


def add_data(project: Path) -> None:
    save_splits(project / PREPARED, {"train": banded(20, 0), "validation": banded(12, 1)})  # reading test would fail


def add_judge(project: Path) -> None:
    save_judges(project / JUDGE, Judges(build_judge(0), build_judge(0)), {})


@pytest.mark.slow
def test_the_doctor_measures_what_the_files_allow_and_names_what_is_missing(project: Path, cvae: Cvae) -> None:
    def says(*words: str) -> str:
        out = one_line(cvae("doctor models/cvae.safetensors").out)
        assert [one for one in words if one not in out] == []
        return out

    says("nothing measured", "collapsed (lacks kl)", "dvc repro judge")
    add_data(project)
    out = says("measured on 120 validation images", "✗ collapsed (severe)", "prior_hole (lacks", "dvc repro judge")
    assert "lacks spectrum" not in out
    add_judge(project)
    before = sorted(project.rglob("*"))
    unchecked = "not checked: under_trained (lacks history), overfitted (lacks history), nll_loose"
    out = says("✗ collapsed (severe)", "(below 0.1)", unchecked, "dvc repro evaluate")
    assert "dvc repro judge" not in out
    assert sorted(project.rglob("*")) == before


def test_a_history_counts_if_it_is_the_models_own(project: Path, cvae: Cvae) -> None:
    write_table(HISTORY, pd.DataFrame({"validation/reconstruction": LOSSES, "validation/kl": [1.0, 2.0, 3.0, 4.0]}))
    for of, told in (
        (digest(load_cvae(project / MODEL).params), "! under_trained (warning)"),
        ("another", "under_trained (lacks history)"),
    ):
        write_json(RUN, {"run_id": "0a1b", "tracking_uri": "", "hashes": {"params": of}})
        assert told in one_line(cvae("doctor").out)


def test_the_screen_keeps_to_its_width() -> None:
    figures = {"kl": 0.0, "active_units": 0, "judge_accuracy": 0.5, "reconstruction": 90.0, "grey_floor": 60.0}
    case = Case(objective_params(kl_weight=100_352.0), figures)
    text = screen(Gathered("a name " * 20, "measured", case, ["a hint " * 20]), diagnose(case), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert "kl_weight from 100,352 to 1" in one_line(text)


@pytest.fixture
def store(project: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project with an empty MLflow database, which is waited for however long it takes."""
    shutil.copy(database, project)
    monkeypatch.setattr(Outbox, "_patience", lambda _: 300.0)
    yield project
    forget()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_is_read_as_far_as_it_goes(cvae: Cvae) -> None:
    params = flat({"objective": objective_params(kl_weight=2.0), "model": resolve(model_params())})
    with tracking.start("a training", "e", params=params) as one:
        for epoch, loss in enumerate(LOSSES, 1):
            one.metrics({"validation/reconstruction": loss, "validation/kl": 5.0}, step=10 * epoch)
    out = one_line(cvae(f"doctor runs:/{one.run_id}").out)
    about = "run a training, bernoulli on grey pixels, β = 2, not evaluated"
    for words in (about, "under_trained (warning)", "lacks prior/frechet", "objective.kl_weight=2"):
        assert words in out

    with tracking.add_to(one.pointer(), "a training", "e") as one:
        figures = {"kl": 5.0, "prior/class_accuracy": 0.5, "prior/frechet": 90.0, "fitted/frechet": 3.0}
        one.metrics({f"validation/{name}": value for name, value in figures.items()}, step=0)
    out = one_line(cvae(f"doctor runs:/{one.run_id}/").out)
    assert "recorded on validation" in out
    assert "verdict: prior_hole, under_trained" in out

    with tracking.start("an older version", "e", params=params) as old:
        old.metrics({"validation_kl": 5.0}, step=1)
    assert "has none of this version's figures" in cvae(f"doctor runs:/{old.run_id}").err
    with tracking.start("a study", "e") as other:
        pass
    assert "is no training of this project" in cvae(f"doctor runs:/{other.run_id}").err


@pytest.mark.slow
def test_the_articles_experiment_leaves_a_table_sentences_and_a_picture(
    project: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_data(project)
    add_judge(project)
    write({("sample", "components"): 1}, project / "params.yaml")
    monkeypatch.setattr(article, "CONDITIONINGS", ("sum",))
    monkeypatch.setattr(article, "WEIGHTS", (1.0, 1e-5))
    answer = cvae("reproduce article --epochs 1")
    assert answer.status == 0
    folder = project / "reports/article"
    table = pd.read_csv(folder / "results.csv")
    assert table["kl_weight"].round(2).tolist() == [100_352.0, 1.0] * 2
    assert table.notna().all(axis=None)
    found = json.loads((folder / "article.json").read_text(encoding="utf-8"))
    assert len(found["claims"]) == 4
    assert found["protocol"]["split"] == "validation"
    assert found["protocol"]["train"]["batch_size"] == 128
    assert all(claim in one_line(answer.out) for claim in found["claims"])
    assert (folder / "grids.png").stat().st_size > 5_000

"""`cvae doctor` and `cvae reproduce`, called as a user does."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from bands import banded
from imports import ROOT
from PIL import Image
from settings import model_params, objective_params
from stores import forget

from pipeline.base.params import digest, flat, read, write
from pipeline.cli import doctor as examine
from pipeline.cli import main as cli
from pipeline.measure import doctor, judge
from pipeline.measure.doctor import Case
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.stages.saved import load_cvae, save_cvae, save_judge, save_splits
from pipeline.tracking import runs as tracking
from pipeline.weight import article


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cvae", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and an untrained model, to work in."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    saved = read(ROOT / "params.yaml")
    saved["model"] |= {"latent_size": 2, "encoder_hidden": [8], "decoder_hidden": [8]}
    saved = {name: saved[name] for name in ("model", "objective", "train")} | {"sample": {"components": 1}}
    density = {
        "weights": torch.ones(10, 1),
        "means": torch.zeros(10, 1, 2),
        "roots": torch.eye(2).expand(10, 1, 2, 2),
    }
    model = build(resolve(model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))), 0)
    (tmp_path / "models").mkdir()
    save_cvae(tmp_path / "models/cvae.safetensors", model, Density(**density), saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_data(project: Path) -> None:
    (project / "data/prepared").mkdir(parents=True)
    splits = {"train": banded(20, 0), "validation": banded(12, 1)}  # without test: reading it would fail
    save_splits(project / "data/prepared/mnist.safetensors", splits)


def add_judge(project: Path) -> None:
    save_judge(project / "models/judge.safetensors", judge.build(0), {})


def add_history(project: Path, params_hash: str) -> None:
    (project / "models/run.json").write_text(json.dumps({"hashes": {"params": params_hash}}), encoding="utf-8")
    (project / "reports").mkdir()
    rows = {"validation/reconstruction": [200.0, 150.0, 130.0, 110.0], "validation/kl": [1.0, 2.0, 3.0, 4.0]}
    pd.DataFrame(rows).to_csv(project / "reports/history.csv", index=False)


@pytest.mark.usefixtures("project")
def test_a_model_alone_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "doctor") == 0
    out = capsys.readouterr().out
    assert "nothing measured" in out
    assert "collapsed (lacks kl)" in out
    assert "dvc repro judge" in out


def test_an_untrained_model_is_found_collapsed_on_validation(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(project)
    add_judge(project)
    before = sorted(project.rglob("*"))
    assert run(monkeypatch, "doctor", "models/cvae.safetensors") == 0
    out = capsys.readouterr().out
    assert "measured on 120 validation images" in out
    assert "✗ collapsed  (severe)" in out
    assert "(at most 0.1)" in out
    assert "verdict: collapsed" in out
    assert "not checked: under_trained (lacks history)" in out
    assert sorted(project.rglob("*")) == before


def test_without_a_judge_what_needs_none_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(project)
    assert run(monkeypatch, "doctor") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "✗ collapsed" in out
    assert "prior_hole (lacks prior/frechet)" in out
    assert "trains the judge" in out


@pytest.mark.parametrize("its_own", [True, False])
def test_a_history_counts_if_it_is_the_models_own(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], its_own: bool
) -> None:
    params = load_cvae(Path("models/cvae.safetensors")).params
    add_history(project, digest(params) if its_own else "another")
    assert run(monkeypatch, "doctor") == 0
    out = capsys.readouterr().out
    assert ("! under_trained  (warning)" in out) == its_own
    assert ("under_trained (lacks history)" in out) == (not its_own)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("doctor", "absent.safetensors"), "absent.safetensors not found: train a model first"),
        (("doctor", "params.yaml"), "params.yaml is no safetensors file"),
        (("doctor", "runs:/nonsense"), "'runs:/nonsense' names no run"),
        (("doctor", "runs:/0123abcd"), "there is no run 0123abcd"),
        (("reproduce", "artikel"), "'article'"),
        (("reproduce", "article", "--epochs", "0"), "'--epochs'"),
        (("reproduce", "article"), "data/prepared/mnist.safetensors not found: run `dvc repro prepare` first"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = sorted(project.rglob("*"))
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("columns", [60, 100])
def test_the_screen_keeps_to_its_width(columns: int) -> None:
    figures = {"kl": 0.0, "active_units": 0, "judge_accuracy": 0.5, "reconstruction": 90.0, "grey_floor": 60.0}
    case = Case(objective_params(kl_weight=100_352.0), figures)
    text = examine.screen(examine.Gathered("a title " * 20, case, ["a hint " * 20]), doctor.diagnose(case), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "✗ collapsed" in text
    assert "kl_weight from 100,352 to 1" in " ".join(text.split())


@pytest.fixture
def store(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield project
    forget()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow's own queries
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # its own classes
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning")  # its tables
def test_a_run_is_read_as_far_as_it_goes(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = flat({"objective": objective_params(kl_weight=2.0), "model": resolve(model_params())})
    with tracking.start("a training", "e", params=params, root=store) as one:
        for epoch, loss in enumerate((200.0, 150.0, 130.0, 110.0), 1):
            one.metrics({"validation/reconstruction": loss, "validation/kl": 5.0}, step=10 * epoch)
    assert run(monkeypatch, "doctor", f"runs:/{one.run_id}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "run a training, bernoulli on grey pixels, β = 2, not evaluated" in out
    assert "under_trained (warning)" in out
    assert "lacks prior/frechet" in out
    assert "objective.kl_weight=2" in out

    with tracking.resume(one.run_id, one.uri, "a training", "e", root=store) as one:
        figures = {"kl": 5.0, "prior/class_accuracy": 0.5, "prior/frechet": 90.0, "fitted/frechet": 3.0}
        one.metrics({f"test/{name}": value for name, value in figures.items()}, step=0)
    assert run(monkeypatch, "doctor", f"runs:/{one.run_id}/") == 0
    out = capsys.readouterr().out
    assert "its figures on test" in " ".join(out.split())
    assert "verdict: prior_hole, under_trained" in out

    with tracking.start("an older version", "e", params=params, root=store) as old:
        old.metrics({"validation_kl": 5.0}, step=1)
    assert run(monkeypatch, "doctor", f"runs:/{old.run_id}") == 2
    assert "has none of this version's figures" in capsys.readouterr().err

    with tracking.start("a study", "e", root=store) as other:
        pass
    assert run(monkeypatch, "doctor", f"runs:/{other.run_id}") == 2
    assert "is no training of this project" in capsys.readouterr().err


@pytest.mark.slow
def test_the_articles_experiment_leaves_a_table_sentences_and_a_picture(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(project)
    add_judge(project)
    write({("sample", "components"): 1}, project / "params.yaml")
    monkeypatch.setattr(article, "CONDITIONINGS", ("sum", "concat"))
    assert run(monkeypatch, "reproduce", "article", "--epochs", "1") == 0
    out = capsys.readouterr().out
    folder = project / "reports/article"
    table = pd.read_csv(folder / "results.csv")
    assert len(table) == 5 + 3 * 2
    assert set(table["kl_weight"].round(2)) == {100_352.0, 100.35, 10.04, 1.0, 0.1}
    assert table.notna().all(axis=None)
    found = json.loads((folder / "article.json").read_text(encoding="utf-8"))
    assert len(found["claims"]) == 4
    assert found["protocol"]["split"] == "validation"
    assert found["protocol"]["train"]["batch_size"] == 128
    squeezed = " ".join(out.split())
    assert all(claim in squeezed for claim in found["claims"])
    with Image.open(folder / "grids.png") as image:
        assert image.width > 600
    assert (folder / "grids.png").stat().st_size < 100_000

"""`dvc repro` as a whole: what it leaves, and what it does again, back again and after a kill."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipelines import EPOCHS, SETTINGS, Project, restored_files
from safetensors.numpy import load_file

from pipeline.base.console import number

pytestmark = pytest.mark.slow

STUDY_FIGURES = {
    "uses.png", "weights.png", "rate_distortion.png", "history.png", "collapse_to_chaos.png", "spectrum.png",
}  # fmt: skip


# What one run of the pipeline leaves


def test_every_report_is_there_and_the_model_has_learned(project: Project) -> None:
    tensors = load_file(project.folder / "data/prepared/mnist.safetensors")
    assert [len(tensors[f"{name}.labels"]) for name in ("train", "validation", "test")] == [1100, 200, 497]
    figures, history = project.json("reports/metrics.json"), project.csv("reports/history.csv")
    names = {"class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage"}
    assert all(names <= figures[sampler].keys() for sampler in ("prior", "fitted", "real"))
    assert figures["elbo"] == pytest.approx(-figures["reconstruction"] - figures["kl"])
    assert figures["nll"] < -figures["elbo"]
    assert len(history) == EPOCHS
    assert history["validation/elbo"].iloc[-1] > history["validation/elbo"].iloc[0]
    assert figures["judge_accuracy"] > 0.8
    assert figures["fitted"]["class_accuracy"] > 0.3
    assert not figures["collapsed"]
    compared = project.json("reports/validation.json")
    assert [found["protocol"]["images"] for found in (figures, compared)] == [497, 200]
    assert figures["standard_deviation"]["fitted"]["frechet"] > 0
    table = project.csv("reports/per_class.csv")
    assert len(table) == 30
    assert table.groupby("sampler")["frechet"].mean()["fitted"] == pytest.approx(compared["fitted"]["frechet"])
    pictures = project.files("reports/figures")
    assert {"samples.png", "samplers.png", "reconstructions.png", "traversal.png", "latent_space.png"} < pictures


def test_ten_headline_figures_are_compared_the_weight_first(project: Project) -> None:
    headline, figures = project.json("reports/headline.json"), project.json("reports/validation.json")
    assert len(headline) == 10
    assert next(iter(headline)) == "kl_weight"
    assert headline["fitted/frechet"] == figures["fitted"]["frechet"]
    shown = project.run("dvc", "metrics", "show").splitlines()
    assert "kl_weight" in shown[0]
    assert len(shown) == 2


def test_dvc_draws_curves_by_epoch_trials_by_weight_and_bars_by_digit(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "plots", "show", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    drawn = [json.loads(found) for found in re.findall(r"var spec = (\{.*\});", page)]
    axes = {chart["encoding"]["x"]["field"]: chart for chart in drawn if "encoding" in chart}
    assert axes["digit"]["mark"]["type"] == "bar"
    assert axes["digit"]["encoding"]["column"]["field"] == "sampler"
    assert axes["kl_weight"]["encoding"]["x"]["scale"] == {"type": "log"}
    assert '"field": "epoch"' in page
    assert "<DVC_METRIC" not in page


def test_the_pipeline_leaves_the_checkout_clean(project: Project) -> None:
    """But for dvc.lock, which has the hashes of what this machine made."""
    committed = project.run("git", "show", "--name-only", "--format=", "HEAD").split()
    assert committed == ["dvc.lock"]
    assert project.run("git", "status", "--porcelain") == ""


def test_one_run_holds_training_and_evaluation(project: Project) -> None:
    run = project.runs()[project.json("models/run.json")["run_id"]]
    figures = project.json("reports/metrics.json")
    assert run["status"] == "FINISHED"
    assert run["metrics.test/fitted/frechet"] == pytest.approx(figures["fitted"]["frechet"])
    compared = project.json("reports/validation.json")
    assert run["metrics.validation/fitted/frechet"] == pytest.approx(compared["fitted"]["frechet"])
    last = project.csv("reports/history.csv")["validation/elbo"].iloc[-1]
    assert run["metrics.validation/elbo"] == pytest.approx(last)
    assert run["tags.doctor"] == project.json("reports/doctor.json")["verdict"]
    assert float(run["params.objective.kl_weight"]) == project.params()["objective"]["kl_weight"]
    assert run["tags.dvc_stage"] == "train"
    assert f"| test | fitted | {number(figures['fitted']['frechet'])} |" in str(run["tags.mlflow.note.content"])
    assert not {"metrics.epoch", "metrics.step"} & run.keys()
    previews = (project.folder / "mlartifacts").rglob("preview*.png")
    assert {int(path.name.split("+")[2]) for path in previews} == set(range(EPOCHS + 1))


def test_the_study_leaves_a_table_a_best_weight_and_pictures(project: Project) -> None:
    trials, best = project.csv("reports/study/trials.csv"), project.json("reports/study/best.json")
    assert len(trials) == SETTINGS["tune"]["trials"]
    assert set(trials["state"]) == {"COMPLETE"}
    chosen = trials[trials["trial"] == best["trial"]].iloc[0]
    frechet = "validation/fitted/frechet"
    low, high = best["interval"]
    assert best["values"] == {frechet: pytest.approx(chosen[frechet])}
    assert low <= best["kl_weight"] <= high
    assert best["uses"].keys() == {"draw_fitted", "draw_prior", "reconstruct", "explain", "balance"}
    assert best["uses"]["draw_fitted"]["interval"] == best["interval"]
    means = project.csv("reports/study/seeds.csv").groupby("trial")[frechet].mean()
    assert means.to_numpy() == pytest.approx(trials.sort_values("trial")[frechet].to_numpy())
    assert (best["kl_weight"], best["run_id"]) == (pytest.approx(chosen["kl_weight"]), chosen["run_id"])
    assert best["real"]["class_accuracy"] > 0.8
    assert project.files("reports/study/figures") == STUDY_FIGURES


def test_each_trial_is_a_run_below_the_studys_under_the_names_of_a_training(project: Project) -> None:
    runs = project.runs()
    trained = runs[project.json("models/run.json")["run_id"]]
    epochs = project.csv("reports/history.csv").columns
    (parent,) = (run_id for run_id, run in runs.items() if run.get("tags.kind") == "study")
    for row in project.csv("reports/study/trials.csv").to_dict("records"):
        run = runs[row["run_id"]]
        assert run["tags.mlflow.parentRunId"] == parent
        assert (run["status"], run["tags.state"]) == ("FINISHED", row["state"])
        assert float(run["params.objective.kl_weight"]) == pytest.approx(row["kl_weight"])
        for name in (
            "validation/fitted/frechet",
            "validation/kl",
        ):  # means over the seeds, also where the run has a curve of the first one
            assert run[f"metrics.{name}"] == pytest.approx(row[name])
        assert {name for name in trained if name.startswith("params.")} <= run.keys()
        assert {f"metrics.{name}" for name in epochs if "/" in name and not name.startswith("time/")} <= run.keys()


# Again, back again, elsewhere


def test_a_former_weight_runs_nothing_and_has_its_own_run(project: Project, tmp_path: Path) -> None:
    """0.2, then 1, then 0.2 again: DVC restores every file of the first, the pointer to its MLflow run among them."""
    project = project.copy(tmp_path / "copy")
    first = {path: (project.folder / path).read_bytes() for path in restored_files(project)}
    project.change("objective", kl_weight=1)
    assert {"train", "evaluate"} <= set(project.repro("evaluate"))
    assert (project.folder / "models/run.json").read_bytes() != first["models/run.json"]
    project.change("objective", kl_weight=0.2)
    assert project.repro() == ["check"] or project.repro() == []
    assert {path: (project.folder / path).read_bytes() for path in restored_files(project)} == first


def test_other_checksums_under_the_same_name_are_noticed(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    sums = project.folder / "SHA256SUMS"
    digest = sums.read_text(encoding="utf-8").split()[0]
    sums.write_text(sums.read_text(encoding="utf-8").replace(digest, "0" * 64), encoding="utf-8")
    assert "gave another file" in project.run("dvc", "repro", "download", status=255)
    sums.write_text(f"{sums.read_text(encoding='utf-8').replace('0' * 64, digest)}\n", encoding="utf-8")
    assert project.repro("prepare") == ["download"]  # which brings the same files, so that nothing else is outdated


def test_another_split_downloads_nothing_again(project: Project, tmp_path: Path) -> None:
    project = replace(project.copy(tmp_path / "copy"), mirror=tmp_path / "no mirror")
    raw = {path: path.stat().st_mtime_ns for path in (project.folder / "data/raw").iterdir()}
    project.change("data", validation_size=150, seed=1)
    assert project.repro("prepare") == ["check", "prepare"]
    assert {path: path.stat().st_mtime_ns for path in (project.folder / "data/raw").iterdir()} == raw
    assert len(load_file(project.folder / "data/prepared/mnist.safetensors")["validation.labels"]) == 150


KILLED = """
import os, signal
from pipeline.stages import recording, train

save = recording.save_training

def save_or_die(path, training, state):
    if training.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, training, state)

recording.save_training = save_or_die
train.main()
"""


def test_a_killed_training_goes_on_to_the_same_weights(project: Project, tmp_path: Path) -> None:
    """kill -9 after an epoch that no checkpoint holds yet, then the stage's own command: the weights of an
    uninterrupted run, in the same MLflow run."""
    project = project.copy(tmp_path / "copy")
    whole, before = load_file(project.folder / "models/cvae.safetensors"), project.runs()
    (project.folder / "models/cvae.safetensors").unlink()
    project.run("python", "-c", KILLED, status=-signal.SIGKILL)
    cut_off = project.runs().keys() - before.keys()  # none, if MLflow had no time to create it
    assert "after epoch 2" in project.cvae("train")
    resumed = load_file(project.folder / "models/cvae.safetensors")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert len(project.csv("reports/history.csv")) == EPOCHS
    runs = project.runs()
    run_id = project.json("models/run.json")["run_id"]
    assert cut_off <= {run_id} == runs.keys() - before.keys()
    assert runs[run_id]["status"] == "FINISHED"
    assert not list((project.folder / ".checkpoints").glob("*.*"))

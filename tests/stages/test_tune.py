"""The study of a whole project, the branch of completions, and recipes."""

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pipelines import BUSY, HEARING, SETTINGS, Project

pytestmark = pytest.mark.slow


# The study


def test_evaluation_can_do_without_the_study_which_has_the_page(project: Project) -> None:
    assert "'tune'" not in project.run("dvc", "repro", "--dry", "--force", "evaluate")
    (page,) = project.folder.glob("mlartifacts/*/artifacts/explore.html")  # MLflow shows it, in the study's run
    assert page.read_bytes() == (project.folder / "reports/explore.html").read_bytes()
    assert project.runs()[page.parts[-3]]["tags.kind"] == "study"


def test_the_best_weight_is_promoted_and_nothing_else_changes(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    best = project.json("reports/study/best.json")
    assert best["study"] in project.cvae("study")
    assert "recorded on validation" in project.cvae("doctor", f"runs:/{project.json('models/run.json')['run_id']}")
    before = (project.folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    said = project.cvae("promote", "--trial", str(best["trial"]))
    after = (project.folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [new.split()[:2] for new in changed] == [["kl_weight:", str(best["kl_weight"])]]
    assert f"trial {best['trial']}" in said
    assert project.runs()[best["run_id"]]["tags.promoted"] == "true"
    kept = (project.folder / "params.yaml").read_bytes()
    assert "can't be told apart" in project.cvae("promote")  # today's is inside
    assert project.cvae("promote", "--trial", "99", status=2).startswith("error: study kl-weight")
    assert project.cvae("promote", "--for", "cake", status=2).startswith("error: there is no use 'cake'")
    assert (project.folder / "params.yaml").read_bytes() == kept
    project.change("objective", kl_weight=1e-3)
    assert "objective.kl_weight 0.001 →" in project.cvae("promote", "--for", "draw_prior")
    card = (project.folder / "models/CARD.md").read_text(encoding="utf-8")
    assert f"with β = {best['uses']['draw_prior']['kl_weight']:g}. " in card  # that of the trial, which is not rounded
    low, high = best["uses"]["draw_prior"]["interval"]
    assert low <= project.params()["objective"]["kl_weight"] <= high


def test_two_repros_and_a_study_at_once_damage_nothing(project: Project, tmp_path: Path) -> None:
    here = project.copy(tmp_path / "copy")
    for path in here.folder.glob("optuna.db*"):
        path.unlink()  # the study begins anew
    former = next(here.folder.glob(".checkpoints/kl-weight-*/*.safetensors"))
    former.rename(former.with_name("99.safetensors"))  # of a trial that the new one does not have
    here.change("tune", population=2, trials=3, seeds=1)
    others = ("train", "evaluate")

    def start(*command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command, cwd=here.folder, env=here.environment, encoding="utf-8", stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    processes = [start("dvc", "repro", "--force", "--single-item", "tune", *others)]
    assert processes[0].stdout is not None
    assert any("Running stage 'tune'" in line for line in processes[0].stdout)  # and DVC has deleted what was there
    processes.append(start("dvc", "repro", "--force", "--single-item", *others))
    processes.append(start("python", "-m", "pipeline.stages.tune"))
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda process: process.communicate()[0], processes))
    *repros, study = (process.returncode for process in processes)
    assert study == 0, said
    assert not any("Traceback" in text for text in said)
    assert all(status == 0 or BUSY.search(text) for status, text in zip(repros, said, strict=False)), said
    here.repro("--single-item", "tune", *others)  # what had no turn, and the study, if the other one wrote last
    assert here.repro("--single-item", "tune", *others) == []
    for name in ("models/cvae.safetensors", "reports/per_class.csv"):
        assert (here.folder / name).read_bytes() == (project.folder / name).read_bytes()
    assert list(here.csv("reports/study/trials.csv")["state"]) == ["COMPLETE"] * 3
    assert {run["status"] for run in here.runs().values()} == {"FINISHED"}
    assert here.query("SELECT key FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1") == []
    broken = [line for line in here.cvae("verify", status=2).splitlines() if line.startswith("✗")]
    assert [re.search("what (check|explore) ran with", line) is None for line in broken] == [False] * len(broken)


def test_a_trials_model_is_kept_drawn_from_and_registered(project: Project, tmp_path: Path) -> None:
    project, out = project.copy(tmp_path / "copy"), tmp_path / "digits.npz"
    best, trained = project.json("reports/study/best.json"), project.json("models/run.json")["run_id"]
    project.cvae("sample", "0-9", "--count", "2", "--model", f"runs:/{best['run_id']}", "--out", str(out))
    assert np.load(out)["images"].shape == (20, 28, 28)
    kept = {run for (run,) in project.query("SELECT source_run_id FROM logged_models")}
    others = set(project.csv("reports/study/trials.csv")["run_id"]) - kept
    refused = project.cvae("sample", "8", "--model", f"runs:/{others.pop()}", status=2)
    assert "only the best trial's model is kept" in refused

    assert "cvae-mnist@champion is now version 1" in project.cvae("promote", "--trial", str(best["trial"]))
    assert "is version 1, as it was" in project.cvae("promote", "--trial", str(best["trial"]))
    project.cvae("promote")  # today's weight can't be told apart from the best: its own model is registered
    aliases = project.query(
        "SELECT alias, run_id FROM registered_model_aliases JOIN model_versions USING (name, version)"
    )
    assert dict(aliases) == {"champion": trained, "challenger": best["run_id"]}


def test_a_clone_without_the_database_answers_from_the_exported_files(project: Project, tmp_path: Path) -> None:
    here, project = project.cvae("study"), project.copy(tmp_path / "copy")
    (project.folder / "optuna.db").unlink()
    there = project.cvae("study")
    assert "its database is not here" in there
    assert there.partition("\nStudy")[0] == here.partition("\nStudy")[0]
    assert "For drawing with the fitted density" in there
    assert project.cvae("study", "--markdown").count("| draw_fitted |") == 2
    assert "can't be told apart" in project.cvae("promote", "--for", "balance")


def test_a_machine_that_trained_no_trial_of_a_complete_study_exports_it(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    shutil.rmtree(project.folder / "optuna_artifacts")  # the trials' pictures stay where they were trained
    project.cvae("tune")
    assert project.files("reports/study/sheets") == set()


STUDY = """
from pipeline.base import console
from pipeline.stages import tune
console.run(tune.main)
"""


def test_ctrl_c_ends_a_study_cleanly_which_continues(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    project.change("tune", trials=200)
    known, tune = project.runs(), [sys.executable, "-ISc", HEARING, "python", "-c", STUDY]
    with subprocess.Popen(
        tune, cwd=project.folder, env=project.environment, encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tune "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "of 200 trials" in rest
    assert "Traceback" not in rest
    new = {run_id: run for run_id, run in project.runs().items() if run_id not in known}
    assert {str(run["status"]) for run in new.values()} <= {"FINISHED", "KILLED"}
    assert [run["status"] for run in project.runs().values() if run.get("tags.kind") == "study"] == ["KILLED"]
    with closing(sqlite3.connect(project.folder / "optuna.db")) as database:
        states = [state for (state,) in database.execute("SELECT state FROM trials")]
    assert set(states) <= {"COMPLETE", "FAIL", "WAITING"}
    project.change("tune", trials=states.count("COMPLETE") + 1)
    project.cvae("tune")
    project.cvae("explore")  # of a table with trials that have no figures


# Completions and recipes


def test_the_branch_of_completions(project: Project, tmp_path: Path) -> None:
    """Trained by the same fit into the same tracker, measured in the agreed form, and used at the command line."""
    assert not (project.folder / "models/completer.safetensors").exists()  # `dvc repro` leaves the branch alone
    project, before = project.copy(tmp_path / "copy"), len(project.runs())
    project.run("dvc", "repro", "completion/dvc.yaml")
    figures = project.json("reports/completion.json")
    for pixels in ("thresholded", "drawn"):
        one, two, three = (figures[pixels][number] for number in "123")
        assert one.keys() == {"cvae", "cvae_label", "network"}
        assert one["network"] > two["network"] > three["network"] > 0
    assert figures["protocol"]["images"] == SETTINGS["evaluate_completion"]["images"]
    runs, run_id = project.runs(), project.json("models/completion_run.json")["run_id"]
    assert len(runs) == before + 2
    assert runs[run_id]["status"] == "FINISHED"
    history = project.csv("reports/completion_history.csv")
    assert history.groupby("model")["epoch"].max().to_dict() == {"cvae": 4, "network": 3}

    eight, out = str(tmp_path / "eight.png"), str(tmp_path / "out.png")
    project.cvae("sample", "8", "--count", "1", "--out", eight)
    said = project.cvae("complete", eight, "--mask", "top", "--count", "4", "--out", out)
    assert said.count("read as") == 4
    kept = Path(out).read_bytes()
    words = ("--mask", "top", "--count", "4", "--out", out, "--model", f"runs:/{run_id}")
    project.cvae("complete", eight, *words)
    assert Path(out).read_bytes() == kept
    assert "up to date" in project.run("dvc", "repro", "completion/dvc.yaml")


def test_a_recipe_leaves_its_results_beside_the_defaults(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    settings = ("train.epochs=1", "model.encoder_hidden=[32]", "model.decoder_hidden=[32]", "sample.components=2",
                "evaluate.nll_draws=3")  # fmt: skip
    words = [word for setting in settings for word in ("-S", setting)]
    before = project.json("reports/metrics.json")
    head = project.run("git", "rev-parse", "HEAD").strip()
    # What an earlier try left is replaced: its experiment, and its files
    project.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/recipe-samples", "HEAD")
    (project.folder / "reports/recipes/samples").mkdir(parents=True)
    (project.folder / "reports/recipes/samples/metrics.json").touch()
    project.run("sh", "recipes/run.sh", "samples", *words)
    assert project.json("reports/recipes/samples/metrics.json")["protocol"]["likelihood"] == "sigma_optimal"
    assert project.json("reports/metrics.json") == before
    assert project.run("git", "status", "--porcelain") == ""
    assert "completion likelihood samples" in project.run("sh", "recipes/run.sh", "cake", status=2)

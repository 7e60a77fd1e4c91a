"""Other values: refused, interrupted, side by side, and at a colleague's."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import BUSY, HEARING, Project, restored_files

pytestmark = pytest.mark.slow


def test_a_refused_value_leaves_model_params_and_runs(project: Project, tmp_path: Path) -> None:
    """By `cvae try` and by DVC itself; in the other sections, tests/stages/test_dvc.py refuses one."""
    project = project.copy(tmp_path / "copy")

    def left() -> list[Any]:
        names = {"params.yaml", *restored_files(project)} - {"reports/params.txt"}  # that of the stage that refuses
        return [{name: (project.folder / name).read_bytes() for name in sorted(names)}, project.runs()]

    before = left()
    for key, value in {"data.validation_size": -1, "model.prior": "foo", "tracking.experiment": 3}.items():
        refused = project.cvae("try", f"{key}={value}", status=2)
        assert refused.startswith(f"error: params.yaml: {key} must be")
        assert len(refused.splitlines()) == 1
    assert left() == before

    remedy = "git show HEAD:params.yaml > params.yaml"
    said = project.run("dvc", "exp", "run", "-S", "tune.trials=none", status=255)
    assert "tune.trials must be" in said
    assert remedy in said
    project.run("sh", "-c", remedy)
    assert left() == before
    assert project.repro() in ([], ["check"])


def test_ctrl_c_ends_an_experiment_cleanly(project: Project, tmp_path: Path) -> None:
    """DVC starts by itself, so that it is in the process group of what a terminal interrupts."""
    project = project.copy(tmp_path / "copy")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dvc").symlink_to(Path(sys.executable).with_name("dvc"))
    environment = project.environment
    environment["PATH"] = os.pathsep.join([str(tmp_path / "bin"), environment["PATH"]])
    params, model = ((project.folder / path).read_bytes() for path in ("params.yaml", "models/cvae.safetensors"))
    words = ("-um", "pipeline.cli", "try", "objective.kl_weight=0.9", "train.epochs=1000")
    with subprocess.Popen(
        [sys.executable, "-c", HEARING, sys.executable, *words], cwd=project.folder, env=environment, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line.startswith("train 1/") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to DVC and its stage, too
        said = process.stdout.read()
    assert process.returncode == 130
    assert said.count("interrupted") == 1
    assert "Traceback" not in said
    assert "params.yaml is as it was" in said
    assert (project.folder / "params.yaml").read_bytes() == params
    assert project.run("git", "status", "--porcelain") in ("", " M dvc.lock\n")
    project.run("dvc", "checkout")
    assert (project.folder / "models/cvae.safetensors").read_bytes() == model


def test_a_colleague_pulls_what_was_pushed(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.run("dvc", "push")
    project.run("git", "commit", "-qam", "Name a remote")
    project.run("git", "clone", "-q", ".", str(tmp_path / "colleague"))
    colleague = replace(project, folder=tmp_path / "colleague")
    colleague.run("dvc", "pull")
    assert colleague.repro() == []
    assert colleague.json("reports/headline.json") == project.json("reports/headline.json")


def test_figures_of_different_judges_or_lengths_are_not_compared_in_silence(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    same = project.cvae("compare", "HEAD")
    assert "different" not in same
    lock = project.folder / "dvc.lock"
    judge = re.search(r"path: models/judge.safetensors\n +hash: md5\n +md5: (\w+)", lock.read_text(encoding="utf-8"))
    assert judge
    lock.write_text(lock.read_text(encoding="utf-8").replace(judge[1], "0" * 32), encoding="utf-8")
    assert "different judges measured workspace; HEAD" in project.cvae("compare", "HEAD")
    epochs = re.compile(r"(train:\n +epochs:) (\d+)")
    lock.write_text(epochs.sub(r"\1 1\2", lock.read_text(encoding="utf-8")), encoding="utf-8")
    assert "trainings of different length (workspace: epochs 1" in project.cvae("compare", "HEAD")


def test_experiments_that_differ_in_their_evaluation_alone_have_runs_of_their_own(
    project: Project, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "copy")
    before, trained = project.runs(), project.json("models/run.json")["run_id"]
    project.run("dvc", "exp", "run", "--temp", "--name", "fewer", "-S", "evaluate.nll_draws=3", "evaluate")
    runs = project.runs()
    (fewer,) = (run for run_id, run in runs.items() if run_id not in before)
    assert fewer["tags.dvc_exp_name"] == "fewer"
    assert fewer["tags.mlflow.parentRunId"] == trained
    assert fewer["tags.evaluated_with"] == "nll_draws 3, seed 0, sample_sets 2"
    assert before[trained]["tags.evaluated_with"] == "nll_draws 20, seed 0, sample_sets 2"
    assert runs[trained]["metrics.test/nll"] == before[trained]["metrics.test/nll"] != fewer["metrics.test/nll"]


def test_two_experiments_at_once_share_no_run_and_are_compared(project: Project, tmp_path: Path) -> None:
    """Of one training. The second waits until the first has ended, and starts from no checkpoint of it; or DVC gives it
    the first one's model, where it came late.

    Each works in a copy that DVC deletes; the runs must be in mlflow.db of the project all the same.
    """
    project = project.copy(tmp_path / "copy")
    before = project.runs()

    def run(name: str, target: str) -> str:
        command = ["dvc", "exp", "run", "--temp", "-S", "objective.kl_weight=30", "-S", "data.mirrors=[nowhere]"]
        while True:
            done = subprocess.run(
                [*command, "--name", name, target], cwd=project.folder, env=project.environment, encoding="utf-8",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            if not BUSY.search(done.stdout):
                assert done.returncode == 0, done.stdout
                return done.stdout

    with ThreadPoolExecutor() as pool:
        said = list(pool.map(run, ("one", "two"), ("evaluate", "train")))
    new = [run for run_id, run in project.runs().items() if run_id not in before]
    assert sorted(str(run["tags.dvc_exp_name"]) for run in new) in (["one", "two"], ["one"], ["two"])
    assert {(run["status"], float(run["params.objective.kl_weight"])) for run in new} == {("FINISHED", 30)}
    assert not any("going on after epoch" in words for words in said)
    table = project.run("dvc", "exp", "show", "--only-changed", "--no-pager")
    assert max(map(len, table.splitlines())) <= 160
    shown = project.cvae("compare")
    assert re.search(r"figure +workspace +HEAD +(one +two|two +one)", shown)
    assert re.search(r"kl_weight .* 30\b", shown)


def test_every_treatment_is_reached_from_params(project: Project, tmp_path: Path) -> None:
    """All at once: a convolutional σ-VAE with a VampPrior, averaged and clipped, under a schedule with free bits."""
    project, before = project.copy(tmp_path / "copy"), project.runs()
    shape = {"architecture": "resnet", "channels": [4, 6], "blocks": 1, "encoder_hidden": [16], "decoder_hidden": [16]}
    project.change("model", **shape, prior="mixture", prior_components=2)
    project.change("objective", likelihood="sigma_optimal", schedule="cyclical", cycles=2, schedule_share=0.8,
                   free_bits=0.1)  # fmt: skip
    project.change("train", ema=0.9, clip=100, epochs=2)
    project.change("sample", shown="draw")
    project.change("evaluate", nll_draws=3, sample_sets=1)
    project.cvae("train")
    project.cvae("evaluate")
    (run,) = (run for run_id, run in project.runs().items() if run_id not in before)
    assert run["status"] == "FINISHED"
    assert all(np.isfinite(float(run[f"metrics.test/{name}"])) for name in ("nll", "prior/frechet"))

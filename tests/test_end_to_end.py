"""The whole pipeline on small real data: DVC, the stages, MLflow on SQLite, and the command line.

The data is scikit-learn's handwritten digits, enlarged and written as IDX files: real, small, and at hand offline.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from idx import idx
from imports import ROOT
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from pipeline import download

pytestmark = pytest.mark.slow

EPOCHS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_size": 200, "checksums": "SHA256SUMS"},
    "judge": {"epochs": 4, "batch_size": 32},
    "model": {"latent_size": 4, "encoder_hidden": [128], "decoder_hidden": [128]},
    "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.005, "precision": "float32"},
    "sample": {"components": 2},
    "evaluate": {"nll_draws": 20},
}


@dataclass(frozen=True)
class Project:
    """A clone of this repository with small data and small params."""

    folder: Path
    mirror: Path

    @property
    def environment(self) -> dict[str, str]:
        unset = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"PATH": path, "PYTHONPATH": str(self.folder), "CVAE_MNIST_MIRROR": str(self.mirror)}

    def run(self, *command: str, status: int = 0) -> str:
        """What the command prints; its exit status must be `status`."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def runs(self) -> Any:
        """MLflow's runs, the newest first, as a frame."""
        program = (
            "import mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db'); "
            "print(mlflow.search_runs(search_all_experiments=True).to_json())"
        )
        environment = self.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=self.folder,
            env=environment,
            text=True,
            capture_output=True,
            check=True,
        )
        return pd.DataFrame(json.loads(done.stdout))


def write_digits(folder: Path) -> None:
    """scikit-learn's 8 × 8 digits at three times their size, as the four files, packed, with their checksums."""
    from sklearn.datasets import load_digits

    folder.mkdir()
    digits = load_digits()
    images = np.pad(np.kron(digits.images * 255 / 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    parts = {"train": slice(0, 1300), "t10k": slice(1300, None)}
    sums = []
    for prefix, rows in parts.items():
        for name, array in (("images-idx3", images[rows]), ("labels-idx1", digits.target[rows])):
            content = idx(array.round())
            (folder / f"{prefix}-{name}-ubyte").write_bytes(content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {prefix}-{name}-ubyte\n")
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    base = tmp_path_factory.mktemp("end")
    project = Project(base / "clone", base / "mirror")
    write_digits(project.mirror)
    shutil.copytree(ROOT / "pipeline", project.folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, project.folder / name)
    (project.folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", project.folder / ".dvc/config")
    shutil.copy(ROOT / ".dvc/.gitignore", project.folder / ".dvc/.gitignore")
    shutil.copy(project.mirror / "SHA256SUMS", project.folder / "SHA256SUMS")
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in SETTINGS.items():
        params[section].update(values)
    with open(project.folder / "params.yaml", "w", encoding="utf-8") as file:
        yaml.dump(params, file)
    project.run("git", "init", "-q")
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Start")
    project.run("dvc", "repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Record the results")
    return project


def test_the_split_is_what_was_asked_for(project: Project) -> None:
    tensors = load_file(project.folder / "data/prepared/mnist.safetensors")
    assert {name: len(tensors[f"{name}.labels"]) for name in ("train", "validation", "test")} == {
        "train": 1100,
        "validation": 200,
        "test": 497,
    }
    assert sorted(path.name for path in (project.folder / "data/raw").iterdir()) == sorted(download.CHECKSUMS)


def test_every_report_is_there(project: Project) -> None:
    figures = project.json("reports/metrics.json")
    assert {"reconstruction", "kl", "elbo", "nll", "active_units", "collapsed"} < figures.keys()
    names = {"class_accuracy", "diversity", "frechet", "precision", "recall", "density", "coverage"}
    assert all(names <= figures[sampler].keys() for sampler in ("prior", "fitted", "real"))
    assert figures["elbo"] == pytest.approx(-figures["reconstruction"] - figures["kl"])
    assert figures["nll"] < -figures["elbo"]
    table = pd.read_csv(project.folder / "reports/per_class.csv")
    assert len(table) == 30
    assert table.groupby("sampler")["frechet"].mean()["fitted"] == pytest.approx(figures["fitted"]["frechet"])
    assert len(pd.read_csv(project.folder / "reports/history.csv")) == EPOCHS
    pictures = {path.name for path in (project.folder / "reports/figures").iterdir()}
    assert {"samples.png", "samplers.png", "reconstructions.png", "traversal.png", "latent_space.png"} < pictures


def test_the_model_learned_something(project: Project) -> None:
    figures = project.json("reports/metrics.json")
    history = pd.read_csv(project.folder / "reports/history.csv")
    assert history["validation_elbo"].iloc[-1] > history["validation_elbo"].iloc[0]
    assert figures["judge_accuracy"] > 0.8
    assert figures["real"]["class_accuracy"] > 0.8
    assert figures["fitted"]["class_accuracy"] > 0.3
    assert not figures["collapsed"]


def test_one_run_holds_training_and_evaluation(project: Project) -> None:
    runs = project.runs()
    run = runs[runs["run_id"] == project.json("models/run.json")["run_id"]].iloc[0]
    figures = project.json("reports/metrics.json")
    assert run["status"] == "FINISHED"
    assert run["metrics.test_fitted_frechet"] == pytest.approx(figures["fitted"]["frechet"])
    assert run["metrics.validation_elbo"] == pytest.approx(
        pd.read_csv(project.folder / "reports/history.csv")["validation_elbo"].iloc[-1]
    )
    assert float(run["params.objective.kl_weight"]) == project_params(project)["objective"]["kl_weight"]
    assert run["tags.dvc_stage"] == "train"


def project_params(project: Project) -> Any:
    return YAML(typ="safe").load((project.folder / "params.yaml").read_text(encoding="utf-8"))


def test_a_second_run_does_nothing_and_soon(project: Project) -> None:
    """Two seconds of the processor: the wall's would be a test of what else the machine is doing."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Data and pipelines are up to date" in project.run("dvc", "repro")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 2
    assert len(project.runs()) == 1


def test_git_sees_no_weights_even_without_dvcs_ignore_files(project: Project) -> None:
    for path in project.folder.rglob("*/.gitignore"):
        if ".dvc" not in path.parts:
            path.unlink()
    listed = project.run("git", "status", "--porcelain", "--untracked-files=all")
    assert "safetensors" not in listed
    assert "mlflow" not in listed
    project.run("git", "checkout", "-q", ".")


def test_samples_come_from_the_trained_model(project: Project) -> None:
    cvae = (sys.executable, "-m", "pipeline.cli")
    project.run(*cvae, "sample", "8", "--count", "10", "--out", "eights.npz")
    with np.load(project.folder / "eights.npz") as file:
        assert file["images"].shape == (10, 28, 28)
    assert "fitted" in project.run(*cvae, "report")
    (project.folder / "eights.npz").unlink()


def test_an_experiment_is_compared_and_lands_in_the_users_database(project: Project) -> None:
    """`--temp` works in a copy that DVC deletes; the run must be in mlflow.db of the project all the same."""
    before = len(project.runs())
    project.run("dvc", "exp", "run", "--temp", "--name", "heavier", "-S", "objective.kl_weight=30")
    runs = project.runs()
    assert len(runs) == before + 1
    heavier = runs[runs["params.objective.kl_weight"].astype(float) == 30].iloc[0]
    assert heavier["status"] == "FINISHED"
    assert heavier["tags.dvc_exp_name"] == "heavier"
    shown = project.run("dvc", "exp", "show", "--json")
    assert "heavier" in shown
    assert "objective.kl_weight" in project.run("dvc", "params", "diff", "HEAD", "heavier")
    assert "fitted.frechet" in project.run("dvc", "metrics", "diff", "HEAD", "heavier")


def test_every_treatment_is_reached_from_the_command_line(project: Project) -> None:
    """All at once: a convolutional σ-VAE with a VampPrior, averaged and clipped, under a schedule with free bits."""
    settings = [
        "model.architecture=resnet", "model.channels=[4,6]", "model.blocks=1", "model.encoder_hidden=[16]",
        "model.decoder_hidden=[16]", "model.prior=mixture", "model.prior_components=2",
        "objective.likelihood=sigma_optimal", "objective.schedule=cyclical", "objective.cycles=2",
        "objective.schedule_share=0.8", "objective.free_bits=0.1", "train.ema=0.9", "train.clip=100",
        "train.epochs=2", "sample.shown=draw",
    ]  # fmt: skip
    set_all = [word for setting in settings for word in ("-S", setting)]
    project.run("dvc", "exp", "run", "--temp", "--name", "treated", *set_all)
    run = project.runs().iloc[0]
    assert run["tags.dvc_exp_name"] == "treated"
    assert run["status"] == "FINISHED"
    assert run["params.model.prior"] == "mixture"
    assert np.isfinite(run[["metrics.test_nll", "metrics.test_prior_frechet"]].astype(float)).all()
    refused = project.run(
        "dvc",
        "exp",
        "run",
        "--temp",
        "-S",
        "objective.likelihood=gaussian",
        "-S",
        "objective.pixels=binary",
        status=255,
    )
    assert "objective.pixels must be grey with likelihood gaussian" in refused
    assert "Traceback" not in refused


def test_plots_show_pictures(project: Project) -> None:
    project.run("dvc", "plots", "show", "--out", "plots")
    assert "samples.png" in (project.folder / "plots/index.html").read_text(encoding="utf-8")
    shutil.rmtree(project.folder / "plots")


def test_a_killed_training_goes_on_to_the_same_weights(project: Project) -> None:
    """kill -9 in the middle, the same command again: the weights of an uninterrupted run, in the same MLflow run."""
    train = [sys.executable, "-u", "-m", "pipeline.stages.train"]
    whole = load_file(project.folder / "models/cvae.safetensors")
    before = len(project.runs())
    with subprocess.Popen(
        train, cwd=project.folder, env=project.environment, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"train 2/{EPOCHS}"):
                break
        process.send_signal(signal.SIGKILL)
    (project.folder / "models/cvae.safetensors").unlink()
    assert "going on after epoch" in project.run(*train)
    resumed = load_file(project.folder / "models/cvae.safetensors")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert len(pd.read_csv(project.folder / "reports/history.csv")) == EPOCHS
    runs = project.runs()
    assert len(runs) == before + 1
    assert set(runs["status"]) == {"FINISHED"}
    assert not list((project.folder / ".checkpoints").iterdir())

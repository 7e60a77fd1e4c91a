"""The whole pipeline on small real data: DVC, the stages, MLflow on SQLite, and the command line.

The data is scikit-learn's handwritten digits, enlarged and written as IDX files: real, small, and at hand offline.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cost import processor_seconds
from idx import idx
from imports import ROOT
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from stores import forget

from pipeline.cli import main as cli
from pipeline.data import download

pytestmark = pytest.mark.slow

EPOCHS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_size": 200, "checksums": "SHA256SUMS"},
    "judge": {"epochs": 4, "batch_size": 32},
    "model": {"latent_size": 4, "encoder_hidden": [128], "decoder_hidden": [128]},
    "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.005, "precision": "float32"},
    "sample": {"components": 2},
    "evaluate": {"nll_draws": 20},
    "completion": {"latent_size": 4, "hidden": 64, "epochs": 8, "network_epochs": 4, "batch_size": 32},
    "tune": {
        "trials": 6,
        "epochs": 3,
        "population": 6,
        "kl_weight": [0.1, 10],
    },  # of the worse three, one may be pruned
}
UNSET = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME")


@dataclass(frozen=True)
class Project:
    """A clone of this repository with small data and small params."""

    folder: Path
    mirror: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in UNSET}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"PATH": path, "PYTHONPATH": str(self.folder), "CVAE_MNIST_MIRROR": str(self.mirror)}

    def run(self, *command: str, status: int = 0, **environment: str) -> str:
        """What the command prints; its exit status must be `status`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def cvae(self, *words: str, status: int = 0) -> str:
        """What `cvae WORDS` prints, in this process: a new one takes seconds to import what this one has."""
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["cvae", *words])
            patch.setenv("CVAE_MNIST_MIRROR", str(self.mirror))
            for name in UNSET:
                patch.delenv(name, raising=False)
            with pytest.raises(SystemExit) as end:
                cli.main()
            forget()
        assert int(end.value.code or 0) == status, said.getvalue()
        return said.getvalue()

    def copy(self, folder: Path) -> "Project":
        """The same project in another folder, for what would spoil it for the tests after it."""
        shutil.copytree(self.folder, folder)
        return Project(folder, self.mirror)

    def set(self, old: str, new: str) -> None:
        """Changes params.yaml in its one place that reads `old`."""
        path = self.folder / "params.yaml"
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def runs(self) -> dict[str, dict[str, str | float]]:
        """MLflow's runs by their ids, from its tables: the `status`, `params.*`, `metrics.*` and `tags.*` of each."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            found: dict[str, dict[str, str | float]] = {
                run: {"status": status} for run, status in database.execute("SELECT run_uuid, status FROM runs")
            }
            for kind, table in (("params", "params"), ("metrics", "latest_metrics"), ("tags", "tags")):
                for run, key, value in database.execute(f"SELECT run_uuid, key, value FROM {table}"):
                    found[run][f"{kind}.{key}"] = value
        return found


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
    (project.folder / "completion").mkdir()
    shutil.copy(ROOT / "completion/dvc.yaml", project.folder / "completion/dvc.yaml")
    shutil.copytree(ROOT / "recipes", project.folder / "recipes")
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
    assert history["validation/elbo"].iloc[-1] > history["validation/elbo"].iloc[0]
    assert figures["judge_accuracy"] > 0.8
    assert figures["real"]["class_accuracy"] > 0.8
    assert figures["fitted"]["class_accuracy"] > 0.3
    assert not figures["collapsed"]


def test_one_run_holds_training_and_evaluation(project: Project) -> None:
    run = project.runs()[project.json("models/run.json")["run_id"]]
    figures = project.json("reports/metrics.json")
    assert run["status"] == "FINISHED"
    assert run["metrics.test/fitted/frechet"] == pytest.approx(figures["fitted"]["frechet"])
    assert run["metrics.validation/elbo"] == pytest.approx(
        pd.read_csv(project.folder / "reports/history.csv")["validation/elbo"].iloc[-1]
    )
    assert run["tags.doctor"] == project.json("reports/doctor.json")["verdict"]
    assert float(run["params.objective.kl_weight"]) == project_params(project)["objective"]["kl_weight"]
    assert run["tags.dvc_stage"] == "train"


def project_params(project: Project) -> Any:
    return YAML(typ="safe").load((project.folder / "params.yaml").read_text(encoding="utf-8"))


def test_a_second_run_does_nothing_and_soon(project: Project, tmp_path: Path) -> None:
    """No stage starts, and DVC is at it hardly longer than it takes to list the stages.

    Both are timed in turn, so that a slow machine slows both.
    """
    called = tmp_path / "called"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> "{called}"\nexit 1\n', encoding="utf-8")
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{project.environment['PATH']}"
    runs, said, ratios = project.runs(), [], []
    for _ in range(2):
        start = processor_seconds(lambda: project.run("dvc", "stage", "list"))
        again = processor_seconds(lambda: said.append(project.run("dvc", "repro", PATH=path)))
        ratios.append(again / start)
    assert all("Data and pipelines are up to date" in text for text in said)
    assert not called.exists()
    assert project.runs() == runs
    assert min(ratios) < 3
    # That the python which takes notes is the one that stages start:
    copy = project.copy(tmp_path / "copy")
    copy.run("dvc", "repro", "--force", "download", PATH=path, status=255)
    assert called.read_text(encoding="utf-8") == "-m pipeline.stages.download\n"


def test_the_study_comes_last_and_evaluation_can_do_without_it(project: Project) -> None:
    def stages(*targets: str) -> list[str]:
        return re.findall(r"Running stage '(\w+)'", project.run("dvc", "repro", "--dry", "--force", *targets))

    assert stages()[-2:] == ["evaluate", "tune"]
    assert "tune" not in stages("evaluate")


def test_the_study_leaves_a_table_a_best_weight_and_pictures(project: Project) -> None:
    trials = pd.read_csv(project.folder / "reports/study/trials.csv")
    best = project.json("reports/study/best.json")
    assert len(trials) == 6
    assert set(trials["state"]) == {"COMPLETE", "PRUNED"}
    complete = trials[trials["state"] == "COMPLETE"]
    chosen = trials[trials["trial"] == best["trial"]].iloc[0]
    assert best["values"] == {"frechet": pytest.approx(complete["validation/fitted/frechet"].min())}
    assert (best["kl_weight"], best["run_id"]) == (pytest.approx(chosen["kl_weight"]), chosen["run_id"])
    assert 0.1 <= best["kl_weight"] <= 10
    assert best["real"]["class_accuracy"] > 0.8
    pictures = {path.name for path in (project.folder / "reports/study/figures").iterdir()}
    assert pictures == {"weights.png", "rate_distortion.png", "history.png", "collapse_to_chaos.png"}


def test_each_trial_is_a_run_below_the_studys_under_the_names_of_a_training(project: Project) -> None:
    runs = project.runs()
    trained = runs[project.json("models/run.json")["run_id"]]
    trials = pd.read_csv(project.folder / "reports/study/trials.csv")
    (parent,) = (run_id for run_id, run in runs.items() if run.get("tags.kind") == "study")
    assert runs[parent]["metrics.trials"] == 6
    for row in trials.to_dict("records"):
        run = runs[row["run_id"]]
        assert run["tags.mlflow.parentRunId"] == parent
        assert int(run["tags.trial"]) == row["trial"]
        assert (run["status"], run["tags.state"]) == ("FINISHED", row["state"])
        assert float(run["params.objective.kl_weight"]) == pytest.approx(row["kl_weight"])
        assert run["metrics.validation/fitted/frechet"] == pytest.approx(row["validation/fitted/frechet"])
        of_training = {name for name in trained if name.startswith("metrics.") and not name.startswith("metrics.test_")}
        assert of_training <= run.keys()
        assert {name for name in trained if name.startswith("params.")} == {
            name for name in run if name.startswith("params.")
        }


def test_the_best_weight_is_promoted_and_nothing_else_changes(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    best = project.json("reports/study/best.json")
    assert best["study"] in project.cvae("study")
    before = (project.folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    number, said = str(best["trial"]), project.cvae("promote", "--trial", str(best["trial"]))
    after = (project.folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new.split()[:2] for _, new in changed] == [["kl_weight:", str(best["kl_weight"])]]
    assert "# β of reconstruction" in changed[0][1]
    assert f"trial {number}" in said
    assert project.runs()[best["run_id"]]["tags.promoted"] == "true"
    trials = pd.read_csv(project.folder / "reports/study/trials.csv")
    pruned = str(trials[trials["state"] == "PRUNED"]["trial"].iloc[0])
    kept = (project.folder / "params.yaml").read_bytes()
    refused = project.cvae("promote", "--trial", pruned, status=2)
    assert refused.startswith(f"error: trial {pruned} of study")
    assert len(refused.splitlines()) == 1
    assert (project.folder / "params.yaml").read_bytes() == kept


def test_a_clone_without_the_study_s_database_shows_and_promotes_what_was_exported(
    project: Project, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "copy")
    best, shown = project.json("reports/study/best.json"), project.cvae("study").splitlines()
    for path in project.folder.glob("optuna.db*"):
        path.unlink()
    exported = project.cvae("study").splitlines()
    assert "its database is not here" in " ".join(" ".join(exported).split())
    rows = [[line for line in lines if line.strip()[:1].isdigit()] for lines in (shown, exported)]
    assert len(rows[0]) == 6
    assert rows[0] == rows[1]
    assert f"trial {best['trial']}" in project.cvae("promote", "--trial", str(best["trial"]))
    assert f"kl_weight: {best['kl_weight']}" in (project.folder / "params.yaml").read_text(encoding="utf-8")
    other = str(next(number for number in range(6) if number != best["trial"]))
    assert "run `cvae tune`" in project.cvae("promote", "--trial", other, status=2)
    (project.folder / "reports/study/best.json").unlink()
    assert "run `cvae tune`" in project.cvae("study", status=2)


def test_more_trials_go_on_with_the_same_study(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    first = pd.read_csv(project.folder / "reports/study/trials.csv")
    name = project.json("reports/study/best.json")["study"]
    project.set("  trials: 6", "  trials: 7")
    shutil.rmtree(project.folder / "reports/study")  # as DVC does before a stage
    project.cvae("tune")
    trials = pd.read_csv(project.folder / "reports/study/trials.csv")
    assert len(trials) == 7
    assert project.json("reports/study/best.json")["study"] == name
    pd.testing.assert_frame_equal(trials.head(6), first, check_dtype=False)


def test_a_study_of_several_objectives_and_parameters_draws_its_front(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    settings = ("tune.objectives=[reconstruction,kl]", "tune.latent_size=[2,4]", "tune.epochs=1")
    project.run("dvc", "exp", "run", *(word for setting in settings for word in ("-S", setting)), "tune")
    best, trials = project.json("reports/study/best.json"), pd.read_csv(project.folder / "reports/study/trials.csv")
    assert set(trials["state"]) == {"COMPLETE"}
    assert best["trial"] in best["front"]
    assert set(best["params"]) == {"objective.kl_weight", "model.latent_size"}
    pictures = {path.name for path in (project.folder / "reports/study/figures").iterdir()}
    assert {"pareto.png", "importances.png"} < pictures


# A shell that starts tests in the background makes them, and what they start, deaf to Ctrl-C.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipeline.base import console
from pipeline.stages import tune
console.run(tune.main)
"""


def test_ctrl_c_ends_a_study_cleanly(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    project.set("  trials: 6", "  trials: 40")
    known, tune = project.runs(), [sys.executable, "-u", "-c", INTERRUPTIBLE]
    with subprocess.Popen(
        tune, cwd=project.folder, env=project.environment, encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tune 8/40"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert re.search(r"^\d+ of 40 trials are done; the same command continues$", rest, re.MULTILINE)
    assert "Traceback" not in rest
    new = {run_id: run for run_id, run in project.runs().items() if run_id not in known}
    assert {str(run["status"]) for run in new.values()} <= {"FINISHED", "KILLED"}
    assert [run["status"] for run in new.values() if run.get("tags.kind") == "study"] == ["KILLED"]
    with closing(sqlite3.connect(project.folder / "optuna.db")) as database:
        states = {state for (state,) in database.execute("SELECT state FROM trials")}
    assert states <= {"COMPLETE", "PRUNED", "FAIL", "WAITING"}


def test_git_sees_no_weights_even_without_dvcs_ignore_files(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    for path in project.folder.rglob("*/.gitignore"):
        if ".dvc" not in path.parts:
            path.unlink()
    listed = project.run("git", "status", "--porcelain", "--untracked-files=all")
    assert "safetensors" not in listed
    assert "mlflow" not in listed
    assert "optuna" not in listed


def test_samples_come_from_the_trained_model(project: Project, tmp_path: Path) -> None:
    project.cvae("sample", "8", "--count", "10", "--out", str(tmp_path / "eights.npz"))
    with np.load(tmp_path / "eights.npz") as file:
        assert file["images"].shape == (10, 28, 28)
    assert "fitted" in project.cvae("report")


def test_the_way_to_the_figures_leaves_the_completions_alone(project: Project) -> None:
    assert not (project.folder / "models/completer.safetensors").exists()
    assert not (project.folder / "reports/completion.json").exists()


def test_an_experiment_is_compared_and_lands_in_the_users_database(project: Project) -> None:
    """`--temp` works in a copy that DVC deletes; the run must be in mlflow.db of the project all the same."""
    before = project.runs()
    project.run("dvc", "exp", "run", "--temp", "--name", "heavier", "-S", "objective.kl_weight=30")
    (heavier,) = (run for run_id, run in project.runs().items() if run_id not in before)
    assert float(heavier["params.objective.kl_weight"]) == 30
    assert heavier["status"] == "FINISHED"
    assert heavier["tags.dvc_exp_name"] == "heavier"
    shown = project.run("dvc", "exp", "show", "--json")
    assert "heavier" in shown
    assert "objective.kl_weight" in project.run("dvc", "params", "diff", "HEAD", "heavier")
    assert "fitted/frechet" in project.run("dvc", "metrics", "diff", "HEAD", "heavier")


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
    project.run("dvc", "exp", "run", "--temp", "--name", "treated", *set_all, "evaluate")
    (run,) = (run for run in project.runs().values() if run.get("tags.dvc_exp_name") == "treated")
    assert run["status"] == "FINISHED"
    assert run["params.model.prior"] == "mixture"
    assert all(np.isfinite(float(run[f"metrics.test/{name}"])) for name in ("nll", "prior/frechet"))
    words = ["-S", "objective.likelihood=gaussian", "-S", "objective.pixels=binary"]
    refused = project.run("dvc", "exp", "run", "--temp", *words, "evaluate", status=255)
    assert "objective.pixels must be grey with likelihood gaussian" in refused
    assert "Traceback" not in refused


def test_the_branch_of_completions(project: Project, tmp_path: Path) -> None:
    """Trained by the same fit into the same tracker, measured in the agreed form, and used at the command line."""
    before = len(project.runs())
    project.run("dvc", "repro", "completion/dvc.yaml")
    figures = project.json("reports/completion.json")
    for pixels in ("thresholded", "drawn"):
        one, two, three = (figures[pixels][number] for number in "123")
        assert one.keys() == two.keys() == three.keys() == {"cvae", "cvae_label", "network"}
        assert one["network"] > two["network"] > three["network"] > 0
        assert figures["standard_error"][pixels]["1"].keys() == one.keys()
    assert all(figures["diversity"][number]["distance"] > 0 for number in "123")
    assert figures["protocol"]["images"] == 497  # there are no more
    runs = project.runs()
    assert len(runs) == before + 2
    run_id = project.json("models/completion_run.json")["run_id"]
    run = runs[run_id]
    assert run["status"] == "FINISHED"
    assert run["metrics.test_completion_thresholded_1_cvae"] == pytest.approx(figures["thresholded"]["1"]["cvae"])
    assert list(project.folder.glob(f"mlartifacts/{run_id}/artifacts/images/completions[+%]*.png"))
    history = pd.read_csv(project.folder / "reports/completion_history.csv")
    assert history.groupby("model")["epoch"].max().to_dict() == {"cvae": 8, "network": 4}

    eight, out = str(tmp_path / "eight.png"), str(tmp_path / "out.png")
    project.cvae("sample", "8", "--count", "1", "--out", eight)
    said = project.cvae("complete", eight, "--mask", "top", "--count", "4", "--out", out)
    assert "dark ink on a light ground, inverted" in said
    assert said.count("read as") == 4
    kept = Path(out).read_bytes()
    words = ("--mask", "top", "--count", "4", "--out", out, "--model", f"runs:/{run_id}")
    project.cvae("complete", eight, *words)
    assert Path(out).read_bytes() == kept
    assert "up to date" in project.run("dvc", "repro", "completion/dvc.yaml")


@pytest.mark.parametrize(
    ("name", "quick", "result", "told"),
    [
        (
            "completion",
            ("completion.epochs=1", "completion.network_epochs=1", "completion.hidden=32",
             "evaluate_completion.draws=5"),
            "completion.json",
            ("draws", 5),
        ),
        (
            "samples",
            ("train.epochs=1", "model.encoder_hidden=[32]", "model.decoder_hidden=[32]", "sample.components=2",
             "evaluate.nll_draws=3"),
            "metrics.json",
            ("likelihood", "sigma_optimal"),
        ),
    ],
    ids=["completion", "samples"],
)  # fmt: skip
def test_a_recipe_leaves_its_results_beside_the_defaults(
    project: Project, tmp_path: Path, name: str, quick: tuple[str, ...], result: str, told: tuple[str, Any]
) -> None:
    project = project.copy(tmp_path / "copy")
    words = [word for setting in quick for word in ("-S", setting)]
    before = project.run("git", "status", "--porcelain", "reports", "params.yaml")
    for _ in range(2):  # a second time replaces the first
        project.run("sh", "recipes/run.sh", name, *words)
        figures = project.json(f"reports/recipes/{name}/{result}")
        assert figures["protocol"][told[0]] == told[1]
        shutil.rmtree(project.folder / "reports/recipes")
    assert project.run("git", "status", "--porcelain", "reports", "params.yaml") == before


def test_a_recipe_that_there_is_not_is_refused(project: Project) -> None:
    assert "completion likelihood samples" in project.run("sh", "recipes/run.sh", "cake", status=2)


def test_plots_show_pictures(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    assert "samples.png" in (tmp_path / "plots/index.html").read_text(encoding="utf-8")


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
    whole = load_file(project.folder / "models/cvae.safetensors")
    before = project.runs()
    (project.folder / "models/cvae.safetensors").unlink()
    project.run(sys.executable, "-c", KILLED, status=-signal.SIGKILL)
    (cut_off,) = project.runs().keys() - before.keys()
    assert "going on after epoch 2" in project.cvae("train")
    resumed = load_file(project.folder / "models/cvae.safetensors")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert len(pd.read_csv(project.folder / "reports/history.csv")) == EPOCHS
    runs = project.runs()
    assert runs.keys() - before.keys() == {cut_off} == {project.json("models/run.json")["run_id"]}
    assert runs[cut_off]["status"] == "FINISHED"
    assert not list((project.folder / ".checkpoints").iterdir())

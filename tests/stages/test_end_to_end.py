"""The whole pipeline on small real data: DVC, the stages, MLflow on SQLite, and the command line.

The data is scikit-learn's handwritten digits, enlarged and written as IDX files: real, small, and available offline.
One project runs the pipeline once; each test reads it, or works in a copy of it.
"""

import contextlib
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
from drills import digits, publish
from imports import ROOT
from safetensors.numpy import load_file
from stores import forget

from pipeline.base.console import number
from pipeline.base.params import read, write
from pipeline.cli import main as cli

pytestmark = pytest.mark.slow

EPOCHS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_size": 200, "checksums": "SHA256SUMS"},
    "judge": {"epochs": 4, "batch_size": 32},
    "model": {"latent_size": 4, "encoder_hidden": [128], "decoder_hidden": [128]},
    "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.005, "precision": "float32", "device": "cpu"},
    "sample": {"components": 2},
    "evaluate": {"nll_draws": 20, "sample_sets": 2},
    "weight": {"epochs": 8, "batch_size": 64, "learning_rate": 0.005, "points": 5},
    "completion": {"latent_size": 4, "hidden": 64, "epochs": 8, "network_epochs": 4, "batch_size": 32},
    "tune": {"trials": 6, "epochs": 3, "seeds": 2, "kl_weight": [0.1, 10], "least_class_accuracy": None},
}
UNSET = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME")
STUDY_FIGURES = {
    "uses.png",
    "weights.png",
    "rate_distortion.png",
    "history.png",
    "collapse_to_chaos.png",
    "spectrum.png",
}


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

    def run(self, *command: str, status: int = 0) -> str:
        """What the command prints; its exit status must be `status`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """Runs `dvc repro` and returns the stages that it ran, restored ones not among them."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *options))

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
        """The same project in another folder."""
        shutil.copytree(self.folder, folder)
        return Project(folder, self.mirror)

    def change(self, section: str, **values: Any) -> None:
        """Changes values in params.yaml."""
        write({(section, key): value for key, value in values.items()}, self.folder / "params.yaml")

    def params(self) -> Any:
        return read(self.folder / "params.yaml")

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def csv(self, path: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / path)

    def files(self, folder: str) -> set[str]:
        return {path.name for path in (self.folder / folder).iterdir()}

    def query(self, select: str) -> list[Any]:
        """Rows of MLflow's tables."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return database.execute(select).fetchall()

    def runs(self) -> dict[str, dict[str, str | float]]:
        """MLflow's runs by their ids, from its tables: the `status`, `params.*`, `metrics.*` and `tags.*` of each."""
        found: dict[str, dict[str, str | float]] = {
            run: {"status": status} for run, status in self.query("SELECT run_uuid, status FROM runs")
        }
        for kind, table in (("params", "params"), ("metrics", "latest_metrics"), ("tags", "tags")):
            for run, key, value in self.query(f"SELECT run_uuid, key, value FROM {table}"):
                found[run][f"{kind}.{key}"] = value
        return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    base = tmp_path_factory.mktemp("end")
    project = Project(base / "clone", base / "mirror")
    sums = publish(project.mirror, *digits(1797), train=1300)
    shutil.copytree(ROOT / "pipeline", project.folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", project.folder / "recipes")
    for name in (
        ".gitignore", ".dvcignore", "dvc.yaml", "completion/dvc.yaml", "pyproject.toml", "params.yaml", ".dvc/config",
        ".dvc/.gitignore", ".dvc/plots/bars_by_sampler.json", ".dvc/plots/points_by_weight.json",
    ):  # fmt: skip
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project.folder / name)
    (project.folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    for section, values in SETTINGS.items():
        project.change(section, **values)
    project.run("git", "init", "-q")
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Start")
    project.run("dvc", "repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Record the results")
    return project


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
    assert len(trials) == 6
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
        assert run["metrics.validation/fitted/frechet"] == pytest.approx(row["validation/fitted/frechet"])
        assert {name for name in trained if name.startswith("params.")} <= run.keys()
        assert {f"metrics.{name}" for name in epochs if "/" in name and not name.startswith("time/")} <= run.keys()


# Again, back again, elsewhere


def test_a_former_weight_runs_nothing_and_has_its_own_run(project: Project, tmp_path: Path) -> None:
    """0.2, then 1, then 0.2 again: DVC restores every file of the first, the pointer to its MLflow run among them."""
    project = project.copy(tmp_path / "copy")
    assert project.repro() == []
    first = {path: (project.folder / path).read_bytes() for path in restored_files(project)}
    project.change("objective", kl_weight=1)
    assert {"train", "evaluate"} <= set(project.repro("evaluate"))
    assert (project.folder / "models/run.json").read_bytes() != first["models/run.json"]
    project.change("objective", kl_weight=0.2)
    assert project.repro() == ["check"] or project.repro() == []
    assert {path: (project.folder / path).read_bytes() for path in restored_files(project)} == first


def restored_files(project: Project) -> list[str]:
    folders = [project.folder / name for name in ("models", "reports")]
    return [str(path.relative_to(project.folder)) for folder in folders for path in sorted(folder.rglob("*.*"))]


def test_other_checksums_under_the_same_name_are_noticed(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    sums = project.folder / "SHA256SUMS"
    digest = sums.read_text(encoding="utf-8").split()[0]
    sums.write_text(sums.read_text(encoding="utf-8").replace(digest, "0" * 64), encoding="utf-8")
    assert "gave another file" in project.run("dvc", "repro", "download", status=255)
    sums.write_text(f"{sums.read_text(encoding='utf-8').replace('0' * 64, digest)}\n", encoding="utf-8")
    assert project.repro("prepare") == ["download"]  # which brings the same files, so that nothing else is outdated
    assert project.repro("prepare") == []


def test_another_split_downloads_nothing_again(project: Project, tmp_path: Path) -> None:
    project = Project(project.copy(tmp_path / "copy").folder, tmp_path / "no mirror")
    raw = {path: path.stat().st_mtime_ns for path in (project.folder / "data/raw").iterdir()}
    for values in ({"validation_size": 150}, {"seed": 1}):
        project.change("data", **values)
        assert project.repro("prepare") == ["check", "prepare"]
    assert {path: path.stat().st_mtime_ns for path in (project.folder / "data/raw").iterdir()} == raw
    assert len(load_file(project.folder / "data/prepared/mnist.safetensors")["validation.labels"]) == 150


def test_a_relative_mirror_is_found_from_dvcs_copy_of_the_project(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    shutil.copytree(project.mirror, project.folder / "own")
    project = Project(project.folder, tmp_path / "no mirror")
    said = project.run("dvc", "exp", "run", "--temp", "-S", "data.mirrors=[own]", "prepare")
    assert "four files, checked by SHA-256, from own" in said


WRONG = {
    "data": "validation_size=-1", "judge": "epochs=0", "model": "prior=foo", "objective": "kl_weight=-1",
    "train": "epochs=0", "sample": "sampler=fited", "evaluate": "nll_draws=0", "weight": "points=0",
    "tune": "trials=none", "completion": "latent_size=0", "evaluate_completion": "draws=0", "tracking": "experiment=3",
}  # fmt: skip


def test_a_refused_value_leaves_model_params_and_runs(project: Project, tmp_path: Path) -> None:
    """In each section by `cvae try`, in three by DVC itself: the rest are like them by tests/stages/test_dvc.py."""
    project = project.copy(tmp_path / "copy")

    def left() -> list[Any]:
        names = {"params.yaml", *restored_files(project)} - {"reports/params.txt"}  # that of the stage that refuses
        return [{name: (project.folder / name).read_bytes() for name in sorted(names)}, project.runs()]

    before = left()
    assert WRONG.keys() == project.params().keys()
    for section, change in WRONG.items():
        refused = project.cvae("try", f"{section}.{change}", status=2)
        assert refused.startswith(f"error: params.yaml: {section}.{change.partition('=')[0]} must be")
        assert len(refused.splitlines()) == 1
    assert left() == before

    remedy = "git show HEAD:params.yaml > params.yaml"
    for section in ("model", "tune", "tracking"):
        said = project.run("dvc", "exp", "run", "-S", f"{section}.{WRONG[section]}", status=255)
        assert f"{section}.{WRONG[section].partition('=')[0]} must be" in said
        assert remedy in said
        project.run("sh", "-c", remedy)
        assert left() == before
    assert project.repro() in ([], ["check"])


# A shell that starts tests in the background makes them, and what they start, ignore Ctrl-C.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
TRY = """
from pipeline.cli.main import main
sys.argv = ["cvae", "try", "objective.kl_weight=0.9", "train.epochs=1000"]
main()
"""


def test_ctrl_c_ends_an_experiment_cleanly(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    params, model = ((project.folder / path).read_bytes() for path in ("params.yaml", "models/cvae.safetensors"))
    with subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTIBLE + TRY], cwd=project.folder, env=project.environment,
        encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
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
    project.run("dvc", "checkout")
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.run("dvc", "push")
    project.run("git", "commit", "-qam", "Name a remote")
    project.run("git", "clone", "-q", ".", str(tmp_path / "colleague"))
    colleague = Project(tmp_path / "colleague", project.mirror)
    colleague.run("dvc", "pull")
    assert colleague.repro() == []
    assert colleague.json("reports/headline.json") == project.json("reports/headline.json")


def test_an_experiment_is_compared_and_lands_in_the_users_database(project: Project) -> None:
    """`--temp` works in a copy that DVC deletes; the run must be in mlflow.db of the project all the same."""
    before = project.runs()
    project.run("dvc", "exp", "run", "--temp", "--name", "heavier", "-S", "objective.kl_weight=30", "evaluate")
    (heavier,) = (run for run_id, run in project.runs().items() if run_id not in before)
    assert float(heavier["params.objective.kl_weight"]) == 30
    assert heavier["status"] == "FINISHED"
    assert heavier["tags.dvc_exp_name"] == "heavier"
    assert "objective.kl_weight" in project.run("dvc", "params", "diff", "HEAD", "heavier")
    assert "fitted/frechet" in project.run("dvc", "metrics", "diff", "HEAD", "heavier")
    table = project.run("dvc", "exp", "show", "--only-changed", "--no-pager")
    assert max(map(len, table.splitlines())) <= 160
    shown = project.cvae("compare")
    assert re.search(r"figure +workspace +HEAD +heavier", shown)
    assert re.search(r"kl_weight .* 30\b", shown)


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
    assert "trainings of different length (workspace: 1" in project.cvae("compare", "HEAD")


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
    project.run("dvc", "exp", "run", "--temp", "--name", "fewest", "-S", "evaluate.nll_draws=2", "evaluate")
    table = project.run("dvc", "exp", "show", "--only-changed", "--no-pager")
    assert "fewest" in table
    assert max(map(len, table.splitlines())) <= 160
    assert runs[trained]["metrics.test/nll"] == before[trained]["metrics.test/nll"] != fewer["metrics.test/nll"]
    project.run("dvc", "exp", "apply", "fewest")
    assert project.json("reports/validation.json")["protocol"]["nll_draws"] == 2
    assert project.run("dvc", "checkout") == ""


def test_two_experiments_with_one_training_share_no_run(project: Project, tmp_path: Path) -> None:
    """At once: the second waits until the first has ended, and starts from no checkpoint of it."""
    project = project.copy(tmp_path / "copy")
    before = project.runs()
    command = ["dvc", "exp", "run", "--temp", "-S", "objective.kl_weight=0.7", "-S", "data.mirrors=[nowhere]"]
    started = [
        subprocess.Popen(
            [*command, "--name", name, "train"], cwd=project.folder, env=project.environment, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    new = [run for run_id, run in project.runs().items() if run_id not in before]
    assert sorted(str(run["tags.dvc_exp_name"]) for run in new) == ["one", "two"]
    assert [run["status"] for run in new] == ["FINISHED"] * 2
    assert not any("going on after epoch" in words for words in said)


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
    assert all(np.isfinite(float(run[f"metrics.test/{name}"])) for name in ("nll", "prior/frechet"))


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
    project.run(sys.executable, "-c", KILLED, status=-signal.SIGKILL)
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


# The study


def test_the_study_comes_last_and_evaluation_can_do_without_it(project: Project) -> None:
    def stages(*targets: str) -> list[str]:
        return re.findall(r"Running stage '(\w+)'", project.run("dvc", "repro", "--dry", "--force", *targets))

    assert set(stages()[-4:]) == {"curve", "evaluate", "tune", "explore"}
    assert "tune" not in stages("evaluate")
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


def test_more_trials_go_on_with_the_same_study(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    first, name = project.csv("reports/study/trials.csv"), project.json("reports/study/best.json")["study"]
    project.change("tune", trials=7)
    shutil.rmtree(project.folder / "reports/study")  # as DVC does before a stage
    project.cvae("tune")
    trials = project.csv("reports/study/trials.csv")
    assert len(trials) == 7
    assert project.json("reports/study/best.json")["study"] == name
    pd.testing.assert_frame_equal(trials.head(6), first, check_dtype=False)


def test_a_study_of_several_objectives_and_parameters_draws_its_front(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    project.change("tune", objectives=["reconstruction", "kl"], latent_size=[2, 4], epochs=1, seeds=1)
    project.cvae("tune")
    best, trials = project.json("reports/study/best.json"), project.csv("reports/study/trials.csv")
    assert set(trials["state"]) == {"COMPLETE"}
    assert best["trial"] in best["front"]
    assert set(best["params"]) == {"objective.kl_weight", "model.latent_size"}
    assert {"pareto.png", "importances.png"} < project.files("reports/study/figures")


STUDY = """
from pipeline.base import console
from pipeline.stages import tune
console.run(tune.main)
"""


def test_ctrl_c_ends_a_study_cleanly(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    project.change("tune", trials=40)
    known, tune = project.runs(), [sys.executable, "-u", "-c", INTERRUPTIBLE + STUDY]
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
    assert "of 40 trials" in rest
    assert "Traceback" not in rest
    new = {run_id: run for run_id, run in project.runs().items() if run_id not in known}
    assert {str(run["status"]) for run in new.values()} <= {"FINISHED", "KILLED"}
    assert [run["status"] for run in project.runs().values() if run.get("tags.kind") == "study"] == ["KILLED"]
    with closing(sqlite3.connect(project.folder / "optuna.db")) as database:
        states = {state for (state,) in database.execute("SELECT state FROM trials")}
    assert states <= {"COMPLETE", "FAIL", "WAITING"}


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
    assert figures["protocol"]["images"] == 497  # all there are
    runs, run_id = project.runs(), project.json("models/completion_run.json")["run_id"]
    assert len(runs) == before + 2
    assert runs[run_id]["status"] == "FINISHED"
    history = project.csv("reports/completion_history.csv")
    assert history.groupby("model")["epoch"].max().to_dict() == {"cvae": 8, "network": 4}

    eight, out = str(tmp_path / "eight.png"), str(tmp_path / "out.png")
    project.cvae("sample", "8", "--count", "1", "--out", eight)
    said = project.cvae("complete", eight, "--mask", "top", "--count", "4", "--out", out)
    assert said.count("read as") == 4
    kept = Path(out).read_bytes()
    words = ("--mask", "top", "--count", "4", "--out", out, "--model", f"runs:/{run_id}")
    project.cvae("complete", eight, *words)
    assert Path(out).read_bytes() == kept
    project.cvae("export", "--model", "models/completer.safetensors", "--out", str(tmp_path / "onnx"))
    assert (tmp_path / "onnx/completer.onnx").exists()
    assert "up to date" in project.run("dvc", "repro", "completion/dvc.yaml")
    project.run("dvc", "checkout")


def test_a_recipe_leaves_its_results_beside_the_defaults(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    settings = ("train.epochs=1", "model.encoder_hidden=[32]", "model.decoder_hidden=[32]", "sample.components=2",
                "evaluate.nll_draws=3")  # fmt: skip
    words = [word for setting in settings for word in ("-S", setting)]
    before = project.json("reports/metrics.json")
    for _ in range(2):  # a second time replaces the first
        project.run("sh", "recipes/run.sh", "samples", *words)
        figures = project.json("reports/recipes/samples/metrics.json")
        assert figures["protocol"]["likelihood"] == "sigma_optimal"
    assert project.json("reports/metrics.json") == before
    assert project.run("git", "status", "--porcelain") == ""
    assert "completion likelihood samples" in project.run("sh", "recipes/run.sh", "cake", status=2)

"""`cvae verify` names each link that is broken on purpose, and `cvae restore` brings a run back, also after a move.

One small project trains, evaluates, runs a study and promotes; each test works in a copy of it.
"""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import drills
import forked
import pandas as pd
import pytest
from commands import Cvae
from imports import ROOT
from ruamel.yaml import YAML
from stores import forget
from studies import empty

from pipeline.base.files import sha256
from pipeline.base.params import read, write
from pipeline.cli import restore
from pipeline.study.queue import read_study
from pipeline.tracking import outbox, registry

pytestmark = pytest.mark.slow

STAGES = ("prepare", "judge", "train", "evaluate", "tune")
MODEL, RUN, HISTORY = "models/cvae.safetensors", "models/run.json", "reports/history.csv"
METRICS, TRIALS, BEST = "reports/metrics.json", "reports/study/trials.csv", "reports/study/best.json"
DATA, CHAMPION = "data/prepared/mnist.safetensors", "models:/cvae-mnist@champion"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, zygote: drills.Zygote, database: Path) -> Path:
    """A DVC project after all of STAGES, whose best trial is promoted."""
    folder = drills.make_project(tmp_path_factory.mktemp("links") / "project", database, *drills.digits())
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    shutil.copy(ROOT / ".gitignore", folder)
    yaml, stages = YAML(), YAML().load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    kept = {name: stages[name] for name in STAGES}
    kept["tune"]["deps"] = [dep for dep in kept["tune"]["deps"] if "curve" not in dep and "spectrum" not in dep]
    for stage in kept.values():
        stage["deps"].remove("reports/params.txt")
    with open(folder / "dvc.yaml", "w", encoding="utf-8") as file:
        yaml.dump({"stages": kept}, file)
    for words in ("init -q", "config user.name test", "config user.email a@b", "add -A", "commit -qm Start"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    for stage in STAGES:
        ended = zygote.run(folder, stage)
        assert ended.status == 0, ended.said
    subprocess.run(["dvc", "commit", "-q", "--force"], cwd=folder, env=zygote.environment(), check=True)
    best = json.loads((folder / BEST).read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow itself looks for the model in the store of the folder
        outbox.sync()  # what a stage on a busy machine had no time for
        assert registry.crown(best["run_id"])
    study = read_study(best["study"], folder)
    (promoted,) = (one.number for one in study.trials if one.user_attrs.get("asked") == "params.yaml")
    study.set_user_attr("promoted", promoted)
    forget()
    for code in list((folder / "mlartifacts").rglob("code")):  # hundreds of files, which no test needs
        shutil.rmtree(code)
    for words in ("add -A", "commit -qm Record"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zygote: drills.Zygote) -> Iterator[Path]:
    """A copy, in which commands run. They wait for MLflow however long it takes."""
    folder = shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(folder)
    for name in ("PATH", forked.ADDRESS):
        monkeypatch.setenv(name, zygote.environment()[name])
    for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox.Outbox, "_patience", lambda _: 300.0)
    yield folder
    forget()


def verified(cvae: Cvae, *broken: str, status: int = 2) -> str:
    """What `cvae verify` says; it must name each of `broken` in a line of its own, with the exit status."""
    forget()
    answer = cvae("verify")
    assert answer.status == status, answer
    for words in broken:
        lines = [line for line in answer.out.splitlines() if words in line and line.startswith("✗")]
        assert lines, (words, answer.out)
        assert all("`" in line or "MLFLOW_TRACKING_URI" in line for line in lines), "each says the remedy"
    return answer.out


def sql(database: str, *statement: Any) -> list[Any]:
    with closing(sqlite3.connect(database)) as opened, opened:
        return opened.execute(*statement).fetchall()


def edit(path: str, **values: Any) -> None:
    """Changes keys of a JSON file."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    Path(path).write_text(json.dumps(content | values), encoding="utf-8")


def run_id(path: str = RUN) -> str:
    return str(json.loads(Path(path).read_text(encoding="utf-8"))["run_id"])


def flip(path: Path) -> None:
    """Changes the last byte of a file, which is one of a weight."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def flip_packaged() -> None:
    (weights,) = (path for path in Path("mlartifacts").rglob("*.safetensors") if sha256(path) == sha256(Path(MODEL)))
    flip(weights)


def mlflow(statement: str, *values: str) -> None:
    sql("mlflow.db", statement, values)


def replace_database(name: str, content: bytes) -> None:
    for suffix in ("-wal", "-shm"):
        Path(name + suffix).unlink(missing_ok=True)
    Path(name).write_bytes(content)


# Ways to break links. Each returns what must be said: none of its breaks hides another.


def break_figures() -> list[str]:
    flip(Path(DATA))
    Path("pipeline/model/cvae.py").write_text("# other\n")
    mlflow("UPDATE tags SET value = 'x' WHERE key = 'data_hash' AND run_uuid = ?", run_id())
    mlflow("UPDATE registered_model_aliases SET version = 99")
    edit(METRICS, nll=1.5)
    edit(BEST, run_id="0")
    Path(HISTORY).write_text(Path(HISTORY).read_text().rpartition(",")[0] + ",1\n")
    trials = pd.read_csv(TRIALS)
    trials.assign(**{"validation/nll": trials["validation/nll"] + 1}).to_csv(TRIALS, index=False)
    write({("objective", "kl_weight"): 1234.5})
    Path(".cvae/outbox").mkdir(parents=True, exist_ok=True)
    head = {"store": "sqlite:///mlflow.db", "name": "r", "key": "k", "run_id": run_id(), "ends": False}
    lines = [json.dumps(line) + "\n" for line in (head, {"do": "tags", "values": {"late": "yes"}})]
    Path(".cvae/outbox/k-1.jsonl").write_text("".join(lines), encoding="utf-8")
    return [
        f"{DATA} is not the file", f"is not the data that {RUN} says", "has data_hash x", "was trained by other code",
        "pipeline/model differs from what evaluate, judge, train, tune ran with",
        f"{METRICS} is not the file", f"{METRICS}: test/nll is 1.5, in MLflow run", f"{HISTORY}: ", "validation/nll is",
        f"{TRIALS} is not the file", f"{BEST} names another run", "objective.kl_weight 1234.5 is none that",
        f"{CHAMPION} is version 99, which MLflow does not have",
        "1 records in .cvae/outbox wait for MLflow at sqlite:///mlflow.db",
    ]  # fmt: skip


def break_models() -> list[str]:
    flip_packaged()
    flip(Path(MODEL))
    sql("optuna.db", "DELETE FROM trials WHERE number = 1")
    mlflow("UPDATE model_versions SET run_id = 'abc'")
    return [
        "MLflow's weights of run", f"{MODEL} is not the file that dvc.lock names", "has model_hash",
        f"{TRIALS} has trial 1, which Optuna's study", f"{CHAMPION}, version 1, names MLflow run abc",
    ]  # fmt: skip


def delete_a_run() -> list[str]:
    mlflow("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", run_id())
    Path(TRIALS).write_text("a,b\n1,2\n")
    return [f"{RUN} names MLflow run ", f"{TRIALS} is not what this version"]


def delete_databases() -> list[str]:
    Path("mlflow.db").unlink()
    replace_database("optuna.db", empty())
    return [f"{RUN} names MLflow run", "there is no study"]


def replace_files() -> list[str]:
    replace_database("mlflow.db", empty())
    Path(MODEL).unlink()
    Path(BEST).write_text("{")
    return ["another program's database", f"{MODEL} is missing", f"{BEST} can't be read"]


@pytest.mark.parametrize("make", [break_figures, break_models, delete_a_run, delete_databases, replace_files])
def test_breaks_are_named_and_nothing_is_changed(project: Path, cvae: Cvae, make: Callable[[], list[str]]) -> None:
    broken = make()
    before = files(project)
    verified(cvae, *broken)
    assert files(project) == before


def files(folder: Path) -> dict[str, str]:
    """Hashes of all files but DVC's own, git's, and those of SQLite, which may move what is written among them."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in found if path.parts[0] not in (".dvc", ".git") and not path.suffix.startswith(".db-")]
    return {str(path): "" if path.suffix == ".db" else sha256(folder / path) for path in kept}


def test_what_was_never_made_is_said_and_no_database_appears(
    made: Path, tmp_path: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "clone", "-q", made, tmp_path / "clone"], check=True)
    (tmp_path / "bare").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path / "bare")
    (tmp_path / "bare/mlflow.db").touch()  # empty: it is none either
    for folder, words in (("clone", "nothing is here of prepare, judge, train,"), ("bare", "is no DVC project")):
        monkeypatch.chdir(tmp_path / folder)
        said = verified(cvae, status=0)
        for word in (words, "no model was trained", "no study was run", "no model was promoted"):
            assert word in said
    assert {path.name for path in Path().iterdir()} == {"params.yaml", "mlflow.db"}
    assert Path("mlflow.db").stat().st_size == 0


# Bringing a run back


def train_another() -> None:
    """Changes all that a training with other params would change."""
    write({("objective", "kl_weight"): 7.5})
    flip(Path(MODEL))
    edit(RUN, run_id="0", run_key="0")
    Path(HISTORY).write_text("epoch\n1\n", encoding="utf-8")
    head, name, stage = Path("dvc.lock").read_text(encoding="utf-8").partition("\n  train:\n")
    Path("dvc.lock").write_text(head + name + stage.replace("kl_weight: 0.2", "kl_weight: 7.5", 1), encoding="utf-8")


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in restore.TOUCHED if path.exists()}


@pytest.mark.parametrize("source", ["DVC's cache", "MLflow"])
def test_a_training_comes_back_byte_for_byte_after_a_move(
    project: Path, cvae: Cvae, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, first = contents(), run_id()
    train_another()
    monkeypatch.chdir(project.rename(project.with_name("moved")))
    if source == "MLflow":
        shutil.rmtree(".dvc/cache/runs")
    in_place = contents()
    said = cvae(f"restore {first}")
    assert said.status == 0, said.err
    assert f"from {source}" in said.out
    assert contents() == before
    (kept,) = Path(".cvae/before").iterdir()
    assert {path: (kept / path).read_bytes() for path in in_place} == in_place
    assert "0 are broken" in verified(cvae, status=0)
    assert not project.exists()


@pytest.mark.usefixtures("project")
def test_a_trial_comes_back_and_its_figures_stay_when_it_is_evaluated(cvae: Cvae) -> None:
    best = json.loads(Path(BEST).read_text(encoding="utf-8"))
    comments = Path("params.yaml").read_text(encoding="utf-8").count("#")
    said = cvae(f"restore runs:/{best['run_id']}")
    assert said.status == 0, said.err
    assert "a study trained these weights" in said.out
    values = read("params.yaml")
    assert values["train"]["epochs"] == values["tune"]["epochs"] == len(pd.read_csv(HISTORY))
    assert values["model"]["latent_size"] == 2
    assert Path("params.yaml").read_text(encoding="utf-8").count("#") == comments
    assert run_id() == best["run_id"]
    assert "\nevaluate took " in cvae("evaluate").out
    said_of = verified(cvae, f"{MODEL} is not the file that dvc.lock names")
    assert "in MLflow run" not in said_of  # neither the trial's figures nor the evaluation's are other ones


@pytest.mark.usefixtures("project")
def test_other_data_is_said_and_a_trial_whose_model_was_not_kept_gives_its_params_alone(cvae: Cvae) -> None:
    first, lock, trial = run_id(), Path("dvc.lock").read_bytes(), pd.read_csv(TRIALS).iloc[0]
    flip(Path(DATA))
    said = cvae(f"restore {first}").out
    assert "NOT the run's data" in said
    assert "since the data is not the run's" in said
    assert Path("dvc.lock").read_bytes() == lock
    before = contents()
    shutil.rmtree(".dvc/cache/runs")
    sql("mlflow.db", "DELETE FROM inputs WHERE source_type = 'RUN_OUTPUT'")
    assert "the run's weights were not kept" in cvae(f"restore {trial['run_id']}").out
    assert len(list(Path(".cvae/before").iterdir())) == 2  # also of two in a second
    assert read("params.yaml")["objective"]["kl_weight"] == pytest.approx(trial["kl_weight"])
    assert contents()[MODEL] == before[MODEL]


def test_a_restore_that_is_interrupted_or_refused_leaves_everything_as_it_was(
    project: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_id()
    flip_packaged()
    train_another()
    before = files(project)
    for error, status in ((KeyboardInterrupt(), 130), (OSError(28, "No space left on device", RUN), 2)):
        monkeypatch.setattr(restore, "_lock", Mock(side_effect=error))
        assert cvae(f"restore {first}").status == status
        assert files(project) == before
    ((study,),) = sql("mlflow.db", "SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'study'")
    shutil.rmtree(".dvc/cache/runs")  # the weights are then MLflow's
    before = files(project)
    for run, words in (("abc", "there is no run abc"), ("!", "names no run"), (study, "is no training"),
                       (first, "are not those of its tag model_hash")):  # fmt: skip
        answer = cvae(f"restore {run}")
        assert (answer.status, words in answer.err, answer.err.count("\n")) == (2, True, 1), answer
        assert files(project) == before

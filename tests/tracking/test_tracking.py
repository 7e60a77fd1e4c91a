import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import types
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from settings import model_params, objective_params
from stores import forget

from pipeline.base.errors import UserError
from pipeline.base.params import plain
from pipeline.completion import model as completion
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.stages.saved import save_completer, save_cvae
from pipeline.tracking import runs as tracking

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own queries
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # MLflow's own classes
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),  # its tables
]

PROJECT = Path(tracking.__file__).parents[2]
# What takes 2 to 10 seconds here may take long on a busy machine; MLflow left to itself takes 500.
PATIENCE = 150.0


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    tracking._Store.at(f"sqlite:///{path}")
    forget()
    return path


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with an empty MLflow database of its own."""
    for variable in ("MLFLOW_TRACKING_URI", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    yield tmp_path
    forget()


@pytest.fixture
def warnings() -> list[str]:
    return []


def kept(run: tracking.Run) -> Any:
    """The run as MLflow has it."""
    return run._client.get_run(run.run_id)


def history(run: tracking.Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in run._client.get_metric_history(run.run_id, name)]


# Where runs are kept


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("", "sqlite:////p/mlflow.db"),
        ("sqlite:///runs/other.db", "sqlite:////p/runs/other.db"),
        ("sqlite:////elsewhere/other.db", "sqlite:////elsewhere/other.db"),
        ("http://team:5000", "http://team:5000"),
    ],
)
def test_uri_is_the_users_or_a_file_in_the_project(variable: str, expected: str) -> None:
    assert tracking.tracking_uri(Path("/p/.dvc/tmp/exps/tmpab12"), {"MLFLOW_TRACKING_URI": variable}) == expected


def test_module_does_not_import_mlflow_by_itself() -> None:
    check = "import sys, pipeline.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=PROJECT).returncode == 0


def test_experiment_is_one_however_many_ask(root: Path) -> None:
    client = tracking._Store.at(tracking.tracking_uri(root)).client
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: tracking.experiment(client, "same"), range(8)))
    assert len(ids) == 1
    assert client.get_experiment(ids.pop()).artifact_location == (root / "mlartifacts").as_uri()


def test_deleted_experiment_is_an_error_with_its_remedy(root: Path) -> None:
    client = tracking._Store.at(tracking.tracking_uri(root)).client
    number = tracking.experiment(client, "gone")
    client.delete_experiment(number)
    with pytest.raises(UserError, match=rf"restore -x {number}"), tracking.start("train", "gone", root=root):
        pass


@pytest.mark.parametrize(("content", "words"), [("text", "not a database"), ("tables", "another program's database")])
def test_foreign_file_is_an_error_in_one_line(root: Path, content: str, words: str) -> None:
    path = root / "mlflow.db"
    path.unlink()
    if content == "text":
        path.write_text("no database " * 100)
    else:
        with closing(sqlite3.connect(path)) as foreign:
            foreign.execute("CREATE TABLE trials (number INTEGER)")
    with pytest.raises(UserError, match=words) as caught, tracking.start("train", "e", root=root):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_locked_file_is_an_error_in_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(root / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"locked.*another program"), tracking.start("train", "e", root=root):
            pass


@pytest.mark.slow
def test_processes_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    code = "from pathlib import Path; from pipeline.tracking.runs import start\nwith start('r', 'e', root=Path()): pass"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 3
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * 3
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'e'").fetchone() == (1,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


# What a run records


def test_records_land(root: Path, warnings: list[str]) -> None:
    picture = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    figure = root / "latent.png"
    figure.write_bytes(b"png")
    with tracking.start(
        "train", "e", params={"train.epochs": 2, "note": "x" * 7000}, root=root, warn=warnings.append
    ) as run:
        run.metrics({"kl": 20.5, "elbo": -101.0}, step=1)
        run.metrics({"kl": 21.5, "elbo": -100.0}, step=2)
        run.tags({"digits": 10})
        run.image("samples/prior", picture, step=1)
        run.image("samples/prior", np.stack([picture] * 3, axis=-1), step=2)
        run.artifact(figure, "figures")
        figure.unlink()
        run.dataset("mnist", "ab" * 32, "data/prepared/mnist.safetensors", "train")
    found = kept(run)
    assert found.data.params == {"train.epochs": "2", "note": "x" * 6000}
    assert history(run, "kl") == [(1, 20.5), (2, 21.5)]
    assert found.data.tags["digits"] == "10"
    names = sorted(entry.path for entry in run._client.list_artifacts(run.run_id, "images"))
    assert [re.match(r"images/samples~prior\+step\+(\d)\+", name)[1] for name in names] == ["1", "1", "2", "2"]  # type: ignore[index]
    assert [entry.path for entry in run._client.list_artifacts(run.run_id, "figures")] == ["figures/latent.png"]
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("mnist", "train")
    assert found.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert warnings == []


def test_what_is_not_finite_leaves_a_gap_and_one_warning(root: Path, warnings: list[str]) -> None:
    with tracking.start("train", "e", root=root, warn=warnings.append) as run:
        run.metrics({"kl": 1.0, "elbo": 2.0}, step=1)
        run.metrics({"kl": float("nan"), "elbo": 3.0}, step=2)
        run.metrics({"kl": float("inf"), "elbo": float("-inf")}, step=3)
    assert history(run, "kl") == [(1, 1.0)]
    assert history(run, "elbo") == [(1, 2.0), (2, 3.0)]
    assert kept(run).data.tags["not_finite"] == "kl at step 2"
    assert len(warnings) == 1


def test_table_is_one_that_mlflow_loads_and_replaces_its_forerunner(root: Path) -> None:
    frame = pd.DataFrame({"digit": [0, 1], "frechet": [1.5, None]})
    with tracking.start("evaluate", "e", root=root) as run:
        run.table(frame.head(1), "per_class")
        run.table(frame, "per_class")
    file = run._client.download_artifacts(run.run_id, "per_class.json")
    pd.testing.assert_frame_equal(pd.read_json(file, orient="split"), frame)  # as MLflow's load_table reads it
    listed = kept(run).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(listed) == [{"path": "per_class.json", "type": "table"}]


def test_run_says_where_it_comes_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-f", "file"], [*author, "commit", "-qm", "first"]):
        (root / "file").write_text("a")
        subprocess.run(["git", *command], cwd=root, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_EXP_NAME", "bumpy-lion")
    with tracking.start("clean", "e", root=root) as run:
        pass
    tags = kept(run).data.tags
    assert {tags["git_commit"], tags["mlflow.source.git.commit"]} == {commit}
    assert (tags["git_dirty"], tags["dvc_stage"], tags["dvc_exp_name"]) == ("false", "train", "bumpy-lion")
    assert tags["mlflow.runName"] == "clean"
    assert tags["mlflow.source.name"] == Path(sys.argv[0]).name
    (root / "file").write_text("b")
    assert tracking._context_tags(root)["git_dirty"] == "true"


# How a run ends


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (UserError, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_status_says_how_the_run_ended(root: Path, error: type[BaseException] | None, status: str) -> None:
    runs = []
    with suppress(ValueError, UserError, KeyboardInterrupt), tracking.start("train", "e", root=root) as run:
        runs.append(run)
        assert kept(run).info.status == "RUNNING"
        if error:
            raise error
    assert kept(*runs).info.status == status


def test_sigterm_ends_the_run_as_killed(root: Path) -> None:
    def train() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)  # which the signal ends

    with pytest.raises(SystemExit) as caught, tracking.start("train", "e", root=root) as run:
        train()
    assert caught.value.code == 143
    assert kept(run).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_runs_can_be_open_at_once(root: Path) -> None:
    with (
        tracking.start("study", "e", root=root) as parent,
        tracking.start("first", "e", parent=parent.run_id, root=root) as first,
        tracking.start("second", "e", parent=parent.run_id, root=root) as second,
    ):
        for step in range(3):
            first.metrics({"kl": 1.0 + step}, step)
            second.metrics({"kl": 2.0 + step}, step)
            parent.metrics({"best": step}, step)
    assert history(first, "kl") == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert history(second, "kl") == [(0, 2.0), (1, 3.0), (2, 4.0)]
    assert len(history(parent, "best")) == 3
    for run in (first, second):
        assert kept(run).data.tags["mlflow.parentRunId"] == parent.run_id
        assert kept(run).info.status == "FINISHED"


def test_runs_side_by_side_end_each_in_its_own_way(root: Path, warnings: list[str]) -> None:
    def child(name: str) -> AbstractContextManager[tracking.Run]:
        return tracking.start(name, "e", parent=parent.run_id, root=root, warn=warnings.append)

    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        tracking.start("study", "e", root=root) as parent,
        tracking.side_by_side() as runs,
    ):
        begun = [runs.begin(number, child(f"trial {number}")) for number in range(4)]
        runs[1].metrics({"a": 1.0}, 1)
        runs.end(1)
        runs.end(0, ValueError("diverged"))
        raise KeyboardInterrupt
    statuses = [kept(run).info.status for run in begun]
    assert statuses == ["FAILED", "FINISHED", "KILLED", "KILLED"]
    assert kept(parent).info.status == "KILLED"
    assert all(kept(run).data.tags["mlflow.parentRunId"] == parent.run_id for run in begun)
    assert not warnings


def test_an_ended_run_is_tagged_and_stays_ended(root: Path, warnings: list[str]) -> None:
    with tracking.start("r", "e", root=root) as run:
        pass
    tracking.tag(run.run_id, {"promoted": "true"}, [f"sqlite:///{root}/moved.db", run.uri], warnings.append)
    assert kept(run).data.tags["promoted"] == "true"
    assert kept(run).info.status == "FINISHED"
    assert not warnings
    tracking.tag("0" * 32, {"promoted": "true"}, [run.uri], warnings.append)
    assert len(warnings) == 1
    assert "nothing is tagged" in warnings[0]


def test_a_run_that_was_left_open_is_closed_and_an_ended_one_left_alone(root: Path) -> None:
    with tracking.start("r", "e", root=root) as run:
        run._client.get_run(run.run_id)
        tracking.close(run.run_id, root)
        assert kept(run).info.status == "FAILED"
    tracking.close(run.run_id, root)
    assert kept(run).info.status == "FINISHED"
    tracking.close("0" * 32, root)


def test_finished_run_is_resumed(root: Path, warnings: list[str]) -> None:
    with tracking.start("train", "e", root=root) as run:
        run.metrics({"kl": 1.0}, step=1)
    with tracking.resume(
        run.run_id, run.uri, "train", "e", tags={"evaluated": True}, root=root, warn=warnings.append
    ) as again:
        assert kept(run).info.status == "RUNNING"
        again.metrics({"nll": 80.0}, step=1)
    assert again.run_id == run.run_id
    assert kept(run).data.metrics == {"kl": 1.0, "nll": 80.0}
    assert (kept(run).info.status, kept(run).data.tags["evaluated"]) == ("FINISHED", "True")
    assert warnings == []
    with pytest.raises(ValueError, match="x"), tracking.resume(run.run_id, run.uri, "train", "e", root=root):
        raise ValueError("x")
    assert kept(run).info.status == "FAILED"


@pytest.mark.parametrize("lost", ["run", "database"])
def test_run_that_is_gone_is_replaced_with_a_warning(root: Path, warnings: list[str], lost: str) -> None:
    with tracking.start("train", "e", root=root) as run:
        pass
    uri = run.uri
    if lost == "run":
        run._client.delete_run(run.run_id)
    else:
        uri = "sqlite:////nowhere/mlflow.db"
    with tracking.resume(run.run_id, uri, "train", "e", root=root, warn=warnings.append) as again:
        again.metrics({"nll": 80.0}, step=1)
    assert again.run_id != run.run_id
    assert kept(again).data.metrics == {"nll": 80.0}
    assert len(warnings) == 1
    assert run.run_id in warnings[0]


# When the store fails


def test_refused_record_is_warned_of_and_holds_up_nothing(root: Path, warnings: list[str]) -> None:
    with tracking.start("train", "e", params={"epochs": 1}, root=root, warn=warnings.append) as run:
        run.params({"epochs": 2})
        run.metrics({"kl": 1.0}, step=1)
    assert kept(run).data.metrics == {"kl": 1.0}
    assert kept(run).info.status == "FINISHED"
    assert len(warnings) == 1
    assert "refused" in warnings[0]


def test_records_wait_in_order_for_a_store_that_fails(root: Path, warnings: list[str]) -> None:
    artifacts = root / "mlartifacts"
    with tracking.start("train", "e", root=root, warn=warnings.append) as run:
        artifacts.write_text("where a folder should be")
        (root / "a.txt").write_text("as it was")
        run.artifact(root / "a.txt")
        (root / "a.txt").write_text("as it is")
        for step in range(3):
            run.metrics({"kl": step}, step)
        assert history(run, "kl") == []
        assert len(warnings) == 1
        artifacts.unlink()
    assert history(run, "kl") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (artifacts / run.run_id / "artifacts" / "a.txt").read_text() == "as it was"
    assert kept(run).info.status == "FINISHED"
    assert len(warnings) == 2
    assert "5 records" in warnings[1]


class Server:
    """MLflow's server with a database of its own, which can be killed and started again.

    Its port is ours throughout: a socket that is bound, but does not listen, keeps it from others while it is down.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server, too, sets it
        self.held.bind(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.held.getsockname()[1]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Unless it runs already; returns when it answers."""
        if self.process:
            return
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
        ]
        command += ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "served")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        tracking._wait(self.process, self.uri, PATIENCE)

    def kill(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "server.db")
    server = Server(folder)
    yield server
    server.kill()
    server.held.close()


@pytest.fixture
def server(shared_server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One that answers; the tests of this module share it, since it takes long to start."""
    assert root.exists()  # it comes first, as it unsets the variable
    shared_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_server.uri)
    return shared_server


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_comes_back(server: Server, root: Path, warnings: list[str]) -> None:
    picture = np.zeros((28, 28), np.uint8)
    (root / "cvae.safetensors").write_bytes(b"weights")
    with tracking.start("study", "e", root=root, warn=warnings.append) as run:
        run.metrics({"kl": 0.0}, step=0)
        server.kill()
        began = time.monotonic()
        for step in range(1, 50):
            run.metrics({"kl": float(step)}, step)
        run.image("samples", picture, step=49)
        run.model(root / "cvae.safetensors")
        with tracking.start("child", "e", parent=run.run_id, root=root, warn=warnings.append) as child:
            child.metrics({"kl": 1.0}, step=1)
        blocked = time.monotonic() - began
        (root / "cvae.safetensors").write_bytes(b"others")
        server.start()
    assert blocked < PATIENCE
    assert history(run, "kl") == [(step, float(step)) for step in range(50)]
    assert len(run._client.list_artifacts(run.run_id, "images")) == 2
    assert kept(run).info.status == kept(child).info.status == "FINISHED"
    assert history(child, "kl") == [(1, 1.0)]
    assert tracking.download_model(f"runs:/{run.run_id}", root).read_bytes() == b"weights"
    assert ["fails" in warnings[0], "stay unsent" in warnings[1], "answers again" in warnings[2]] == [True] * 3
    assert len(warnings) == 3


@pytest.mark.slow
def test_run_goes_on_when_the_server_stays_away(server: Server, root: Path, warnings: list[str]) -> None:
    with tracking.start("train", "e", root=root, warn=warnings.append) as run:
        server.kill()
        began = time.monotonic()
        for step in range(20):
            run.metrics({"kl": float(step)}, step)
    assert time.monotonic() - began < PATIENCE
    assert len(warnings) == 2
    assert "21 records" in warnings[1]
    assert "history.csv" in warnings[1]


@pytest.mark.slow
def test_server_that_does_not_answer_at_the_start_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:  # bound, so that nobody else takes the port, but not listening
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(UserError) as caught, tracking.start("train", "e", root=root):
            pass
        assert time.monotonic() - began < PATIENCE
    message = str(caught.value)
    assert f"http://127.0.0.1:{port}" in message
    assert "secret" not in message
    assert "unset MLFLOW_TRACKING_URI" in message
    assert "\n" not in message


# The model, and what people see


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model's file."""
    path = tmp_path_factory.mktemp("weights") / "cvae.safetensors"
    chosen = model_params(preset="article")
    params = {"model": plain(chosen), "objective": plain(objective_params()), "sample": {"sampler": "fitted"}}
    architecture = resolve(chosen)
    size = architecture.latent_size
    density = Density(torch.ones(10, 1), torch.zeros(10, 1, size), torch.eye(size).expand(10, 1, size, size))
    model = build(architecture, 0, "bernoulli")
    save_cvae(path, model, density, params)
    return path


@pytest.mark.slow
def test_packaged_model_loads_without_pickle(root: Path, weights: Path) -> None:
    with tracking.start("train", "e", root=root) as run:
        run.model(weights)
        run.metrics({"nll": 80.0}, step=1, of_model=True)
    with tracking.resume(run.run_id, run.uri, "train", "e", root=root) as again:
        again.metrics({"frechet": 2.0}, step=1, of_model=True)
    model = run._client.get_logged_model(run.model_id)
    assert {metric.key: metric.value for metric in model.metrics} == {"nll": 80.0, "frechet": 2.0}
    folder = Path(model.artifact_location.removeprefix("file://"))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".py", ".cpp", ".json", ".txt", ".yaml", ".safetensors"}
    assert re.search(r"^torch==[\d.]+$", (folder / "requirements.txt").read_text(), re.MULTILINE)
    code = f"""
import json, mlflow, pandas
model = mlflow.pyfunc.load_model("runs:/{run.run_id}/model")
images = model.predict(pandas.DataFrame({{"digit": [3, 7, 3], "seed": [1, 1, 1]}}))
print(json.dumps([images.shape, float(images.min()), float(images.max()), bool((images[0] == images[2]).all())]))
print(json.dumps(model.predict(pandas.DataFrame({{"digit": [3]}})).shape))
import pipeline.cli.serve
print(pipeline.cli.serve.__file__)
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": run.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, file = done.stdout.splitlines()
    shape, least, most, same = json.loads(first)
    assert (shape, json.loads(second), same) == ([3, 28, 28], [1, 28, 28], True)
    assert 0 <= least < most <= 1
    assert Path(file).parts[-3:] == ("code", "pipeline", "serve.py")  # the model's own copy


@pytest.mark.slow
def test_packaged_completer_loads_without_pickle_and_comes_back(root: Path, tmp_path: Path) -> None:
    save_completer(tmp_path / "completer.safetensors", completion.build(2, 8, 0))
    with tracking.start("completion cvae", "e", root=root) as run:
        run.model(tmp_path / "completer.safetensors", "completions")
    code = f"""
import json, mlflow, numpy
model = mlflow.pyfunc.load_model("runs:/{run.run_id}/model")
half = numpy.zeros((2, 28, 28), numpy.float32)
half[:, :14] = -1
found = model.predict(half, params={{"count": 3, "digit": 4}})
print(json.dumps([found.shape, float(found[:, :, :14].min()), float(found[:, :, 14:].max())]))
print(json.dumps(model.predict(half[:1]).shape))
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": run.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (shape, hidden, seen), usual = (json.loads(line) for line in done.stdout.splitlines())
    assert (shape, usual) == ([2, 3, 28, 28], [1, 8, 28, 28])
    assert hidden > 0 == seen
    back = tracking.download_model(f"runs:/{run.run_id}", root)
    assert back == root / "models" / f"{run.run_id}.safetensors"
    assert back.read_bytes() == (tmp_path / "completer.safetensors").read_bytes()


def test_run_without_a_model_is_an_error_in_one_line(root: Path) -> None:
    with tracking.start("train", "e", root=root) as run:
        pass
    with pytest.raises(UserError, match="holds no model"):
        tracking.download_model(f"runs:/{run.run_id}", root)
    with pytest.raises(UserError, match="there is no run"):
        tracking.download_model(f"runs:/{'0' * 32}", root)
    with pytest.raises(UserError, match="names no run"):
        tracking.download_model("best", root)


def test_what_is_no_answer_yet_is_waited_out() -> None:
    """A connection to a free port can meet itself: it then reads its own question."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for words in (b"GET /health HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(words)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        server = types.SimpleNamespace(poll=lambda: None)
        tracking._wait(cast("Any", server), f"http://127.0.0.1:{listening.getsockname()[1]}", PATIENCE)
        answering.join(PATIENCE)
    assert not answering.is_alive()


@pytest.mark.parametrize("taken_when", ["before", "while it starts"])
@pytest.mark.slow
def test_ui_shows_the_experiment_and_ends_with_all_its_processes(root: Path, taken_when: str) -> None:
    with tracking.start("train", "e", root=root) as run:
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = f"""
import signal
from pathlib import Path
from pipeline.tracking import runs as tracking
signal.signal(signal.SIGINT, signal.default_int_handler)
free = tracking._free_port
if {taken_when == "while it starts"}:
    tracking._free_port = lambda port: port if port == {port} else free(port)
tracking.ui(Path({str(root)!r}), {port}, open_browser=False, experiment_name="e")
"""
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
    try:
        found = re.fullmatch(
            rf"MLflow: (http://127\.0\.0\.1:(\d+))/#/experiments/{run.experiment_id}\?workflowType=machine_learning\n",
            line,
        )
        assert found
        assert int(found[2]) != port
        image = run._client.list_artifacts(run.run_id, "images")[0].path
        query = urllib.parse.urlencode({"path": image, "run_uuid": run.run_id})
        with urllib.request.urlopen(f"{found[1]}/get-artifact?{query}") as answer:
            assert len(answer.read()) > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(found[2]))) != 0
    finally:
        process.kill()
        process.communicate()

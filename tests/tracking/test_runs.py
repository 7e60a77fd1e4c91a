import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stores import client, forget, history, kept

from pipeline.tracking import package, runs

pytestmark = pytest.mark.usefixtures("root")
PICTURE = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)


def test_records_arrive(root: Path, warnings: list[str]) -> None:
    figure = Path("latent.png")
    figure.write_bytes(b"png")
    params = {"train.epochs": 2, "note": "x" * 7000}
    frame = pd.DataFrame({"digit": [0, 1], "frechet": [1.5, None]})
    with runs.start("train", "e", params=params) as run:
        run.metrics({"kl": 20.5, "elbo": -101.0}, step=1)
        run.metrics({"kl": 21.5, "elbo": -100.0}, step=2)
        run.tags({"digits": 10})
        run.image("samples/prior", PICTURE, step=1)
        run.image("samples/prior", np.stack([PICTURE] * 3, axis=-1), step=2)
        run.artifact(figure, "figures")
        figure.unlink()
        for rows in (1, 2):
            run.table(frame.head(rows), "per_class")
        run.dataset("mnist", "ab" * 32, "data/prepared/mnist.safetensors", "train")
    found = kept(run)
    assert found.data.params == {"train.epochs": "2", "note": "x" * 6000}
    assert history(run, "kl") == [(1, 20.5), (2, 21.5)]
    assert found.data.tags["digits"] == "10"
    names = " ".join(entry.path for entry in client(run).list_artifacts(run.run_id, "images"))
    assert sorted(re.findall(r"images/samples~prior\+step\+(\d)\+", names)) == ["1", "1", "2", "2"]
    assert [entry.path for entry in client(run).list_artifacts(run.run_id, "figures")] == ["figures/latent.png"]
    table = client(run).download_artifacts(run.run_id, "per_class.json")
    pd.testing.assert_frame_equal(pd.read_json(table, orient="split"), frame)  # as MLflow's load_table reads it
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("mnist", "train")
    assert found.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert warnings == []


def test_values_that_are_not_finite_leave_a_gap_and_one_warning(warnings: list[str]) -> None:
    with runs.start("train", "e") as run:
        run.metrics({"kl": 1.0, "elbo": 2.0}, step=1)
        run.metrics({"kl": float("nan"), "elbo": 3.0}, step=2)
        run.metrics({"kl": float("inf"), "elbo": float("-inf")}, step=3)
    assert history(run, "kl") == [(1, 1.0)]
    assert history(run, "elbo") == [(1, 2.0), (2, 3.0)]
    assert kept(run).data.tags["not_finite"] == "kl at step 2"
    assert len(warnings) == 1


def test_a_run_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("a")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-f", "file"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_EXP_NAME", "bumpy-lion")
    with runs.start("clean", "e") as run:
        pass
    tags = kept(run).data.tags
    assert tags["mlflow.source.git.commit"] == commit
    assert (tags["git_dirty"], tags["dvc_stage"], tags["dvc_exp_name"]) == ("false", "train", "bumpy-lion")
    Path("file").write_text("b")
    assert runs._context()["git_dirty"] == "true"


def test_runs_that_are_open_at_once_end_each_in_its_own_way(warnings: list[str]) -> None:
    parent = runs.start("study", "e")
    with pytest.raises(KeyboardInterrupt), parent, ExitStack() as stack:  # noqa: PT012
        begun = [stack.enter_context(runs.start(f"trial {n}", "e", wait=False)) for n in range(4)]
        for step in range(3):
            for number in (1, 2):
                begun[number].metrics({"kl": number + step}, step)
        begun[1].end()
        begun[0].end(ValueError("diverged"))
        raise KeyboardInterrupt
    assert [kept(run).info.status for run in begun] == ["FAILED", "FINISHED", "KILLED", "KILLED"]
    assert kept(parent).info.status == "KILLED"
    assert [history(run, "kl") for run in begun[1:3]] == [[(0, n), (1, n + 1), (2, n + 2)] for n in (1, 2)]
    assert not warnings


def test_a_run_that_has_ended_is_tagged(root: Path, warnings: list[str]) -> None:
    with runs.start("r", "e") as run:
        pass
    runs.tag(run.run_id, {"promoted": "true"}, [f"sqlite:///{root}/moved.db", run.uri])
    assert kept(run).data.tags["promoted"] == "true"
    assert kept(run).info.status == "FINISHED"
    assert not warnings
    runs.tag("0" * 32, {"promoted": "true"}, [run.uri])
    assert ["gets no tag" in warning for warning in warnings] == [True]


def test_a_finished_run_gets_more_and_stays_finished(warnings: list[str]) -> None:
    """An evaluation that fails or is killed says nothing about the training."""
    with runs.start("train", "e") as run:
        run.metrics({"kl": 1.0}, step=1)
    with pytest.raises(ValueError, match="evaluation"), runs.add_to(run.pointer(), "train", "e") as more:  # noqa: PT012
        more.metrics({"nll": 80.0}, step=1)
        raise ValueError("evaluation")
    assert more.run_id == run.run_id
    assert kept(run).data.metrics == {"kl": 1.0, "nll": 80.0}
    with runs.add_to(run.pointer() | {"run_id": ""}, "train", "e") as more:  # the store was down at the end
        more.metrics({"nll": 81.0}, step=2)
    assert kept(run).data.metrics == {"kl": 1.0, "nll": 81.0}
    assert kept(run).info.status == "FINISHED"
    assert warnings == []


def test_todays_store_takes_over_where_the_run_is_gone(warnings: list[str]) -> None:
    with runs.start("train", "e") as run:
        pass
    client(run).delete_run(run.run_id)
    for place in ("sqlite:////nowhere/mlflow.db", "http://127.0.0.1:9", "http://["):
        with runs.add_to({"run_id": run.run_id, "tracking_uri": place}, "train", "e") as other:
            other.metrics({"nll": 80.0}, step=1)
        assert other.run_id != run.run_id
        assert kept(other).data.metrics == {"nll": 80.0}
        assert kept(other).info.status == "FINISHED"
    assert [run.run_id in warning for warning in warnings] == [True] * 3


def test_a_copied_or_moved_project_keeps_its_own_records(
    tmp_path: Path, database: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new # % place"
    old.mkdir()
    shutil.copy(database, old / "mlflow.db")
    monkeypatch.chdir(old)
    (old / "w.safetensors").write_bytes(b"weights")
    with runs.start("train", "e") as run:
        run.model(old / "w.safetensors")
        run.artifact(old / "w.safetensors")
    pointer = run.pointer() | {"tracking_uri": run.uri}  # as older versions wrote it
    assert run.pointer()["tracking_uri"] == "sqlite:///mlflow.db"
    forget()
    shutil.copytree(old, new)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    monkeypatch.chdir(new)
    with runs.add_to(pointer, "train", "e") as more:
        more.artifact(new / "w.safetensors", "more")
    assert more.run_id == run.run_id
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    forget()
    shutil.rmtree(old)
    assert package.download_model(f"runs:/{run.run_id}").read_bytes() == b"weights"
    listed = [entry.path for entry in client(more).list_artifacts(run.run_id)]
    assert {"more", "w.safetensors"} <= set(listed)
    assert not old.exists()
    assert warnings == []

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import client, history, kept

from pipeline.tracking import outbox, package, runs

PATIENCE = 150.0


def test_a_refused_record_is_reported_and_delays_no_other(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", params={"epochs": 1}, root=root, warn=warnings.append) as run:
        run.params({"epochs": 2})
        run.metrics({"kl": 1.0}, step=1)
    assert kept(run).data.metrics == {"kl": 1.0}
    assert kept(run).info.status == "FINISHED"
    assert len(warnings) == 1
    assert "refused" in warnings[0]


def test_records_wait_in_order_for_a_store_that_fails(root: Path, warnings: list[str]) -> None:
    artifacts = root / "mlartifacts"
    with runs.start("train", "e", root=root, warn=warnings.append) as run:
        artifacts.write_text("where a folder should be")
        (root / "a.txt").write_text("as it was")
        run.artifact(root / "a.txt")
        (root / "a.txt").write_text("as it is")
        for step in range(3):
            run.metrics({"kl": step}, step)
        assert run._outbox.flush() == 4
        assert history(run, "kl") == []
        assert len(warnings) == 1
        artifacts.unlink()
    assert history(run, "kl") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (artifacts / run.run_id / "artifacts" / "a.txt").read_text() == "as it was"
    assert kept(run).info.status == "FINISHED"
    assert len(warnings) == 2
    assert "(5)" in warnings[1]


def test_a_slow_store_holds_up_nothing_and_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.start("train", "e", wait=False, root=root) as run:
        write = client(run).log_batch
        slow = threading.Event()
        monkeypatch.setattr(client(run), "log_batch", lambda *given, **named: slow.wait(60) and write(*given, **named))
        for step in range(50):
            run.metrics({"kl": float(step)}, step)
        assert history(run, "kl") == []
        slow.set()
    assert history(run, "kl") == [(step, float(step)) for step in range(50)]
    assert kept(run).info.status == "FINISHED"


def test_a_store_that_hangs_ends_no_run_late(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STALL_SECONDS", 0.2)
    hanging = threading.Event()
    with runs.start("train", "e", root=root, warn=warnings.append) as run:
        monkeypatch.setattr(client(run), "log_batch", lambda *_given, **_named: hanging.wait(60))
        run.metrics({"kl": 1.0}, step=1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert ["2 records stay unsent" in warning for warning in warnings] == [True]
    hanging.set()
    monkeypatch.setattr(outbox, "STALL_SECONDS", 60)
    assert run._outbox.flush() == 0


def test_a_store_found_unusable_late_costs_no_training(
    root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").write_text("where a folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/file/mlflow.db")
    trained = False
    with runs.start("train", "e", wait=False, root=root, warn=warnings.append) as run:
        run.metrics({"kl": 1.0}, step=1)
        assert run.wait_for_id() == ""
        trained = True
    assert trained
    assert [str(root / "file" / "mlflow.db") in warning and "\n" not in warning for warning in warnings] == [True] * 2


def test_an_interrupted_run_goes_on_by_its_key(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", root=root, warn=warnings.append) as run:
        run.metrics({"kl": 1.0}, step=1)
    with runs.start("train", "e", key=run.key, wait=False, root=root, warn=warnings.append) as again:
        again.metrics({"kl": 1.0}, step=1)  # as the checkpoint has it
        again.metrics({"kl": 2.0}, step=2)
        assert again.wait_for_id() == run.run_id
    assert history(run, "kl") == [(1, 1.0), (2, 2.0)]
    assert warnings == []
    with runs.start("train", "e", key="0" * 32, root=root, warn=warnings.append) as other:
        pass
    assert other.run_id != run.run_id
    assert ["is no longer" in warning for warning in warnings] == [True]


@pytest.mark.slow
def test_a_program_that_ends_at_once_leaves_a_whole_run(tmp_path: Path) -> None:
    """The database is new, and neither it nor mlflow is there when the block ends."""
    code = """
import sys
from pathlib import Path
from pipeline.tracking.runs import start
with start("r", "e", params={"a": 1}, wait=False, root=Path()) as run:
    for step in range(20):
        run.metrics({"kl": step}, step)
    sys.exit("mlflow" in sys.modules and "mlflow.tracking.client" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(Path(runs.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]  # sys.exit is an exception
        rows = database.execute("SELECT step FROM metrics ORDER BY rowid").fetchall()
    assert [step for (step,) in rows] == list(range(20))


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_comes_back(tracking_server: Any, root: Path, warnings: list[str]) -> None:
    (root / "cvae.safetensors").write_bytes(b"weights")
    with runs.start("study", "e", root=root, warn=warnings.append) as run:
        run.metrics({"kl": 0.0}, step=0)
        tracking_server.kill()
        began = time.monotonic()
        for step in range(1, 50):
            run.metrics({"kl": float(step)}, step)
        run.image("samples", np.zeros((28, 28), np.uint8), step=49)
        run.model(root / "cvae.safetensors")
        with runs.start("child", "e", parent=run.run_id, root=root, warn=warnings.append) as child:
            child.metrics({"kl": 1.0}, step=1)
        blocked = time.monotonic() - began
        (root / "cvae.safetensors").write_bytes(b"others")
        tracking_server.start()
    assert blocked < 10
    assert history(run, "kl") == [(step, float(step)) for step in range(50)]
    assert len(client(run).list_artifacts(run.run_id, "images")) == 2
    assert kept(run).info.status == kept(child).info.status == "FINISHED"
    assert history(child, "kl") == [(1, 1.0)]
    assert package.download_model(f"runs:/{run.run_id}", root).read_bytes() == b"weights"
    assert ["fails" in warnings[0], "answers again" in warnings[1]] == [True] * 2
    assert len(warnings) == 2


@pytest.mark.slow
def test_a_run_goes_on_when_the_server_stays_away(tracking_server: Any, root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", root=root, warn=warnings.append) as run:
        tracking_server.kill()
        for step in range(20):
            run.metrics({"kl": float(step)}, step)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE
    assert len(warnings) == 2
    assert "21 records" in warnings[1]
    assert "history.csv" in warnings[1]

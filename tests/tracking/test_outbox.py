"""Nothing is lost while the store is slow or down, and no training waits for it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stores import client, history, kept

from pipeline.tracking import outbox, package, runs, server


def test_a_refused_record_is_reported_and_delays_no_other(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", params={"epochs": 1}, root=root) as run:
        run.params({"epochs": 2})
        run.metrics({"kl": 1.0}, step=1)
    assert history(run, "kl") == [(1, 1.0)]
    assert kept(run).info.status == "FINISHED"
    assert ["refused" in warning for warning in warnings] == [True]


def test_a_store_that_hangs_ends_no_run_late(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    with runs.start("train", "e", root=root) as run:
        monkeypatch.setattr(client(run), "log_batch", lambda *_given, **_named: hanging.wait(60))
        monkeypatch.setattr(outbox, "STALL_SECONDS", 0.2)
        run.metrics({"kl": 1.0}, step=1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert ["2 records stay unsent" in warning for warning in warnings] == [True]
    hanging.set()
    monkeypatch.setattr(outbox, "STALL_SECONDS", 60)
    assert run._outbox.flush() == 0


def test_an_unusable_store_ends_no_run(root: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "file/mlflow.db"
    path.parent.write_text("where a folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with runs.start("train", "e", wait=False, root=root) as run:
        assert run.wait_for_id() == ""
    assert [str(path) in warning and "\n" not in warning for warning in warnings] == [True] * 2


def test_an_interrupted_run_goes_on_by_its_key(root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", root=root) as run:
        run.metrics({"kl": 1.0}, step=1)
    with runs.start("train", "e", key=run.key, wait=False, root=root) as again:
        again.metrics({"kl": 1.0}, step=1)  # as the checkpoint has it
        again.metrics({"kl": 2.0}, step=2)
        assert again.wait_for_id() == run.run_id
    assert history(run, "kl") == [(1, 1.0), (2, 2.0)]
    assert warnings == []
    with runs.start("train", "e", key="0" * 32, root=root) as other:
        pass
    assert other.run_id != run.run_id
    assert ["is no longer" in warning for warning in warnings] == [True]


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_comes_back(
    root: Path, database: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(database, root / "server.db")
    (root / "cvae.safetensors").write_bytes(b"weights")
    with socket.socket() as held:  # bound but not listening, it keeps the port from others while the server is down
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "kept")]
        monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")

        def serve() -> "subprocess.Popen[bytes]":
            with open(root / "server.log", "a") as log:
                started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            assert server.is_up(started, f"http://127.0.0.1:{port}")
            return started

        process = serve()
        try:
            with runs.start("study", "e", root=root) as run:
                run.metrics({"kl": 0.0}, step=0)
                run._outbox.flush()
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                began = time.monotonic()
                for step in range(1, 50):
                    run.metrics({"kl": float(step)}, step)
                run.model(root / "cvae.safetensors")
                with runs.start("trial", "e", wait=False, root=root) as trial:
                    trial.metrics({"kl": 1.0}, step=1)
                assert time.monotonic() - began < 10
                (root / "cvae.safetensors").write_bytes(b"others")
                process = serve()
            assert history(run, "kl") == [(step, float(step)) for step in range(50)]
            assert kept(run).info.status == kept(trial).info.status == "FINISHED"
            assert history(trial, "kl") == [(1, 1.0)]
            failing, recovered = warnings
            assert "fails" in failing
            assert "answers again" in recovered
            copy = package.download_model(f"runs:/{run.run_id}", root)
            assert (copy.name, copy.read_bytes()) == (f"{run.run_id}.safetensors", b"weights")
        finally:
            server.end(process)

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import history, kept

from pipeline.tracking import package, runs

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
        assert history(run, "kl") == []
        assert len(warnings) == 1
        artifacts.unlink()
    assert history(run, "kl") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (artifacts / run.run_id / "artifacts" / "a.txt").read_text() == "as it was"
    assert kept(run).info.status == "FINISHED"
    assert len(warnings) == 2
    assert "(5)" in warnings[1]


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
    assert blocked < PATIENCE
    assert history(run, "kl") == [(step, float(step)) for step in range(50)]
    assert len(run._client.list_artifacts(run.run_id, "images")) == 2
    assert kept(run).info.status == kept(child).info.status == "FINISHED"
    assert history(child, "kl") == [(1, 1.0)]
    assert package.download_model(f"runs:/{run.run_id}", root).read_bytes() == b"weights"
    assert ["fails" in warnings[0], "stay unsent" in warnings[1], "answers again" in warnings[2]] == [True] * 3
    assert len(warnings) == 3


@pytest.mark.slow
def test_a_run_goes_on_when_the_server_stays_away(tracking_server: Any, root: Path, warnings: list[str]) -> None:
    with runs.start("train", "e", root=root, warn=warnings.append) as run:
        tracking_server.kill()
        began = time.monotonic()
        for step in range(20):
            run.metrics({"kl": float(step)}, step)
    assert time.monotonic() - began < PATIENCE
    assert len(warnings) == 2
    assert "21 records" in warnings[1]
    assert "history.csv" in warnings[1]

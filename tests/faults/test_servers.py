"""A tracking server may be away, hang, answer by the drop or refuse: no training waits for it, and nothing is lost.

What a server did not take arrives with the next run. A password in its address is nowhere.
"""

import json
import shutil
from pathlib import Path

import pytest
from drills import LOGIN, Zygote, assert_no_password, assert_whole_records, left
from servers import Tracking, bad

pytestmark = pytest.mark.slow


def with_password(address: str) -> str:
    return address.replace("//", f"//{LOGIN}@")


def test_a_password_is_in_no_file_and_on_no_line(
    prepared: Path, zygote: Zygote, tracking: Tracking, tmp_path: Path
) -> None:
    folder, uri = tmp_path / "project", with_password(tracking.address)
    shutil.copytree(prepared, folder)
    for stage in ("train", "evaluate"):
        ended = zygote.run(folder, stage, MLFLOW_TRACKING_URI=uri)
        assert ended.status == 0, ended.said
        assert_no_password(folder, tracking.folder)
    assert json.loads((folder / "models/run.json").read_text())["tracking_uri"] == tracking.address
    assert_whole_records(folder, database=tracking.folder / "mlflow.db")
    with bad("401") as address:
        for stage in ("train", "evaluate"):
            ended = zygote.run(folder, stage, MLFLOW_TRACKING_URI=with_password(address))
            assert "127.0.0.1" in ended.said
            assert_no_password(folder)
    ended = zygote.run(folder, "evaluate", MLFLOW_TRACKING_URI=with_password("http://127.0.0.1:9"))
    assert ended.status == 2
    assert_no_password(folder)


@pytest.mark.parametrize("behaviour", ["hang", "drop", "500", "401", "html"])
def test_a_bad_server_stops_no_training_and_gets_its_records_later(
    project: Path, zygote: Zygote, trained: Path, tracking: Tracking, behaviour: str
) -> None:
    with bad(behaviour) as address:
        ended = zygote.run(project, "train", MLFLOW_TRACKING_URI=address)
    assert ended.status == 0, ended.said
    assert "cvae sync" in ended.said
    assert left(project) == left(trained)
    # The server is mended, at the same address for all that the records know.
    for path in (project / ".cvae/outbox").glob("*.jsonl"):
        path.write_text(path.read_text().replace(address, tracking.address))
    zygote.sync(project, tracking.address)
    pointer = json.loads((project / "models/run.json").read_text())
    assert_whole_records(project, tracking.folder / "mlflow.db", pointer["run_key"])

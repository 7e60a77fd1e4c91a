import socket
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from stores import client, kept

from pipeline.tracking import runs, server


@pytest.mark.slow
def test_the_ui_shows_the_experiment_and_ends_with_all_its_processes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.start("train", "e", root=root) as run:
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
    image = client(run).list_artifacts(run.run_id, "images")[0].path
    query = urllib.parse.urlencode({"path": image, "run_uuid": run.run_id})
    opened: list[str] = []

    def visit(url: str) -> None:
        opened.append(url)
        with urllib.request.urlopen(f"{url.partition('/#')[0]}/get-artifact?{query}") as answer:
            assert len(answer.read()) > 0
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, "open", visit)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server.ui(root, port, open_browser=True, experiment="e")
    address, _, page = opened[0].partition("/#")
    assert page.startswith(f"/experiments/{kept(run).info.experiment_id}/runs?viewStateShareKey=")
    assert not address.endswith(f":{port}")
    with pytest.raises(URLError):
        urllib.request.urlopen(address)

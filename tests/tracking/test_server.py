import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from stores import client

from pipeline.tracking import runs, server

PROJECT = Path(server.__file__).parents[2]


@pytest.mark.slow
def test_the_ui_shows_the_experiment_and_ends_with_all_its_processes(root: Path) -> None:
    with runs.start("train", "e", root=root) as run:
        run.image("samples", np.zeros((28, 28), np.uint8), step=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = f"""
import signal
from pathlib import Path
from pipeline.tracking import server
signal.signal(signal.SIGINT, signal.default_int_handler)
server.ui(Path({str(root)!r}), {port}, open_browser=False, experiment_name="e")
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
    try:
        found = re.fullmatch(
            rf"MLflow: (http://127\.0\.0\.1:(\d+))/#/experiments/{run.experiment_id}\?workflowType=machine_learning\n",
            line,
        )
        assert found
        assert int(found[2]) != port
        image = client(run).list_artifacts(run.run_id, "images")[0].path
        query = urllib.parse.urlencode({"path": image, "run_uuid": run.run_id})
        with urllib.request.urlopen(f"{found[1]}/get-artifact?{query}") as answer:
            assert len(answer.read()) > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(150) == 0
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(found[2]))) != 0
    finally:
        process.kill()
        process.communicate()

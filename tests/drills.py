"""What the drills have in common: a small project, its stages as processes that may be killed, and what must hold."""

import base64
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import forked
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from idx import idx
from imports import ROOT

from pipeline.base.files import sha256
from pipeline.base.params import write
from pipeline.data.download import NAMES

WHOLE = int(os.environ.get("FAULTS", "0")) >= 1000  # what `make faults` runs
# Without deadlines and checks of speed, which a busy machine fails. The whole run has other examples each time. The
# short one has the same, so they must not be made of the constants of modules that other tests have imported.
vars(providers)["is_local_module_file"] = lambda _: False
quickly = settings(deadline=None, derandomize=not WHOLE, suppress_health_check=list(HealthCheck))
USER, PASSWORD, KEY = "anna", "geheim/9 ä", "gs3heim-key"  # of servers
LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"
EPOCHS = 4
LIMIT_SECONDS = 300.0  # what takes longer hangs
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_size": 60, "checksums": "SHA256SUMS", "mirrors": ["mirror"]},
    "judge": {"epochs": 1, "batch_size": 32},
    "model": {"latent_size": 2, "encoder_hidden": [16], "decoder_hidden": [16]},
    "train": {"epochs": EPOCHS, "batch_size": 32, "precision": "float32", "device": "cpu", "compile": "never"},
    "sample": {"components": 1},
    "evaluate": {"nll_draws": 5, "sample_sets": 1},
    "weight": {"epochs": EPOCHS, "batch_size": 32, "points": 3},
    "tune": {
        "trials": 3,
        "epochs": 1,
        "population": 2,
        "least_class_accuracy": None,
        "kl_weight": [0.1, 10],
        "seeds": 2,
    },
}


# Runs a stage whose trainings wait after an epoch until a file exists. It patches what the stage will import.
HELD = """
import runpy, sys, time
from pathlib import Path
from pipeline.training import fit, population
def held(train):
    def records(*given):
        for record in train(*given):
            yield record
            while not Path({gate!r}).exists():
                time.sleep(0.01)
    return records
for module in (fit, population):
    module.fit = held(module.fit)
sys.modules.pop({module!r}, None)
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


class Ended(NamedTuple):
    status: int
    seconds: float
    said: str


class Held(NamedTuple):
    """A stage at work in another thread, whose training waits after an epoch until the file `gate` exists."""

    running: Future[Ended]
    gate: Path

    def end(self) -> Ended:
        self.gate.touch()
        return self.running.result()


def real_path() -> str:
    """The PATH with this environment's own programs."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


class Zygote:
    """Runs commands in processes of their own, without the seconds that imports take."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python", "dvc"):
            text = forked.PROGRAM.format(python=sys.executable, folder=str(Path(__file__).parent), name=name)
            (self.programs / name).write_text(text, encoding="utf-8")
            (self.programs / name).chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py")), str(folder / "socket")],
            env=self.environment() | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the zygote has ended"

    def environment(self) -> dict[str, str]:
        """Without the servers of the test that asks; `python` and `dvc` on the PATH are forked."""
        servers = ("MLFLOW_", "OPTUNA_", "AWS_", "DVC_ROOT", "DVC_STAGE", "DVC_EXP")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(servers)}
        path = os.pathsep.join([str(self.programs), real_path()])
        kept |= {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return kept | {forked.ADDRESS: str(self.programs.with_name("socket"))}

    def run(
        self,
        folder: Path,
        stage: str,
        after: float | None = None,
        signal: int = 9,
        mounts: Mapping[str, int] | None = None,
        gate: Path | None = None,
        **environment: str,
    ) -> Ended:
        """Runs a stage; `after` so many seconds it gets the signal. mounts: see mounts.confine. gate: see Held."""
        temporary, began = folder.with_suffix(".tmp"), time.monotonic()
        temporary.mkdir(exist_ok=True)
        environment = self.environment() | {"TMPDIR": str(temporary)} | environment
        with open(folder.with_suffix(".said"), "w+", encoding="utf-8") as said:
            files = (0, said.fileno(), said.fileno())
            module = "pipeline.cli" if stage == "sync" else f"pipeline.stages.{stage}"
            words = ["python", "-m", module, *(["sync"] if stage == "sync" else [])]
            if gate:
                words = ["python", "-c", HELD.format(gate=str(gate), module=module)]
            with forked.start(words, str(folder), environment, files, mounts) as process:
                process.settimeout(LIMIT_SECONDS if after is None else after)
                try:
                    status = process.recv(16)
                except TimeoutError:
                    assert after is not None, "it hangs"
                    process.settimeout(LIMIT_SECONDS)
                    with suppress(OSError):  # it has just ended
                        process.send(bytes([signal]))
                    status = process.recv(16)
            said.seek(0)
            shutil.rmtree(temporary)  # a killed stage leaves its temporary files
            return Ended(int(status), time.monotonic() - began, said.read())

    @contextmanager
    def held(self, folder: Path, stage: str, **environment: Any) -> Iterator[Held]:
        """Runs a stage in another thread. At the end of the block its training goes on, and has ended."""
        gate = folder.with_suffix(".gate")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.run, folder, stage, gate=gate, **environment)
            try:
                yield Held(running, gate)
            finally:
                gate.touch()

    def sync(self, folder: Path, address: str) -> None:
        """`cvae sync`, again where a server on a busy machine was too slow."""
        for _ in range(5):
            ended = self.run(folder, "sync", MLFLOW_TRACKING_URI=address)
            if ended.status == 0:
                return
        raise AssertionError(ended.said)

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def zygote(folder: Path) -> Iterator[Zygote]:
    made = Zygote(folder)
    try:
        yield made
    finally:
        made.end()


def digits(count: int = 560) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 8 × 8 digits at three times their size, (count, 28, 28) uint8, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.pad(np.kron(found.images[:count] * 255 / 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).round()
    return images.astype(np.uint8), found.target[:count].astype(np.uint8)


def publish(folder: Path, images: np.ndarray, labels: np.ndarray, train: int) -> str:
    """Writes MNIST's four files, the first `train` images for training; returns their checksums as sha256sum does."""
    folder.mkdir(parents=True)
    for prefix, part in {"train": slice(0, train), "t10k": slice(train, None)}.items():
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    return "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))


def make_project(folder: Path, database: Path, images: np.ndarray, labels: np.ndarray, train: int = 360) -> Path:
    """A project with an empty MLflow database; the first `train` images are published for training."""
    sums = publish(folder / "data/raw", images, labels, train)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    changes = {(section, key): value for section, values in SETTINGS.items() for key, value in values.items()}
    write(changes, folder / "params.yaml")
    shutil.copy(database, folder / "mlflow.db")
    return folder


OUTPUTS = {  # of each stage, the files that are the same after every undisturbed run, but for times
    "download": [f"data/raw/{name}" for name in NAMES],
    "prepare": ["data/prepared/mnist.safetensors"],
    "train": ["models/cvae.safetensors", "reports/history.csv"],
    "evaluate": [f"reports/{name}" for name in ("metrics.json", "per_class.csv", "doctor.json", "headline.json")],
    "curve": ["models/curve.safetensors", "reports/weight/curve.csv"],
    "tune": [],
}


def left(folder: Path, stage: str = "train") -> dict[str, bytes | str]:
    """What a stage leaves, but for times."""
    found: dict[str, bytes | str] = {name: (folder / name).read_bytes() for name in OUTPUTS[stage]}
    if stage == "train":
        history = pd.read_csv(folder / "reports/history.csv")
        timed = [name for name in history.columns if str(name).startswith("time/")]
        found["reports/history.csv"] = history.drop(columns=timed).to_csv()
    return found


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as opened:
        return opened.execute(query).fetchall()


def assert_whole_records(folder: Path, database: Path | None = None, key: str = "") -> None:
    """The run that run.json names is finished and whole, no other is open, and nothing stands twice.

    database: of a server. key: the run's, where its id was not known when run.json was written.
    """
    database = database or folder / "mlflow.db"
    run = json.loads((folder / "models/run.json").read_text(encoding="utf-8"))["run_id"]
    if key:
        ((run,),) = rows(database, f"SELECT run_uuid FROM tags WHERE key = 'run_key' AND value = '{key}'")
    states = dict(rows(database, "SELECT run_uuid, status FROM runs"))
    assert states.pop(run) == "FINISHED"
    assert set(states.values()) <= {"FAILED", "KILLED", "FINISHED"}
    assert_sound(database)
    names = "('validation/reconstruction', 'validation/kl', 'validation/elbo')"  # an evaluation adds others
    of_training = f"SELECT count(*) FROM metrics WHERE run_uuid = '{run}' AND key IN {names} GROUP BY key"
    assert rows(database, of_training) == [(EPOCHS,)] * 3
    models = rows(database, f"SELECT status FROM logged_models WHERE source_run_id = '{run}'")
    assert models == [(2,)]  # ready


def assert_sound(database: Path) -> None:
    """No run is open, no metric stands twice, and SQLite finds no damage."""
    assert rows(database, "SELECT name FROM runs WHERE status = 'RUNNING'") == []
    twice = "SELECT run_uuid, key, step FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
    assert rows(database, twice) == []
    assert rows(database, "PRAGMA integrity_check") == [("ok",)]


def holds_a_password(content: bytes) -> bool:
    """In any form: however the password is quoted, it begins alike."""
    forms = [b"geheim", KEY.encode(), base64.b64encode(f"{USER}:{PASSWORD}".encode())]
    return any(form in content for form in forms)


def assert_no_password(*folders: Path) -> None:
    """In no file below the folders."""
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(FileNotFoundError, IsADirectoryError):  # a server's SQLite deletes files of its own
            assert not holds_a_password(path.read_bytes()), path


def assert_words(ended: Ended) -> None:
    """It ended well, or with one line that says why not."""
    assert ended.status in (0, 2), ended.said
    assert "Traceback" not in ended.said
    if ended.status == 2:
        *_, last = (line for line in ended.said.splitlines() if not line.startswith("warning: "))
        assert last.startswith("error: "), ended.said
        assert ended.said.count("error: ") == 1, ended.said


def assert_tidy(folder: Path) -> None:
    """No file is half written, and nothing waits."""
    assert [path for path in folder.rglob("*") if path.suffix in (".part", ".jsonl")] == []
    assert list((folder / ".checkpoints").glob("*.safetensors")) == []

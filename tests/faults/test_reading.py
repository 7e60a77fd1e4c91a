"""What comes from elsewhere is read as data: nothing unpickles or evaluates it, and any bytes end in a value or a line.

`old/` holds what earlier versions left: MLflow's tables of 2.9, Optuna's of 3.1, a model and a checkpoint of ours.
"""

import ast
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import drills
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imports import ROOT
from settings import model_params, train_params

from pipeline.base import params
from pipeline.base.errors import UserError
from pipeline.data import idx
from pipeline.model.cvae import build, resolve
from pipeline.stages import saved
from pipeline.study.queue import read_study
from pipeline.tracking import local
from pipeline.training.fit import TrainParams, start

OLD = Path(__file__).with_name("old")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "pd.read_pickle"}
PLACES = ("pipeline", "recipes", "benchmarks")
SOURCES = [ROOT / "cvae.py", *(path for place in PLACES for path in sorted((ROOT / place).rglob("*.py")))]
quickly = settings(drills.quickly, max_examples=100 if drills.WHOLE else 30)


def test_nothing_that_is_read_can_run() -> None:
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert words.get("allow_pickle", "False") == "False"
            assert words.get("shell", "False") == "False"
            assert words.get("weights_only", "True") == "True"
            if ast.unparse(node.func) == "YAML":  # ruamel's unsafe type makes objects of what it reads
                assert words.get("typ", "'rt'") in ("'rt'", "'safe'")


@quickly
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_any_bytes_are_an_idx_file_or_refused(images: bytes, labels: bytes) -> None:
    for head in (b"", b"\0\0\x08\x03"):
        with suppress(UserError):
            idx.parse(head + images, labels, "test")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@quickly
@given(st.sampled_from(sorted(params.plain(train_params()))), VALUES)
def test_any_value_of_a_param_is_taken_or_refused(key: str, value: Any) -> None:
    with suppress(UserError):
        params.parse(TrainParams, params.plain(train_params()) | {key: value}, "train")


@quickly
@given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_params_or_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with suppress(UserError):
        params.read(tmp_path / "params.yaml")


@quickly
@given(st.integers(0, 18_000), st.integers(0, 255), st.integers(0, 18_000))
def test_a_damaged_model_is_read_or_refused(tmp_path: Path, place: int, byte: int, end: int) -> None:
    content = bytearray((OLD / "cvae.safetensors").read_bytes())
    content[place] = byte
    (tmp_path / "m.safetensors").write_bytes(content if end < 9000 else content[:end])
    with suppress(UserError):
        saved.load_cvae(tmp_path / "m.safetensors")


def test_a_model_of_an_earlier_version_is_read() -> None:
    assert saved.load_cvae(OLD / "cvae.safetensors").model.architecture.latent_size == 2


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    path.write_bytes((OLD / "training.safetensors").read_bytes())
    small = resolve(model_params(latent_size=2, encoder_hidden=(2,), decoder_hidden=(2,)))
    assert saved.resume_training(path, start(build(small, 1), train_params(), torch.device("cpu"))) == {"history": []}


@pytest.mark.slow
def test_mlflows_tables_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """MLflow brings them up to date."""
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((OLD / "mlflow.sql").read_text(encoding="utf-8"))
        ((run,),) = database.execute("SELECT run_uuid FROM runs").fetchall()
    found = local.find(f"sqlite:///{path}", run)
    assert (found.info.run_name, found.data.metrics) == ("old", {"validation/elbo": -100.0})


@pytest.mark.slow
def test_optunas_tables_of_an_earlier_version_are_refused_with_the_remedy_which_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.executescript((OLD / "optuna.sql").read_text(encoding="utf-8"))
    with pytest.raises(UserError, match="make a backup, then run `optuna storage upgrade --storage ADDRESS`") as caught:
        read_study("old", tmp_path)
    assert "\n" not in str(caught.value)
    subprocess.run(
        [Path(sys.executable).with_name("optuna"), "storage", "upgrade", "--storage", url],
        check=True,
        capture_output=True,
    )
    (trial,) = read_study("old", tmp_path).trials
    assert (trial.value, trial.user_attrs) == (2.5, {"origin": "earlier"})

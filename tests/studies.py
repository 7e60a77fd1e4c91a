"""Small studies for tests: tiny images, a judge whose answers are known, and programs that work on a study."""

import os
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from bands import JUDGES, banded
from drills import Zygote
from imports import ROOT
from settings import objective_params, train_params, tune_params

from pipeline.base.errors import UserError
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import Architecture
from pipeline.study.found import counts
from pipeline.study.queue import Candidate, Study, open_study
from pipeline.study.search import Event, search
from pipeline.study.space import Setting

TUNE = tune_params(
    study=None, trials=6, epochs=4, population="auto", kl_weight=(0.01, 100.0), learning_rate=None, latent_size=None,
    conditioning=None, objectives=("frechet",), sampler_of_latents="fitted", least_class_accuracy=None,
    seeds=2, seed=0,
)  # fmt: skip
SETTING = Setting(
    tune=TUNE,
    architecture=Architecture(4, (16,), (16,), "concat", encoder_sees_label=True),
    aim=objective_params(kl_weight=0.3),
    train=train_params(epochs=20, learning_rate=2e-2, warmup=0.0, seed=0),
    components=1,
    nll_draws=5,
    hashes={"data": "d", "judge": "j"},
)
TRAIN, VALIDATION = banded(12, 0), banded(7, 1)


@cache
def empty() -> bytes:
    """An Optuna database without a study: making one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optuna.db"
        optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
        return path.read_bytes()


def having(setting: Setting = SETTING, **changes: Any) -> Setting:
    """A setting with other values of the section `tune`."""
    return replace(setting, tune=replace(setting.tune, **changes))


def opened(folder: Path, setting: Setting = SETTING) -> Study:
    """The study of a setting, in a ready-made database in `folder`, or in the one that the environment names."""
    folder.mkdir(exist_ok=True)
    if "OPTUNA_STORAGE" not in os.environ and not (folder / "optuna.db").exists():
        (folder / "optuna.db").write_bytes(empty())
    return open_study(setting, folder, create=True)


def events(found: Study) -> Generator[Event, None, None]:
    """Runs a study."""
    evaluator = Evaluator(JUDGES, VALIDATION, TRAIN, found.setting.aim.pixels, 0)
    yield from search(found, TRAIN, evaluator)


def finished(folder: Path, setting: Setting = SETTING) -> Study:
    """A study after all its trials."""
    found = opened(folder, setting)
    for _ in events(found):
        pass
    return found


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Expects a UserError of one line, without the password."""
    with pytest.raises(UserError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def results(found: Study) -> dict[int, list[float]]:
    """The values of the trials that count."""
    return {trial.number: trial.values for trial in found.trials() if counts(trial)}


def states(found: Study) -> list[str]:
    return [trial.state.name for trial in found.trials()]


def abandoned(found: Study, worker: str = "elsewhere:lock") -> Candidate:
    """A trial in training that belongs to `worker`."""
    with found.at_work():
        (candidate,) = found.ask(1)
    candidate.trial.set_user_attr("worker", worker)
    return candidate


PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {paths!r}
from pathlib import Path
from studies import *
from pipeline.base import console
from pipeline.study.search import Epoch
def main():
    found = open_study(having(**{tune!r}), Path({folder!r}), create=True)  # the processes make its tables
    for event in events(found):
        if isinstance(event, Epoch):
            print("epoch", event.candidate.trial.number, event.record.epoch, flush=True)
            sys.stdin.readline()
console.run(main)
"""


def program(zygote: Zygote, folder: Path, **tune: Any) -> "subprocess.Popen[str]":
    """A process that works on a study. It prints a line after each epoch of a trial, then waits for a line."""
    paths = [str(ROOT / "tests/study"), str(ROOT / "tests"), str(ROOT)]
    text = PROGRAM.format(paths=paths, folder=str(folder), tune=tune)
    named = {name: os.environ[name] for name in ("OPTUNA_STORAGE",) if name in os.environ}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [zygote.programs / "python", "-c", text], env=zygote.environment() | named, text=True, stdin=pipe, stdout=pipe,
        stderr=pipe,
    )  # fmt: skip


def until_it_says(process: "subprocess.Popen[str]", line: str) -> None:
    """Lets a program go on until it prints `line`."""
    assert process.stdout is not None
    assert process.stdin is not None
    for said in process.stdout:
        if said.startswith(line):
            return
        process.stdin.write("go on\n")
        process.stdin.flush()
    raise AssertionError(f"{line!r} was never printed")

"""A process may be killed at any moment: the same command, run again, ends as if nothing had happened.

`FAULTS=1000 pytest tests/faults` is the whole run; without it, a short one.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from drills import OUTPUTS, SETTINGS, Zygote, assert_sound, assert_tidy, assert_whole_records, left, rows
from imports import ROOT
from waiting import until

pytestmark = pytest.mark.slow

FAULTS = int(os.environ.get("FAULTS", "50"))
SEED = os.environ.get("FAULTS_SEED", "0")
SHARES = {"train": 0.32, "download": 0.2, "prepare": 0.2, "tune": 0.08, "evaluate": 0.1, "curve": 0.1}
MOST = 40  # kills in one test, so that several processes can share the work
PARTS = [
    pytest.param(stage, number, min(MOST, count - number * MOST), id=f"{stage}-{number}")
    for stage, share in SHARES.items()
    for count in [round(share * FAULTS)]
    for number in range(-(-count // MOST))
]


class Whole(NamedTuple):
    """A project as it is before a stage, what the undisturbed stage leaves there, and the seconds that it took."""

    before: Path
    left: dict[str, bytes | str]
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(
    prepared: Path, trained: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Whole]:
    """Gives each stage's Whole."""

    @cache
    def give(stage: str) -> Whole:
        before = tmp_path_factory.mktemp(stage) / "before"
        shutil.copytree(trained if stage == "evaluate" else prepared, before)
        if stage == "download":
            (before / "data/raw").rename(before / "mirror")
        if stage == "prepare":
            (before / OUTPUTS["prepare"][0]).unlink()
        after = shutil.copytree(before, before.with_name("after"))
        ended = zygote.run(after, stage, CVAE_MNIST_MIRROR="mirror")
        assert ended.status == 0, ended.said
        assert_whole(after, stage)
        return Whole(before, left(after, stage), ended.seconds)

    return give


@pytest.mark.parametrize(("stage", "part", "kills"), PARTS)
def test_a_killed_stage_ends_like_an_undisturbed_one(
    undisturbed: Callable[[str], Whole],
    zygote: Zygote,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    stage: str,
    part: int,
    kills: int,
) -> None:
    before, expected, seconds = undisturbed(stage)
    record_property("fault", f"{stage} killed")
    record_property("count", kills)
    draw, folder, ended = random.Random(f"{SEED} {stage} {part}"), tmp_path / "project", None
    while kills > 0:
        shutil.copytree(before, folder)
        kept: dict[tuple[float, str], str] = {}
        for _ in range(draw.randint(1, 4)):
            number = draw.choice([signal.SIGKILL, signal.SIGTERM])
            ended = zygote.run(folder, stage, draw.uniform(0, seconds), number, CVAE_MNIST_MIRROR="mirror")
            assert ended.status in (0, -number, 128 + number), ended.said
            assert "Traceback" not in ended.said
            kills -= ended.status != 0
            seconds *= 1.05 if ended.status else 0.8  # other programs come and go: a few runs shall come through
            assert_no_half_file(folder, expected)
            assert kept.items() <= figures(folder).items()
            kept = figures(folder)
            if ended.status == 0:
                break
        else:
            ended = zygote.run(folder, stage, CVAE_MNIST_MIRROR="mirror")
        assert ended.status == 0, ended.said
        assert left(folder, stage) == expected
        assert kept.items() <= figures(folder).items()
        assert_whole(folder, stage)
        shutil.rmtree(folder)


def assert_no_half_file(folder: Path, expected: dict[str, bytes | str]) -> None:
    for name, content in expected.items():
        if isinstance(content, bytes) and (folder / name).exists():
            assert (folder / name).read_bytes() == content


def assert_whole(folder: Path, stage: str) -> None:
    """Nothing is open, half or twice, and the stage's records are all there."""
    assert_tidy(folder)
    assert_sound(folder / "mlflow.db")
    if stage in ("train", "evaluate"):
        assert_whole_records(folder)
    finished = [name for (name,) in rows(folder / "mlflow.db", "SELECT name FROM runs WHERE status = 'FINISHED'")]
    if stage == "curve":
        assert set(finished) == {"curve"}  # a kill may come when all is done: the next command then starts anew
    if stage == "tune":
        trials = SETTINGS["tune"]["trials"]
        states = [state for (state,) in rows(folder / "optuna.db", "SELECT state FROM trials")]
        assert states.count("COMPLETE") == trials
        assert not {"RUNNING", "WAITING"} & set(states)
        assert sum(name.startswith("trial") for name in finished) == trials


def figures(folder: Path) -> dict[tuple[float, str], str]:
    """The figures of each finished training of a study, by weight and seed."""
    if not (folder / "optuna.db").exists():
        return {}
    query = """SELECT param_value, key, value_json FROM trial_params JOIN trial_user_attributes USING (trial_id)
        WHERE key LIKE 'figures of seed%'"""
    try:
        return {(weight, seed): value for weight, seed, value in rows(folder / "optuna.db", query)}
    except sqlite3.OperationalError:  # no tables yet
        return {}


def test_two_trainings_of_the_same_take_turns(project: Path, trained: Path, zygote: Zygote) -> None:
    """The second begins while the first is at work."""
    other = project.with_name("other")
    other.symlink_to(project)  # the files of what it says have names of their own
    with ThreadPoolExecutor(1) as pool, zygote.held(project, "train") as first:
        until(lambda: list((project / ".checkpoints").glob("*.safetensors")))
        second = pool.submit(zygote.run, other, "train")
        until(lambda: "waiting for process" in other.with_suffix(".said").read_text())
        ended = first.end(), second.result()
    for one in ended:
        assert one.status == 0, one.said
        assert "going on" not in one.said
    assert "waiting for process" not in ended[0].said
    assert left(project) == left(trained)
    assert_whole(project, "train")


def test_a_signal_in_the_last_instant_ends_a_program_without_a_traceback() -> None:
    program = (
        "import signal\nfrom pipeline.base import console\nclass Last(list):\n"
        "    def clear(self): signal.raise_signal(signal.SIGTERM)\n"
        "console._signals = Last()\nconsole.run(lambda: None)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")

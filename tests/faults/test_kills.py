"""A process may be killed at any moment: the same command, run again, ends as if nothing had happened.

`FAULTS=1000 pytest tests/faults` is the whole run; without it, a short one.
"""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from drills import Left, Zygote, assert_tidy, assert_whole_records

pytestmark = pytest.mark.slow

FAULTS = int(os.environ.get("FAULTS", "40"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))


def interrupt(folder: Path, zygote: Zygote, stage: str, seconds: float, draw: random.Random) -> int:
    """Runs a stage and ends it, by kill -9 or SIGTERM, until it comes through, 1 to 3 times; returns how often."""
    count = draw.choice([1, 1, 2, 3])
    for number in range(count):
        ended = zygote.run(folder, stage, draw.uniform(0, seconds), draw.choice([signal.SIGKILL, signal.SIGTERM]))
        assert "Traceback" not in ended.said
        if ended.status == 0:
            return number + 1
    ended = zygote.run(folder, stage)
    assert ended.status == 0, ended.said
    return count


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A project whose training nobody disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(prepared, folder)
    ended = zygote.run(folder, "train")
    assert ended.status == 0, ended.said
    assert_whole_records(folder)
    assert_tidy(folder)
    return folder, ended.seconds


def test_a_killed_training_ends_like_an_undisturbed_one(
    prepared: Path, undisturbed: tuple[Path, float], zygote: Zygote, tmp_path: Path
) -> None:
    whole, seconds = Left.of(undisturbed[0]), undisturbed[1]
    draw, faults = random.Random(SEED), 0
    while faults < FAULTS:
        folder = tmp_path / f"{faults}"
        shutil.copytree(prepared, folder)
        faults += interrupt(folder, zygote, "train", seconds, draw)
        left = Left.of(folder)
        assert left.weights == whole.weights
        assert left.history.equals(whole.history)
        assert_whole_records(folder)
        assert_tidy(folder)
        shutil.rmtree(folder)

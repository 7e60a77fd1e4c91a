"""Files that hold something else: `cvae` says what is wrong in one line, or does without them."""

import os
from pathlib import Path

import pytest
from commands import Cvae, assert_refused

from pipeline.base.params import write

GARBAGE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "half a file": b'{"protocol": {"im',
    "brackets": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "no figures": b'{"protocol": {"images": "many"}, "prior": null}',
    "other types": b'{"protocol": [], "prior": 3, "collapsed": "no"}',
}


@pytest.mark.parametrize("content", GARBAGE)
def test_files_of_something_else_are_refused_with_the_remedy_or_done_without(
    reported: Path, cvae: Cvae, content: str
) -> None:
    (reported / "models/run.json").write_bytes(GARBAGE[content])
    (reported / "reports/history.csv").write_bytes(GARBAGE[content])
    assert cvae("doctor").status == 0
    (reported / "models/run.json").write_text('{"run_id": "", "tracking_uri": ""}', encoding="utf-8")
    (reported / "reports/study").mkdir(exist_ok=True)
    for name in ("validation.json", "metrics.json", "study/best.json", "study/trials.csv"):
        (reported / "reports" / name).write_bytes(GARBAGE[content])
    for words, name in (("", "validation"), ("--html a.html", "validation"), ("--html a.html study", "study")):
        assert_refused(reported, cvae, f"report {words}", f"{name}")
        assert "run `dvc repro" in cvae(f"report {words}").err


def test_a_value_that_no_machine_can_use_is_refused(project: Path, cvae: Cvae) -> None:
    write({("train", "device"): "meta"}, project / "params.yaml")
    assert_refused(project, cvae, "doctor", "train.device 'meta' can't be used")
    write({("train", "epochs"): 10**400}, project / "params.yaml")
    assert_refused(project, cvae, "params", "train.epochs is beyond")


def test_a_pipe_is_not_waited_for(project: Path, cvae: Cvae) -> None:
    os.mkfifo(project / "picture.png")
    assert_refused(project, cvae, "complete picture.png --mask top", "picture.png")

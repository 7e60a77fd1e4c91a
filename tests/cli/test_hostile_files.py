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
    project: Path, cvae: Cvae, content: str
) -> None:
    (project / "reports/study").mkdir(parents=True)
    for name in ("validation.json", "metrics.json", "history.csv", "study/best.json", "study/trials.csv"):
        (project / "reports" / name).write_bytes(GARBAGE[content])
    (project / "models/run.json").write_bytes(GARBAGE[content])
    assert cvae("doctor").status == 0
    (project / "models/run.json").write_text('{"run_id": "", "tracking_uri": ""}', encoding="utf-8")
    for words, name in (
        ("", "validation.json"),
        ("--html a.html", "validation.json"),
        ("--html a.html study", "study"),
    ):
        assert_refused(project, cvae, f"report {words}", name)
        assert "run `dvc repro" in cvae(f"report {words}").err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("epochs", 10**400, "train.epochs is beyond"), ("device", "meta", "train.device 'meta' can't be used")],
)
def test_a_value_that_no_machine_can_use_is_refused(
    project: Path, cvae: Cvae, key: str, value: object, words: str
) -> None:
    write({("train", key): value}, project / "params.yaml")
    assert_refused(project, cvae, "params" if key == "epochs" else "doctor", words)


def test_a_pipe_is_not_waited_for(project: Path, cvae: Cvae) -> None:
    os.mkfifo(project / "picture.png")
    assert_refused(project, cvae, "complete picture.png --mask top", "picture.png")

"""Files that hold something else: `cvae` says what is wrong in one line, or does without them."""

import os
from pathlib import Path

import pytest
from commands import Cvae

GARBAGE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "half a file": b'{"protocol": {"im',
    "brackets": b"[" * 100_000,
    "zeros": b"\0" * 1000,
    "no text": b"\xff\xfe\x00",
    "no figures": b'{"protocol": {"images": "many"}, "prior": null}',
    "other types": b'{"protocol": [], "prior": 3, "collapsed": "no"}',
}


def assert_one_line(status: int, said: str, name: str) -> None:
    assert status == 2
    assert said.startswith("error: ")
    assert name in said
    assert said.count("\n") == 1


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
        status, _, said = cvae(f"report {words}")
        assert_one_line(status, said, name)
        assert "run `dvc repro" in said
    assert not (project / "a.html").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", "9" * 400, "train.epochs is beyond"),
        ("batch_size", "-" + "9" * 30, "train.batch_size is beyond"),
        ("device", "meta", "train.device 'meta' can't be used"),
    ],
)
def test_a_value_that_no_machine_can_use_is_refused(
    project: Path, cvae: Cvae, key: str, value: str, words: str
) -> None:
    lines = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    place = next(i for i in range(lines.index("train:"), len(lines)) if lines[i].startswith(f"  {key}:"))
    lines[place] = f"  {key}: {value}"
    (project / "params.yaml").write_text("\n".join(lines), encoding="utf-8")
    status, _, said = cvae("params" if "beyond" in words else "doctor")
    assert_one_line(status, said, words)


def test_a_pipe_is_not_waited_for(project: Path, cvae: Cvae) -> None:
    os.mkfifo(project / "picture.png")
    status, _, said = cvae("complete picture.png --mask top")
    assert_one_line(status, said, "picture.png")

"""A collapse is reported at once, and only once."""

from typing import Any, cast

import pytest
from settings import objective_params

from pipeline.stages.recording import watched
from pipeline.tracking.runs import Run
from pipeline.training.fit import Record, collapsed


class Tagged(dict[str, Any]):
    """In place of an open run."""

    tags = dict.update


def records(*kls: float) -> list[Record]:
    return [Record(epoch, 10 * epoch, {"train/kl_weight": 2.0, "validation/kl": kl}) for epoch, kl in enumerate(kls, 1)]


def test_a_collapse_and_its_end_are_reported_once_and_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    run, given = Tagged(), records(5, 0.01, 0.02, 4)
    events = watched(given, 4, objective_params(), cast("Run", run))
    assert [next(events), next(events)] == given[:2]
    assert "collapsed (see `cvae doctor`): validation/kl 0.01 nats after epoch 2" in capsys.readouterr().err
    assert run == {"collapsed": "true", "collapsed_after_epoch": 2}
    assert list(events) == given[2:]
    (line,) = capsys.readouterr().err.splitlines()
    assert "used again: validation/kl 4 nats after epoch 4" in line
    assert run["collapsed"] == "false"


@pytest.mark.parametrize(("name", "share", "expected"), [("warmup", 0.5, "--++"), ("cyclical", 0.9, "-+-+")])
def test_no_collapse_is_reported_while_a_schedule_rises(name: str, share: float, expected: str) -> None:
    aim = objective_params(schedule=name, schedule_share=share, cycles=2)
    assert [collapsed(record, 4, aim) for record in records(0, 0, 0, 0)] == [sign == "+" for sign in expected]

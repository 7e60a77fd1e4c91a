"""A collapse is reported at once, and only once."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from settings import objective_params

from pipeline.stages.recording import watched
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Record, collapsed
from pipeline.training.objective import ObjectiveParams


class Tagged:
    """In place of an open run."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def tags(self, values: dict[str, Any]) -> None:
        self.values |= values


def records(*kls: float) -> list[Record]:
    """Epochs of ten steps with these KLs on validation."""
    return [Record(epoch, 10 * epoch, {"kl_weight": 2.0, "validation/kl": kl}) for epoch, kl in enumerate(kls, 1)]


def watch(
    capsys: pytest.CaptureFixture[str], kls: Sequence[float], aim: ObjectiveParams
) -> tuple[list[str], dict[str, Any]]:
    """The lines on stderr and the run's tags after a training with these KLs."""
    run = Tagged()
    passed = list(watched(records(*kls), len(kls), aim, cast("tracking.Run", run)))
    assert passed == records(*kls)
    return capsys.readouterr().err.splitlines(), run.values


def test_latents_in_use_are_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(capsys, [5, 6, 7], objective_params()) == ([], {})


def test_a_collapse_is_reported_once_and_tagged(capsys: pytest.CaptureFixture[str]) -> None:
    lines, tags = watch(capsys, [5, 0.01, 0.02, 0.0], objective_params())
    assert len(lines) == 1
    assert "collapsed: validation/kl 0.01 nats after epoch 2" in lines[0]
    assert tags == {"collapsed": "true", "collapsed_after_epoch": 2}


def test_a_collapse_is_reported_before_the_next_epoch_begins(capsys: pytest.CaptureFixture[str]) -> None:
    first = next(watched(iter(records(0.0, 5.0)), 2, objective_params(), cast("tracking.Run", Tagged())))
    assert first.epoch == 1
    assert "collapsed" in capsys.readouterr().err


def test_latents_that_are_used_again_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    lines, tags = watch(capsys, [0.0, 0.0, 4.0], objective_params())
    assert len(lines) == 2
    assert "used again: validation/kl 4 nats after epoch 3" in lines[1]
    assert tags["collapsed"] == "false"


@pytest.mark.parametrize("schedule", ["warmup", "capacity"])
def test_no_collapse_is_reported_while_a_schedule_rises(schedule: str) -> None:
    aim = objective_params(schedule=schedule, schedule_share=0.5)
    assert [collapsed(record, 4, aim) for record in records(0, 0, 0, 0)] == [False, False, True, True]


def test_a_cycle_counts_at_its_end() -> None:
    aim = objective_params(schedule="cyclical", schedule_share=0.9, cycles=2)
    assert [collapsed(record, 4, aim) for record in records(0, 0, 0, 0)] == [False, True, False, True]

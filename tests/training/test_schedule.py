"""Schedules: the learning rate and the pressure on the KL."""

import doctest
import math

import pytest
from settings import objective_params

from pipeline.training import schedule


@pytest.mark.parametrize(("steps", "cycles"), [(1, 1), (7, 3), (100, 4), (4296, 200)])
def test_each_cycle_starts_at_zero(steps: int, cycles: int) -> None:
    shares = [schedule.cycle(step, steps, cycles, 0.5) for step in range(steps)]
    assert all(0 <= share <= 1 for share in shares)
    if steps >= 4 * cycles:
        starts = [0, *(step for step in range(1, steps) if shares[step] < shares[step - 1])]
        assert starts == [math.ceil(cycle * steps / cycles) for cycle in range(cycles)]
        assert max(shares[start] for start in starts) < 2 * cycles / steps
        assert sum(share == 1 for share in shares) == pytest.approx(steps / 2, abs=2 * cycles)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("constant", 3, (1.0, None)),
        ("warmup", 25, (0.5, None)),
        ("cyclical", 5, (0.5, None)),
        ("capacity", 25, (1.0, 12.5)),
    ],
)
def test_a_schedule_gives_a_share_of_the_weight_or_a_capacity(
    name: str, step: int, expected: tuple[float, float | None]
) -> None:
    aim = objective_params(schedule=name, schedule_share=0.5, cycles=5, capacity=25.0)
    assert schedule.pressure(step, 100, aim) == expected


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(schedule).failed == 0

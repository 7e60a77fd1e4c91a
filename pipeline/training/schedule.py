"""What changes from step to step: the learning rate, the pressure on the KL, and the decay of averaged weights.

Steps are counted from 0 over the whole run.
"""

import math
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from pipeline.training.objective import ObjectiveParams

N = TypeVar("N", float, Tensor)


class Step(NamedTuple, Generic[N]):
    """What a step is taken with: numbers on a CPU, tensors () on a GPU, where reading a number would be a wait.

    kl_factor: share of the KL weight. The weight itself is not part of it: the members of a population share the
    schedule and differ in their weights. capacity: nats per image, or None. decay: of the averaged weights, or None.
    """

    learning_rate: N
    kl_factor: N
    capacity: N | None
    decay: N | None


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """A linear rise to `peak` over the share `warmup` of all steps, then half a cosine down to 0.

    >>> [round(learning_rate(step, 100, 1.0, 0.1), 3) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = math.ceil(steps * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def decay(step: int, most: float) -> float:
    """Decay of the averaged weights after a step: short memory at first, while the weights are far from trained.

    >>> [round(decay(step, 0.999), 3) for step in (0, 90, 10_000)]
    [0.1, 0.91, 0.999]
    """
    return min(most, (1 + step) / (10 + step))


def rise(step: int, steps: int, share: float) -> float:
    """A linear rise from 0 to 1 over the share `share` of all steps, then 1 (Sønderby 2016).

    >>> [rise(step, 100, 0.5) for step in (0, 25, 50, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(step / (share * steps), 1.0)


def cycle(step: int, steps: int, cycles: int, share: float) -> float:
    """`cycles` rises one after another, each over the share `share` of its cycle (Fu 2019).

    >>> [cycle(step, 100, 2, 0.5) for step in (0, 10, 25, 49, 50, 60, 99)]
    [0.0, 0.4, 1.0, 1.0, 0.0, 0.4, 1.0]
    """
    return rise(step * cycles % steps, steps, share)


def pressure(step: int, steps: int, aim: ObjectiveParams) -> tuple[float, float | None]:
    """What `aim.schedule` says of a step: the share of the KL weight, and the KL's capacity (Burgess 2018) or None."""
    match aim.schedule:
        case "constant":
            return 1.0, None
        case "warmup":
            return rise(step, steps, aim.schedule_share), None
        case "cyclical":
            return cycle(step, steps, aim.cycles, aim.schedule_share), None
        case "capacity":
            return 1.0, aim.capacity * rise(step, steps, aim.schedule_share)

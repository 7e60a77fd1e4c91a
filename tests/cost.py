"""What work costs, in a measure that other processes on the machine hardly touch."""

import resource
from collections.abc import Callable


def processor_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of the processes that `work` starts and waits for.

    The same work still costs more on a slow or shared processor: compare it with other work, measured in turn.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

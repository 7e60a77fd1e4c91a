"""How much CPU time work takes. Other processes on the machine hardly change it."""

import resource
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of the processes that `work` starts and waits for.

    The same work takes longer on a slow or shared CPU: compare it with other work, measured in turn.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

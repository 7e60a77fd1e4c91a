"""A study through Optuna's gRPC storage proxy, which shares few connections to a database among many workers.

Optuna's proxy has no heartbeats and no lock. Here heartbeats are an attribute of a trial, and the lock is a study of a
name that only one process can give.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import GrpcStorageProxy
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

SCHEME = "grpc://"
PORT = 13000
BEAT = "heartbeat"  # an attribute of a trial: when its worker last said that it lives, in seconds since 1970
TURN = "a turn of cvae"  # the study that is the lock
EXPECTED = ("OK", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT")  # which Optuna handles


class Proxy(GrpcStorageProxy, BaseHeartbeat):
    """Optuna's client of its proxy at grpc://HOST:PORT, with heartbeats.

    refused: makes the error of a call that failed, from its reason. retry: is called with each trial whose heartbeats
    are older than `grace` seconds; the clocks of all machines must agree better than that.
    """

    def __init__(
        self,
        url: str,
        refused: Callable[[str], Exception],
        seconds: float,
        grace: float = 0.0,
        retry: Callable[[optuna.Study, FrozenTrial], None] | None = None,
    ) -> None:
        self._refused, self._seconds, self._grace, self._retry = refused, seconds, grace, retry
        place = urlsplit(url)
        super().__init__(host=place.hostname or "localhost", port=place.port or PORT)

    def _setup(self) -> None:
        import grpc
        from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
        from optuna.storages._grpc.client import GrpcClientCache

        super()._setup()
        proxy = self

        class Watch(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
            def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
                call = go_on(details._replace(timeout=proxy._seconds), request)
                if call.code().name not in EXPECTED:
                    raise proxy._refused(f"{call.code().name.lower()}: {call.details()}")
                return call

        self._stub = StorageServiceStub(  # type: ignore[no-untyped-call]
            grpc.intercept_channel(self._channel, Watch())
        )
        self._cache = GrpcClientCache(self._stub)

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):
            self.set_trial_user_attr(trial_id, BEAT, time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        late = time.time() - self._grace
        return [trial._trial_id for trial in running if trial.user_attrs.get(BEAT, late) < late]

    def get_heartbeat_interval(self) -> int | None:
        return 1  # any number: Optuna looks for dead trials only where there is one

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        return self._retry


@contextmanager
def turn(proxy: Proxy, longest: float) -> Iterator[None]:
    """Holds a lock that only one process at a time can have, of all that use this proxy.

    A process that has held it for `longest` seconds is taken for dead.
    """
    seen, since, pause = -1, time.monotonic(), 0.05
    while True:
        try:
            mine = proxy.create_new_study([StudyDirection.MINIMIZE], TURN)
            break
        except DuplicatedStudyError:
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2.0, 1.5 * pause)
        with suppress(KeyError):  # it has just ended
            other = proxy.get_study_id_from_name(TURN)
            if other != seen:
                seen, since = other, time.monotonic()
            elif time.monotonic() - since > longest:
                proxy.delete_study(other)
    try:
        yield
    finally:
        with suppress(KeyError):  # another process took this one for dead
            proxy.delete_study(mine)

"""The MLflow stores that this process has open, and what they hold."""

import sys
from typing import Any

from waiting import until

from pipeline.tracking.local import connect
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.runs import Run


def forget() -> None:
    """Closes all open stores, as the end of the process would."""
    places = sys.modules.get("mlflow.tracking._tracking_service.utils")
    if places:
        places._artifact_repos_cache.clear()
    while Outbox._open:
        _, outbox = Outbox._open.popitem()
        with outbox._changed:  # its thread, which may be sending, then leaves them alone
            for line in outbox._records:
                line.journal.release()
            outbox._records.clear()
        backend = outbox.client and outbox.client._tracking_client.store
        if hasattr(backend, "engine"):
            backend.engine.dispose()
            type(backend)._engine_map.pop(outbox.uri, None)


def deliver(run: Run) -> None:
    """Waits until MLflow has all records so far, however often it fails before."""
    until(lambda: run._outbox.flush(patient=True) == 0)


def client(run: Run) -> Any:
    """The MlflowClient that sends the run's records."""
    run.tags({"waited": "true"})
    run._outbox.flush()
    return run._outbox.client


def kept(run: Run) -> Any:
    """The run as MLflow has it."""
    return connect(run.uri).get_run(run.run_id)


def history(run: Run, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric."""
    return [(point.step, point.value) for point in connect(run.uri).get_metric_history(run.run_id, name)]

"""The MLflow stores that this process has open, and what they hold."""

from typing import Any

from pipeline.tracking.outbox import Outbox
from pipeline.tracking.runs import Run


def forget() -> None:
    """Closes all open stores, as the end of the process would."""
    while Outbox._open:
        _, outbox = Outbox._open.popitem()
        while outbox._pending:
            record = outbox._pending.popleft()
            if record.kept:
                record.kept.cleanup()
        backend = outbox._client and outbox._client._tracking_client.store
        if hasattr(backend, "engine"):
            backend.engine.dispose()
            type(backend)._engine_map.pop(outbox.uri, None)


def client(run: Run) -> Any:
    """The MlflowClient of the run's store."""
    return run._outbox.ask(lambda client: client)


def kept(run: Run) -> Any:
    """The run as MLflow has it."""
    return client(run).get_run(run.run_id)


def history(run: Run, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric."""
    return [(metric.step, metric.value) for metric in client(run).get_metric_history(run.run_id, name)]

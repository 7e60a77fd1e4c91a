"""The MLflow stores that this process has open."""

from pipeline.tracking import runs as tracking


def forget() -> None:
    """Closes the stores that this process has open, as its end would."""
    while tracking._Store._open:
        _, store = tracking._Store._open.popitem()
        backend = store.client._tracking_client.store
        if hasattr(backend, "engine"):
            backend.engine.dispose()
            type(backend)._engine_map.pop(store.uri, None)
        for record in store.pending:
            if record.kept:
                record.kept.cleanup()

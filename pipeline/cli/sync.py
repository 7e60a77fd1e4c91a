"""`cvae sync` sends MLflow what it could not take before."""

from pathlib import Path


def sync() -> None:
    """Send MLflow what it could not take before.

    Figures, pictures and models of runs wait in .cvae/outbox while MLflow is away. The next training or evaluation
    sends them too.
    """
    from pipeline.base.addresses import shown
    from pipeline.tracking.local import tracking_uri
    from pipeline.tracking.outbox import sync as send

    count = send(Path())
    print(f"{count} records sent to MLflow at {shown(tracking_uri(Path()))}" if count else "nothing waits for MLflow")

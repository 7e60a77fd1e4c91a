"""A training's collapse is reported when it happens, not when it is evaluated."""

from collections.abc import Iterable, Iterator

from pipeline.base import console
from pipeline.tracking.runs import Run
from pipeline.training.fit import Record, collapsed
from pipeline.training.objective import ObjectiveParams


def watched(records: Iterable[Record], epochs: int, aim: ObjectiveParams, run: Run) -> Iterator[Record]:
    """The same records. A warning and the run's tags say when the latents collapse, and when they are used again."""
    before = False
    for record in records:
        now = collapsed(record, epochs, aim)
        if now != before:
            words = "have collapsed (see `cvae doctor`)" if now else "are used again"
            kl = f"validation/kl {record.figures['validation/kl']:.2g} nats after epoch {record.epoch}"
            console.warn(f"the latents {words}: {kl}")
            run.tags({"collapsed": "true", "collapsed_after_epoch": record.epoch} if now else {"collapsed": "false"})
        before = now
        yield record

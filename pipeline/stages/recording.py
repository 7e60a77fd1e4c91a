"""A training with a progress bar, a run in MLflow, and a checkpoint after every epoch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.base import console
from pipeline.base.files import alone, at_home
from pipeline.base.params import digest
from pipeline.base.paths import CHECKPOINTS, PREPARED
from pipeline.stages.saved import resume_training, save_training
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Record, Training, collapsed
from pipeline.training.objective import ObjectiveParams

BESIDE_THE_BAR = ("train/loss", "train/reconstruction", "train/kl", "time/images_per_second")
Rows = list[dict[str, float]]
Follow = Callable[[Iterable[Record], Callable[[], np.ndarray] | None], None]


@contextmanager
def recording(
    title: str, training: Training[Any], epochs: int, hashes: Mapping[str, str], tags: Mapping[str, str], **about: Any
) -> Iterator[tuple[tracking.Run, Rows, Follow]]:
    """Yields an MLflow run for a training, its rows so far, and what follows its records and may draw a preview.

    Before the first epoch and after each the state is saved in .checkpoints/. An interrupted training of the same data
    and params, which `hashes` stand for, goes on from there in its own MLflow run. The file is deleted when the block
    has ended well. No two processes train the same thing, or into one folder, at once: the second waits.
    about: the run's name, description, experiment and params, as tracking.start takes them.
    """
    unfinished = at_home(CHECKPOINTS / f"{digest(hashes, title)}.safetensors")
    with alone(CHECKPOINTS / f"{title}.lock"), alone(unfinished.with_suffix(".lock")):
        before = resume_training(unfinished, training) or {"history": []}
        rows: Rows = before["history"]
        if rows:
            print(f"going on after epoch {training.epoch}, where this training was interrupted")
        tags = {**tags, **{f"{name}_hash": value for name, value in hashes.items()}}
        with (
            console.bar(title, epochs, training.epoch) as bar,
            tracking.start(**about, tags=tags, key=before.get("run", ""), wait=False) as run,
        ):

            def save() -> None:
                save_training(unfinished, training, {"history": rows, "run": run.key})

            def follow(records: Iterable[Record], preview: Callable[[], np.ndarray] | None) -> None:
                if preview and not rows:
                    run.image("preview/prior", preview(), 0)  # untrained: MLflow's page opens a tile at step 0
                for record in records:
                    rows.append(record.row())
                    bar(record.epoch, console.figures({name: record.figures[name] for name in BESIDE_THE_BAR}))
                    run.metrics(record.figures, record.step)
                    if preview:
                        run.image("preview/prior", preview(), record.epoch)
                    save()

            save()
            run.expect_model()
            run.dataset("mnist", hashes["data"], str(PREPARED), "train")
            for row in rows:  # in case the run is no longer in MLflow
                run.metrics({name: row[name] for name in row.keys() - {"epoch", "step"}}, int(row["step"]))
            yield run, rows, follow
        unfinished.unlink(missing_ok=True)


def watched(records: Iterable[Record], epochs: int, aim: ObjectiveParams, run: tracking.Run) -> Iterator[Record]:
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

"""A training with a progress bar, a run in MLflow, and a checkpoint after every epoch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.base import console
from pipeline.base.files import home
from pipeline.base.paths import CHECKPOINTS
from pipeline.stages.saved import resume_training, save_training
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Record, Training, collapsed
from pipeline.training.objective import ObjectiveParams


class Recording(NamedTuple):
    """An open MLflow run and one row of figures per epoch so far."""

    run: tracking.Run
    rows: list[dict[str, float]]
    follow: Callable[[Iterable[Record], Callable[[], np.ndarray] | None], None]


@contextmanager
def recording(
    title: str,
    training: Training[Any],
    epochs: int,
    key: str,
    *,
    name: str,
    experiment: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
) -> Iterator[Recording]:
    """Opens an MLflow run for a training. `follow` then takes its records, and a preview to draw after each.

    After every epoch the state is saved in .checkpoints/ under `key`, which stands for data and params. An interrupted
    training goes on from there, in its own MLflow run. The file is deleted when the block has ended well.
    """
    unfinished = home(Path.cwd()) / CHECKPOINTS / f"{key}.safetensors"
    before = resume_training(unfinished, training) or {"history": [], "run": ""}
    rows: list[dict[str, float]] = before["history"]
    if rows:
        print(f"going on after epoch {training.epoch}, where this training was interrupted")
    known = before["run"]
    with (
        console.bar(title, epochs, training.epoch) as progress,
        tracking.start(name, experiment, params=params, tags=tags, key=known, wait=False, warn=console.warn) as run,
    ):
        for row in rows:  # what the interrupted process had no time to send
            run.metrics({name: row[name] for name in row.keys() - {"epoch", "step"}}, int(row["step"]))

        def follow(records: Iterable[Record], preview: Callable[[], np.ndarray] | None) -> None:
            for record in records:
                rows.append(record.row())
                progress(record.epoch, console.figures(headline(record.figures)))
                run.metrics(record.figures, record.step)
                if preview:
                    run.image("samples_prior", preview(), record.step)
                save_training(unfinished, training, {"history": rows, "run": run.key})

        yield Recording(run, rows, follow)
    unfinished.unlink(missing_ok=True)


def watched(records: Iterable[Record], epochs: int, aim: ObjectiveParams, run: tracking.Run) -> Iterator[Record]:
    """The same records. A warning and the run's tags say when the latents collapse, and when they are used again."""
    empty = False
    for record in records:
        if collapsed(record, epochs, aim) != empty:
            empty = not empty
            now = f"validation/kl {record.figures['validation/kl']:.2g} nats after epoch {record.epoch}"
            if empty:
                beta = record.figures["kl_weight"]
                console.warn(f"the latents have collapsed: {now}, β = {beta:g}; `cvae doctor` says more")
                run.tags({"collapsed": "true", "collapsed_after_epoch": record.epoch})
            else:
                console.warn(f"the latents are used again: {now}")
                run.tags({"collapsed": "false"})
        yield record


def headline(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures beside the progress bar."""
    watched = {name: figures[f"train/{name}"] for name in ("loss", "reconstruction", "kl")}
    return watched | {"images/s": figures["time/images_per_second"]}

"""A training that people watch, MLflow records and a crash only interrupts; what is trained is the caller's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import console
from pipeline.base.files import home
from pipeline.stages.saved import resume_training, save_training
from pipeline.tracking import runs as tracking
from pipeline.training.fit import Record, Training, collapsed
from pipeline.training.objective import ObjectiveParams


@dataclass
class Recording:
    """An open run of MLflow, and what came of each epoch so far."""

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
    """Opens a run for a training; `follow` then takes its records, and a preview to draw at each.

    After every epoch the state lies in .checkpoints/ under `key`, which stands for data and params. A training that
    was interrupted there goes on, in its own MLflow run; the file goes when all that the block does is done.
    """
    unfinished = home(Path.cwd()) / ".checkpoints" / f"{key}.safetensors"
    before = resume_training(unfinished, training)
    if before:
        print(f"going on after epoch {training.epoch}, where this very run was interrupted")
    rows: list[dict[str, float]] = before["history"] if before else []
    with (
        console.bar(title, epochs, training.epoch) as bar,
        tracking.resume(before["run"], before["uri"], name, experiment, tags=tags, warn=console.warn)
        if before
        else tracking.start(name, experiment, params=params, tags=tags, warn=console.warn) as run,
    ):

        def follow(records: Iterable[Record], preview: Callable[[], np.ndarray] | None) -> None:
            for record in records:
                rows.append(record.row())
                bar.show(record.epoch, console.figures(headline(record.figures)))
                run.metrics(record.figures, record.step)
                if preview:
                    run.image("samples_prior", preview(), record.step)
                state = {"history": rows, "run": run.run_id, "uri": run.uri}
                save_training(unfinished, training, state)

        yield Recording(run, rows, follow)
    unfinished.unlink(missing_ok=True)


def watched(records: Iterable[Record], epochs: int, aim: ObjectiveParams, run: tracking.Run) -> Iterator[Record]:
    """The same records; says at once, and in the run's tags, when the latent code collapses or comes back to life."""
    empty = False
    for record in records:
        if collapsed(record, epochs, aim) != empty:
            empty = not empty
            now = f"validation/kl {record.figures['validation/kl']:.2g} nats after epoch {record.epoch}"
            if empty:
                beta = record.figures["kl_weight"]
                console.warn(f"the latent code has collapsed: {now}, β = {beta:g}; `cvae doctor` says more")
                run.tags({"collapsed": "true", "collapsed_after_epoch": record.epoch})
            else:
                console.warn(f"the latent code is in use again: {now}")
                run.tags({"collapsed": "false"})
        yield record


def headline(figures: Mapping[str, float]) -> dict[str, float]:
    """What a person watches while it trains."""
    watched = {name: figures[f"train/{name}"] for name in ("loss", "reconstruction", "kl")}
    return watched | {"images/s": figures["time/images_per_second"]}

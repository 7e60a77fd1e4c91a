"""Runs the study of KL weights into reports/study: some ten minutes on two cores without bfloat16.

The study itself is in a database (optuna.db, or what OPTUNA_STORAGE names) and continues there after any interruption.
The files here are exports of it. Each trial is a run in MLflow, below one run for the study.
"""

from contextlib import ExitStack, closing
from pathlib import Path

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import BEST
from pipeline.stages.study.files import export, read_bench, read_setting
from pipeline.stages.study.progress import Progress
from pipeline.stages.study.records import Records, study_run
from pipeline.stages.study.words import sentences
from pipeline.study import cluster
from pipeline.study.queue import open_study
from pipeline.study.search import search
from pipeline.tracking import runs as tracking
from pipeline.training.fit import steps_per_epoch


def main(dask: str = "") -> None:
    """dask: the address of a Dask scheduler, whose workers train; without it, this process trains."""
    setting, experiment = read_setting(), load(tracking.TrackingParams, "tracking").experiment
    (train, evaluator), trials = read_bench(setting, "cpu" if dask else setting.train.device), setting.tune.trials
    real = evaluator.ceiling.figures  # raises UserError where the split is too small, before anything is made
    study = open_study(setting, Path(), create=True)
    print(f"study {study.name}: {study.done()} of {trials} trials done, on {dask or train.labels.device}", flush=True)
    progress = Progress(study)
    with (
        study_run(study, experiment) as parent,
        ExitStack() as runs,
        console.bar("tune", progress.total, progress.done()) as bar,
        closing(cluster.search(study, train, evaluator, dask) if dask else search(study, train, evaluator)) as events,
    ):
        last = steps_per_epoch(train, setting.train) * setting.tune.epochs
        records = Records(study, experiment, parent, runs, last)
        try:
            for event in events:
                records.follow(event)
                if step := progress.after(event):
                    bar(*step)
        except KeyboardInterrupt:
            print(f"\n{study.done()} of {trials} trials are done; the same command continues", flush=True)
            raise
        with study.turn():  # the processes of one study end at the same time
            found = export(study, real)
            records.finish(found)
    print(f"{BEST.parent}/ written.", *sentences(found, study.seeds(), setting), sep="\n")


if __name__ == "__main__":
    console.run(main)

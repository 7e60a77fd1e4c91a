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
from pipeline.stages.study.records import Records, study_run
from pipeline.study.queue import Study, open_study
from pipeline.study.search import Ended, Epoch, search
from pipeline.tracking import runs as tracking


def main() -> None:
    setting, experiment = read_setting(), load(tracking.TrackingParams, "tracking").experiment
    (train, evaluator), trials = read_bench(setting), setting.tune.trials
    real = evaluator.ceiling()  # raises UserError where the split is too small, before anything is made
    study = open_study(setting, Path(), create=True)
    print(f"study {study.name}: {study.done()} of {trials} trials done, on {train.labels.device}", flush=True)
    with (
        study_run(study, experiment) as parent,
        ExitStack() as runs,
        console.bar("tune", trials, study.done()) as progress,
        closing(search(study, train, evaluator)) as events,
    ):
        records = Records(study, experiment, parent, runs)
        try:
            for event in events:
                records.follow(event)
                if isinstance(event, Ended) or (isinstance(event, Epoch) and event.candidate.epochs == 1):
                    progress(study.done(), news(study))
        except KeyboardInterrupt:
            print(f"\n{study.done()} of {trials} trials are done; the same command continues", flush=True)
            raise
        with study.turn():  # the processes of one study end at the same time
            best = export(study, real)
            records.finish()
    print(f"{BEST.parent}/ written: β = {best.kl_weight:.3g} came first, with {console.figures(best.values)}")


def news(study: Study) -> str:
    """The best trial so far in a few words."""
    states = list(study.table()["state"])
    best = study.choose() if "COMPLETE" in states else None
    words = f"best {console.figures(best.values)} at β = {best.kl_weight:.3g}, " if best else ""
    return f"{words}{states.count('PRUNED')} pruned"


if __name__ == "__main__":
    console.run(main)

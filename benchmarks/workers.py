"""Trials per minute of a study whose trials only sleep: what its database, Optuna's proxy or a Dask driver can bear.

    OPTUNA_STORAGE=postgresql://USER@HOST/DATABASE python -m benchmarks.workers --workers 1 2 4 64 --seconds 1
    OPTUNA_STORAGE=postgresql://USER@HOST/DATABASE python -m benchmarks.workers --dask --workers 1 2 4 64 --seconds 1

Every worker is a process that takes itself for a machine of its own; with --dask it is a thread of one local cluster.
Asking, telling and keeping figures and pictures are the study's own; MLflow is left out. The results stand in
docs/lab/workers.md.
"""

import argparse
import math
import os
import resource
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.splits import Split
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import Architecture, build
from pipeline.model.density import Density
from pipeline.stages.study.files import read_setting
from pipeline.study import cluster, search, storage
from pipeline.study.queue import Study, open_study
from pipeline.study.space import Setting
from pipeline.training.fit import Record

MODEL = build(Architecture(2, (8,), (8,), "concat", encoder_sees_label=True), 0)
DENSITY = Density(torch.ones(10, 1), torch.zeros(10, 1, 2), torch.eye(2).expand(10, 1, 2, 2))
NOTHING = Split(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
EVALUATOR = Evaluator(None, NOTHING, NOTHING, "grey", 0)
FIGURES = ("reconstruction", "kl", "elbo", "nll", "active_units", "fitted/frechet", "prior/frechet")


def sleeping(seconds: float) -> Any:
    """What takes the place of `train_together`: it sleeps, and gives figures that follow from the weight."""

    def train(_: Setting, trials: Sequence[dict[str, Any]], seed: int, *__: Any) -> Iterator[search.Trained]:
        time.sleep(seconds)
        for member, trial in enumerate(trials):
            distance = abs(math.log(trial["kl_weight"])) + 0.01 * seed
            figures = {f"validation/{name}": distance for name in FIGURES}
            record = Record(1, 1, {"time/seconds": seconds})
            yield search.Trained(member, record, seconds, failed=False, fitted=search.Fitted(figures, MODEL, DENSITY))

    return train


def setting(trials: int) -> Setting:
    """A new study of that many trials, one at once for each worker, with one seed."""
    ours = read_setting(needs_files=False)
    name = f"workers-{uuid.uuid4().hex[:8]}"
    tune = replace(ours.tune, study=name, trials=trials, seeds=1, population=1, least_class_accuracy=None)
    return replace(ours, tune=tune)


def work(study: Study) -> None:
    for _ in search.search(study, NOTHING, EVALUATOR):
        pass


def processes(wanted: Setting, root: Path, workers: int) -> float:
    """Seconds of the study with so many processes."""
    open_study(wanted, root, create=True)
    began, children = time.perf_counter(), []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            storage.machine = lambda: f"machine {number}"  # noqa: B023 (each process has its own)
            work(open_study(wanted, root, create=False))
            os._exit(0)
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit("a worker failed")
    return time.perf_counter() - began


def threads(wanted: Setting, root: Path, workers: int) -> float:
    """Seconds of the study with a driver and so many threads of a local Dask cluster."""
    from distributed import LocalCluster

    study = open_study(wanted, root, create=True)
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=workers, dashboard_address=None) as local:
        began = time.perf_counter()
        for _ in cluster.search(study, NOTHING, EVALUATOR, local.scheduler_address):
            pass
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="that a trial sleeps")
    parser.add_argument("--trials", type=int, default=10, help="of each worker")
    parser.add_argument("--dask", action="store_true", help="a driver on a Dask cluster asks and tells")
    options = parser.parse_args()
    for module in (search, cluster):
        vars(module)["train_together"] = sleeping(options.seconds)
    who = resource.RUSAGE_SELF if options.dask else resource.RUSAGE_CHILDREN
    print("| workers | trials | seconds | trials per minute | of the possible | CPU ms per trial |")
    print("|---|---|---|---|---|---|", flush=True)
    for workers in options.workers:
        trials = workers * options.trials
        with tempfile.TemporaryDirectory() as folder:
            run = threads if options.dask else processes
            before = resource.getrusage(who)
            seconds = run(setting(trials), Path(folder), workers)
            after = resource.getrusage(who)
        rate, possible = 60 * trials / seconds, 60 * workers / options.seconds
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        cells = f"{workers} | {trials} | {seconds:.1f} | {rate:.0f} | {rate / possible:.0%} | {1000 * cpu / trials:.0f}"
        print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()

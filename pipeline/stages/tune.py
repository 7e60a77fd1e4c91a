"""The study: which KL weight, and why. Into reports/study; some ten minutes on two cores without bfloat16.

The study itself lies in a database (optuna.db, or what OPTUNA_STORAGE names) and goes on where it was left, however it
was left; the files here are exports of it. Each trial is a run in MLflow, below one run for the study.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing, sha256, write_json
from pipeline.base.params import flat, load, load_key, plain
from pipeline.base.paths import BEST, JUDGE, PREPARED, STUDY_FIGURES, TRIALS
from pipeline.data import splits as data
from pipeline.measure import evaluator as evaluation
from pipeline.measure import judge
from pipeline.measure.metrics import LOWER_IS_BETTER
from pipeline.model import samples
from pipeline.model.cvae import ModelParams, resolve
from pipeline.model.density import Components
from pipeline.show import plots as figures
from pipeline.stages.saved import load_judge, load_splits
from pipeline.study import search as study
from pipeline.study.search import Began, Ended, Epoch, Event, Setting, Study, TuneParams
from pipeline.tracking import runs as tracking
from pipeline.tracking.local import tracking_uri
from pipeline.training.fit import Diverged, TrainParams
from pipeline.training.objective import ObjectiveParams

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STRIPS = 16  # rows of the picture from collapse to chaos
EXPLAINING = ("frechet", "class_accuracy", "diversity")


def main() -> None:
    setting, experiment = read_setting(), load(tracking.TrackingParams, "tracking").experiment
    device = pick_device(setting.train.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    reader = partial(judge.read, load_judge(JUDGE, device))
    quick = train[: evaluation.QUICK_TRAIN]
    evaluator = evaluation.Evaluator(reader, validation, quick, setting.aim.pixels, setting.train.seed)
    real = evaluator.ceiling()  # which also says, before anything is made, whether the split is large enough
    search = study.open_study(setting, Path(), create=True)
    print(f"study {search.name}: {search.done()} of {setting.tune.trials} trials done, on {device}", flush=True)

    clock = Clock()
    with (
        clock.counting(),
        parent_run(search, experiment) as parent,
        tracking.SideBySide() as runs,
        console.bar("tune", setting.tune.trials, search.done()) as bar,
        closing(study.search(search, train, validation, evaluator, device)) as events,
    ):
        clock.stop()
        try:
            for event in events:
                with clock.counting():
                    follow(search, parent, runs, experiment, event)
                if isinstance(event, Ended) or (isinstance(event, Epoch) and event.candidate.epochs == 1):
                    bar.show(search.done(), news(search))
        except KeyboardInterrupt:
            print(f"\n{search.done()} of {setting.tune.trials} trials are done; the same command goes on", flush=True)
            raise
        with FileLock(home(Path()) / study.WORKERS / "export.lock"):  # processes of one study end together
            best = export(search, real)
            close_runs(search)
            with clock.counting():
                for path in (TRIALS, BEST, *sorted(STUDY_FIGURES.glob("*.png"))):
                    parent.artifact(path, "figures" if path.parent == STUDY_FIGURES else None)
        parent.metrics({"tracking_share": clock.share(), "trials": search.done()}, step=0)
    print(f"{BEST.parent}/ written: β = {best.kl_weight:.3g} is best, with {console.figures(best.values)}")


class Clock:
    """The share of the time that goes into records."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._counted, self._since = 0.0, 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts until `stop`, or the end of the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        if self._since:
            self._counted += time.perf_counter() - self._since
        self._since = 0.0

    def share(self) -> float:
        return self._counted / max(time.perf_counter() - self._began, 1e-9)


def read_setting() -> Setting:
    """What params.yaml, the data and the judge make the study to be."""
    tune, aim, train = load(TuneParams, "tune"), load(ObjectiveParams, "objective"), load(TrainParams, "train")
    for path, command in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {command}` first")
    setting = Setting(
        tune=tune,
        architecture=resolve(load(ModelParams, "model")),
        aim=aim,
        train=train,
        components=load_key(Components, "sample", "components"),
        nll_draws=load_key(evaluation.Draws, "evaluate", "nll_draws"),
        hashes={"data": sha256(PREPARED), "judge": sha256(JUDGE)},
    )
    setting.check()
    return setting


@contextmanager
def parent_run(search: Study, experiment: str) -> Iterator[tracking.Run]:
    """The study's own run: the one it had before in today's store, or a new one that it remembers."""
    name, uri = f"study {search.name}", tracking_uri(Path())
    tags = {"study": search.name, "kind": "study"}
    with ExitStack() as stack:
        with search.turn():  # of processes that start together, the first one makes it
            before = search.note("mlflow_run") if search.note("mlflow_uri") == uri else None
            if before:
                run = stack.enter_context(tracking.resume(before, uri, name, experiment, tags=tags, warn=console.warn))
            else:
                params = {key: str(value) for key, value in flat({"tune": search.setting.tune}).items()}
                new = tracking.start(name, experiment, params=params, tags=tags, warn=console.warn)
                run = stack.enter_context(new)
            if run.run_id != before:
                search.remember("mlflow_run", run.run_id)
                search.remember("mlflow_uri", uri)
        yield run


def follow(search: Study, parent: tracking.Run, runs: tracking.SideBySide, experiment: str, event: Event) -> None:
    """Records what happens to a trial in its run, under the names that a training's run has."""
    candidate, setting = event.candidate, search.setting
    number = candidate.number
    if isinstance(event, Began):
        name = f"trial {number} β={candidate.kl_weight:.3g}"
        tags = {"study": search.name, "trial": number, "kind": "trial", "mlflow.parentRunId": parent.run_id}
        if candidate.run_id and candidate.uri:  # an earlier try of this trial was interrupted
            again = tracking.resume(candidate.run_id, candidate.uri, name, experiment, tags=tags, warn=console.warn)
            run = runs.begin(number, again)
        else:
            new = tracking.start(name, experiment, tags=tags, parent=parent.run_id, warn=console.warn)
            run = runs.begin(number, new)
        run.params(params_of(setting, candidate.values))
    run = runs[number]
    if run.run_id and run.run_id != candidate.run_id:  # it has none before MLflow answers
        candidate.remember_run(run.run_id, run.uri)
    if isinstance(event, Epoch):
        run.metrics(event.record.figures | event.figures, event.record.step)
        run.image("samples_prior", samples.preview(event.model), event.record.step)
    elif isinstance(event, Ended):
        if event.strip is not None:
            run.image("samples_prior_and_fitted", event.strip, candidate.epochs)
        run.tags({"state": event.state})
        runs.end(number, Diverged(event.why) if event.state == "FAIL" else None)


def close_runs(search: Study) -> None:
    """Ends the runs that processes left open which were killed, and whose trials nobody took up again."""
    table = search.table()
    left = table[table["state"] == "FAILED"]["run_id"].dropna()
    taken_up = set(table[table["state"] != "FAILED"]["run_id"].dropna())
    for run_id in set(left) - taken_up:
        tracking.close(run_id)


def params_of(setting: Setting, values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's params as a training of its own would record them."""
    train = plain(setting.train) | {"epochs": setting.tune.epochs}
    model, aim = plain(setting.architecture), plain(setting.aim)
    for name, value in values.items():
        for section in (model, aim, train):
            if name in section:
                section[name] = value
    sections = {"model": model, "objective": aim, "train": train}
    return {f"{section}.{name}": value for section, content in sections.items() for name, value in content.items()}


def news(search: Study) -> str:
    """The best so far in a few words."""
    table = search.table()
    pruned = int((table["state"] == "PRUNED").sum())
    words = f"{pruned} pruned"
    if (table["state"] == "COMPLETE").any():
        best = search.choose()
        words = f"best {console.figures(best.values)} at β = {best.kl_weight:.3g}, {words}"
    return words


def export(search: Study, real: Mapping[str, float]) -> study.Chosen:
    """The study's table, its best trial and its pictures as files; real: the ceiling of the sample metrics."""
    table, tune, best = search.table(), search.setting.tune, search.choose()
    with replacing(TRIALS) as part:
        table.to_csv(part, index=False)
    if not best.feasible:
        console.warn(
            f"no complete trial reached a class_accuracy of {tune.least_class_accuracy} "
            "(tune.least_class_accuracy): the best of the others is named"
        )
    states = table["state"].value_counts()
    content = {
        "kl_weight": best.kl_weight,
        "trial": best.number,
        "values": best.values,
        "run_id": best.run_id,
        "params": {f"{section}.{key}": value for (section, key), value in best.sets.items()},
        "feasible": best.feasible,
        "front": [trial.number for trial in search.front()],
        "study": search.name,
        "protocol": {
            "split": "validation",
            "objectives": list(tune.objectives),
            "sampler_of_latents": tune.sampler_of_latents,
            "epochs": tune.epochs,
            "trials": {str(state).lower(): int(count) for state, count in states.items()},
        },
        "real": dict(real),
    }
    write_json(BEST, content)
    STUDY_FIGURES.mkdir(parents=True, exist_ok=True)
    for stale in STUDY_FIGURES.glob("*.png"):
        stale.unlink(missing_ok=True)
    for name, figure in pictures(search, real, best.kl_weight):
        with replacing(STUDY_FIGURES / f"{name}.png") as part:
            figures.save(figure, part)
    return best


def exported(name: str) -> "tuple[dict[str, Any], pd.DataFrame] | None":
    """What `export` wrote of that study: its best trial and its table; None where the files are of another.

    A fresh clone has them, while the database stays where the study ran.
    """
    import pandas as pd

    try:
        best = json.loads(BEST.read_text(encoding="utf-8"))
        return (best, pd.read_csv(TRIALS)) if best["study"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def exported_best(name: str) -> study.Chosen | None:
    """The best trial of that export. Its run in MLflow is where the database is."""
    kept = exported(name)
    if kept is None:
        return None
    best, _ = kept
    sets = {tuple(key.split(".", 1)): value for key, value in best["params"].items()}
    return study.Chosen(best["trial"], best["values"], sets, None, None, best["feasible"])


def pictures(search: Study, real: Mapping[str, float], best: float) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of the study with its name."""
    table, tune = search.table(), search.setting.tune
    metrics = list(dict.fromkeys([*tune.objectives, *EXPLAINING]))
    yield "weights", figures.study_weights(table, metrics, real, best)
    yield "rate_distortion", figures.rate_distortion(table)
    yield "history", figures.study_history(table, tune.objectives[0], tune.objectives[0] in LOWER_IS_BETTER)
    if len(tune.objectives) > 1:
        yield "pareto", figures.pareto(table, tune.objectives, [trial.number for trial in search.front()])
    shares = search.importances()
    if shares:
        yield "importances", figures.importances(shares)
    rows = []
    for trial in spread(table, STRIPS).to_dict("records"):
        strip = search.strip(trial["trial"])
        if strip is not None:
            mark = "" if trial["state"] == "COMPLETE" else " ○"
            rows.append((f"β = {trial['kl_weight']:.2g}{mark}", strip[: data.SIDE], strip[-data.SIDE :]))
    if rows:
        yield "collapse_to_chaos", figures.weight_strips(rows, ("z from the prior", "z from the fitted density"))


def spread(table: "pd.DataFrame", most: int) -> "pd.DataFrame":
    """Up to `most` trials with a picture, evenly over their KL weights, from the highest to the lowest."""
    shown = table[table["state"].isin(["COMPLETE", "PRUNED"])].sort_values("kl_weight", ascending=False)
    if len(shown) <= most:
        return shown
    return shown.iloc[[round(place * (len(shown) - 1) / (most - 1)) for place in range(most)]]


if __name__ == "__main__":
    console.run(main)

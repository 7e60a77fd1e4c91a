"""The study: which KL weight, and why. Into reports/study; about three minutes on two cores with the default budget.

The study itself lies in a database (optuna.db, or what OPTUNA_STORAGE names) and goes on where it was left, however it
was left; the files here are exports of it. Each trial is a run in MLflow, below one run for the study.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console, data, evaluation, figures, judge, sample, study, tracking
from pipeline.device import pick_device
from pipeline.errors import UserError
from pipeline.files import replacing, sha256, write_json
from pipeline.model import ModelParams, resolve
from pipeline.objective import ObjectiveParams
from pipeline.params import flat, load, load_key, plain
from pipeline.sample import Components
from pipeline.study import Began, Ended, Epoch, Event, Setting, Study, TuneParams
from pipeline.train import Diverged, TrainParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREPARED = Path("data/prepared/mnist.safetensors")
JUDGE = Path("models/judge.safetensors")
TRIALS = Path("reports/study/trials.csv")
BEST = Path("reports/study/best.json")
PICTURES = Path("reports/study/figures")
EXPLAINING = ("frechet", "class_accuracy", "diversity")


def main() -> None:
    setting, experiment = read_setting(), load(tracking.TrackingParams, "tracking").experiment
    device = pick_device(setting.train.device)
    train, validation = (split.to(device) for split in data.load(PREPARED, "train", "validation"))
    reader = partial(judge.read, judge.load(JUDGE, device))
    search = study.open_study(setting, Path(), create=True)
    yardstick = evaluation.yardstick(reader, validation, train, setting.aim, setting.components, setting.tune.seed)
    print(f"study {search.name}: {search.done()} of {setting.tune.trials} trials done, on {device}")

    with (
        tracking_run(search, experiment) as parent,
        tracking.side_by_side() as runs,
        console.bar("tune", setting.tune.trials, search.done()) as bar,
        closing(study.search(search, train, validation, yardstick, device)) as events,
    ):
        record = partial(follow, search, parent, runs, experiment)
        began, recording = time.perf_counter(), 0.0
        for event in events:
            at = time.perf_counter()
            record(event)
            recording += time.perf_counter() - at
            if isinstance(event, Ended) or (isinstance(event, Epoch) and event.candidate.epochs == 1):
                bar.show(search.done(), news(search))
        share = recording / max(time.perf_counter() - began, 1e-9)
        export(search, yardstick)
        parent.metrics({"tracking_share": share, "trials": search.done()}, step=0)
        for path in (TRIALS, BEST, *sorted(PICTURES.iterdir())):
            parent.artifact(path, "figures" if path.parent == PICTURES else None)
    best = search.choose()
    print(f"{BEST.parent}/ written: β = {best.kl_weight:.3g} is best, with {console.figures(best.values)}")


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


def tracking_run(search: Study, experiment: str) -> Any:
    """The study's own run: the one it had before, or a new one that it remembers."""
    name = f"study {search.name}"
    tags = {"study": search.name, "kind": "study"}
    before = search.note("mlflow_run")
    if before:
        return tracking.resume(before, search.note("mlflow_uri"), name, experiment, tags=tags, warn=console.warn)
    params = {name: str(value) for name, value in flat({"tune": search.setting.tune}).items()}
    return tracking.start(name, experiment, params=params, tags=tags, warn=console.warn)


def follow(search: Study, parent: tracking.Run, runs: tracking.SideBySide, experiment: str, event: Event) -> None:
    """Records what happens to a trial in its run, under the names that a training's run has."""
    candidate, setting = event.candidate, search.setting
    number = candidate.number
    if isinstance(event, Began):
        search.remember("mlflow_run", parent.run_id)
        search.remember("mlflow_uri", parent.uri)
        name = f"trial {number} β={candidate.kl_weight:.3g}"
        tags = {"study": search.name, "trial": number, "kind": "trial"}
        if candidate.run_id and candidate.uri:  # an earlier try of this trial was interrupted
            again = tracking.resume(candidate.run_id, candidate.uri, name, experiment, tags=tags, warn=console.warn)
            runs.begin(number, again)
        else:
            new = tracking.start(
                name, experiment, params=params_of(setting, candidate.values), tags=tags, parent=parent.run_id,
                warn=console.warn,
            )  # fmt: skip
            runs.begin(number, new)
        candidate.remember_run(runs[number].run_id, runs[number].uri)
    elif isinstance(event, Epoch):
        figures = {name: value for name, value in asdict(event.record).items() if name != "step"}
        runs[number].metrics(figures | event.figures, event.record.step)
        runs[number].image("samples_prior", sample.preview(event.model), event.record.step)
    else:
        if event.strip is not None:
            runs[number].image("samples_prior_and_fitted", event.strip, candidate.epochs)
        runs[number].tags({"state": event.state})
        runs.end(number, Diverged(event.why) if event.state == "FAIL" else None)


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


def export(search: Study, yardstick: evaluation.Yardstick) -> None:
    """The study's table, its best trial and its pictures as files."""
    table, tune = search.table(), search.setting.tune
    with replacing(TRIALS) as part:
        table.to_csv(part, index=False)
    best, real = search.choose(), yardstick.ceiling()
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
        "real": real,
    }
    write_json(BEST, content)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for stale in PICTURES.glob("*.png"):
        stale.unlink()
    for name, figure in pictures(search, real, best.kl_weight):
        with replacing(PICTURES / f"{name}.png") as part:
            figure.savefig(part, format="png")


def pictures(search: Study, real: Mapping[str, float], best: float) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of the study with its name."""
    table, tune = search.table(), search.setting.tune
    metrics = list(dict.fromkeys([*tune.objectives, *EXPLAINING]))
    yield "weights", figures.study_weights(table, metrics, real, best)
    yield "rate_distortion", figures.rate_distortion(table)
    yield "history", figures.study_history(table, tune.objectives[0], tune.objectives[0] in study.LOWER_IS_BETTER)
    if len(tune.objectives) > 1:
        yield "pareto", figures.pareto(table, tune.objectives, [trial.number for trial in search.front()])
    shares = search.importances()
    if shares:
        yield "importances", figures.importances(shares)
    rows = []
    shown = table[table["state"].isin(["COMPLETE", "PRUNED"])].sort_values("kl_weight", ascending=False)
    for number, weight, state in zip(shown["trial"], shown["kl_weight"], shown["state"], strict=True):
        strip = search.strip(int(number))
        if strip is not None:
            side = data.SIDE
            label = f"β = {weight:.2g}" + ("" if state == "COMPLETE" else " ○")
            rows.append((label, strip[:side], strip[-side:]))
    if rows:
        yield "collapse_to_chaos", figures.weight_strips(rows, ("z from the prior", "z from the fitted density"))


if __name__ == "__main__":
    console.run(main)

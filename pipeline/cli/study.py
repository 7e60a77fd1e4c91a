"""`cvae study` lists the study's trials; `cvae promote` writes its best values into params.yaml."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base import console
from pipeline.base.errors import UserError


def study() -> None:
    """List the trials of the study, the best first."""
    from pipeline.base.paths import TRIALS
    from pipeline.measure.metrics import LOWER_IS_BETTER
    from pipeline.stages.tune import exported, read_setting
    from pipeline.study.search import NoStudy, open_study

    setting = read_setting()
    try:
        found = open_study(setting, Path(), create=False)
    except NoStudy:
        kept = exported(setting.name())
        if kept is None:
            raise
        front, table, promoted = set(kept[0]["front"]), kept[1], None
        where = f"from {TRIALS}, its database is not here"
    else:
        front, table, promoted = {trial.number for trial in found.front()}, found.table(), found.note("promoted")
        where = f"{found.done()} of {setting.tune.trials} trials"
    objectives, sampler = setting.tune.objectives, setting.tune.sampler_of_latents
    values = [f"value_{name}" for name in objectives]
    beside = [f"validation/{sampler}/{name}" for name in ("class_accuracy", "diversity") if name not in objectives]
    columns = [*setting.space(), *values, *(name for name in beside if name in table)]
    table["open"], table["poor"] = table["state"] != "COMPLETE", table["feasible"].eq(other=False)
    table = table.sort_values(["open", "poor", values[0]], ascending=[True, True, objectives[0] in LOWER_IS_BETTER])
    rows = []
    for cells in table.astype(object).where(table.notna(), "").to_dict("records"):
        star = " ★" if cells["trial"] in front else ""
        rows.append((f"{cells['trial']}{star}", cells["state"].lower(), *(cells[name] for name in columns)))
    titles = [name.removeprefix("value_").removeprefix(f"validation/{sampler}/") for name in columns]
    note = f"★ best{', the front' if len(objectives) > 1 else ''}; measured on validation, {sampler} sampler"
    if promoted is not None:
        note += f"; trial {promoted} was promoted"
    title = f"Study {setting.name()}: {where}"
    console.table(title, ("trial", "state", *titles), rows, note=note)


def promote(
    trial: Annotated[int | None, typer.Option(metavar="N", help="another complete trial than the best one")] = None,
) -> None:
    """Write the study's best KL weight into params.yaml.

    What else the study tried is written too; nothing else in the file changes. `dvc repro` then trains with it.

    \b
    cvae promote
    cvae promote --trial 7
    """
    from pipeline.base import params
    from pipeline.stages.tune import exported_best, read_setting
    from pipeline.study.search import NoStudy, open_study
    from pipeline.tracking import runs as tracking
    from pipeline.tracking.local import tracking_uri

    setting, found = read_setting(), None
    try:
        found = open_study(setting, Path(), create=False)
        chosen = found.choose(trial)
    except NoStudy:
        best = exported_best(setting.name())
        if best is None or trial not in (None, best.number):
            raise
        chosen = best
    if not chosen.feasible and trial is None:
        raise UserError(
            f"no complete trial of study {setting.name()} reaches tune.least_class_accuracy: "
            f"`cvae promote --trial {chosen.number}` takes the best of them all the same"
        )
    before = params.write(chosen.sets)
    for (section, key), value in chosen.sets.items():
        old, new = json.dumps(before[section, key]), json.dumps(value)
        print(f"params.yaml: {section}.{key} {old} → {new}{'  (as it was)' if old == new else ''}")
    # Optuna takes no tag on a trial that has ended: the study says which one it was.
    if found is not None:
        found.remember("promoted", chosen.number)
    if chosen.run_id and chosen.tracking_uri:
        stores = dict.fromkeys([tracking_uri(Path()), chosen.tracking_uri])  # the folder may have moved
        tracking.tag(chosen.run_id, {"promoted": "true"}, list(stores), console.warn)
    print(f"trial {chosen.number}, {console.figures(chosen.values)} on validation. `dvc repro` trains with it.")

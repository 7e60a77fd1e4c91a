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
    from pipeline.stages.study.files import exported, read_setting
    from pipeline.study.queue import open_study
    from pipeline.study.storage import NoStudy

    setting, promoted = read_setting(), None
    try:
        found = open_study(setting, Path(), create=False)
    except NoStudy:
        kept = exported(setting.name())
        if kept is None:
            raise
        _, front, table = kept
        where = f"from {TRIALS}, its database is not here"
    else:
        front, table = [trial.number for trial in found.front()], found.table()
        promoted = found.inner.user_attrs.get("promoted")
        where = f"{found.done()} of {setting.tune.trials} trials"
    objectives = setting.objectives()
    figures = [*objectives, setting.figure("class_accuracy"), setting.figure("diversity")]
    columns = {name: name for name in setting.space()}
    columns |= {name.rpartition("/")[2]: name for name in figures if name in table}
    first = next(iter(objectives))
    table["open"], table["poor"] = table["state"] != "COMPLETE", table["feasible"].eq(other=False)
    table = table.sort_values(["open", "poor", first], ascending=[True, True, objectives[first]])
    rows = []
    for cells in table.astype(object).where(table.notna(), "").to_dict("records"):
        star = " ★" if cells["trial"] in front else ""
        rows.append((f"{cells['trial']}{star}", cells["state"].lower(), *(cells[name] for name in columns.values())))
    sampler = setting.tune.sampler_of_latents
    note = f"★ best{', the front' if len(objectives) > 1 else ''}; measured on validation, {sampler} sampler"
    if promoted is not None:
        note += f"; trial {promoted} was promoted"
    console.table(f"Study {setting.name()}: {where}", ("trial", "state", *columns), rows, note=note)


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
    from pipeline.stages.study.files import exported, read_setting
    from pipeline.study.queue import open_study
    from pipeline.study.storage import NoStudy
    from pipeline.tracking import runs as tracking
    from pipeline.tracking.local import tracking_uri

    setting, found = read_setting(), None
    try:
        found = open_study(setting, Path(), create=False)
        chosen = found.choose(trial)
    except NoStudy:
        kept = exported(setting.name())
        if kept is None or trial not in (None, kept[0].number):
            raise
        chosen = kept[0]
    if not chosen.feasible and trial is None:
        raise UserError(
            f"no complete trial of study {setting.name()} reaches tune.least_class_accuracy: "
            f"`cvae promote --trial {chosen.number}` takes the nearest one all the same"
        )
    changes = {(name.partition(".")[0], name.partition(".")[2]): value for name, value in chosen.params.items()}
    before = params.write(changes)
    for (section, key), value in changes.items():
        old, new = json.dumps(before[section, key]), json.dumps(value)
        print(f"params.yaml: {section}.{key} {old} → {new}{'  (as it was)' if old == new else ''}")
    if found is not None:  # Optuna takes no notes on a trial that has ended
        found.inner.set_user_attr("promoted", chosen.number)
    if chosen.run_id and chosen.tracking_uri:
        stores = dict.fromkeys([tracking_uri(Path()), chosen.tracking_uri])  # the folder may have moved
        tracking.tag(chosen.run_id, {"promoted": "true"}, list(stores))
    print(f"trial {chosen.number}, {console.figures(chosen.values)} on validation. `dvc repro` trains with it.")

"""`cvae tune` runs the study, `cvae study` says which weight is right for what, `cvae promote` writes that one down.

`cvae reproduce` repeats the source article's experiment.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.paths import BEST, COMPLETER, CURVE, JUDGE, PREPARED, PUBLISHED, RUN

DASK = "a Dask scheduler, such as tcp://HOST:8786, whose workers train"
USES = "draw_fitted, draw_prior, reconstruct, explain, balance"


def tune(
    dask: Annotated[str, typer.Option(metavar="ADDRESS", help=DASK)] = "",
) -> None:
    """Run the study until tune.trials have finished.

    Any number of processes and machines may do so at once, where OPTUNA_STORAGE names one database for all. With
    --dask this process asks and tells alone, and the cluster's workers train (docs/machines.md).
    """
    from pipeline.stages.tune import main

    main(dask)
    console.say_seconds("tune")


def study(
    markdown: Annotated[bool, typer.Option("--markdown", help="print the tables as Markdown, for a page")] = False,
) -> None:
    """Say which KL weight is right for what.

    ± is the standard error over seeds, on validation. ★ marks the best weight for a use, ≈ those that can't be told
    apart from it (95 %, all comparisons taken together).
    """
    import pandas as pd

    from pipeline.stages.study import words
    from pipeline.stages.study.files import Results, read_results, read_setting
    from pipeline.study.storage import DATABASE
    from pipeline.study.uses import answers

    try:
        setting = read_setting()
        results, name = read_results(setting), setting.name()
    except UserError:
        some = BEST.exists() or Path(DATABASE).exists() or "OPTUNA_STORAGE" in os.environ
        if (PREPARED.exists() and JUDGE.exists() and some) or not (PUBLISHED / "seeds.csv").exists():
            raise
        setting = read_setting(needs_files=False)  # a fresh clone, or one that ran `dvc repro evaluate` alone
        seeds, table = (pd.read_csv(PUBLISHED / f"{file}.csv") for file in ("seeds", "trials"))
        where, name = f"from {PUBLISHED}, as no study was run here yet", "of this project"
        results = Results(None, seeds, table, where)
    found = answers(results.seeds, setting) if len(results.seeds) else {}
    said = words.sentences(found, results.seeds, setting) if found else ["No weight has been trained yet."]
    if markdown:
        print("\n\n".join([*said, console.markdown(*words.of_uses(found))]), end="\n\n")
        print(console.markdown(*words.table(found, results.table, setting)))
        return
    for sentence in said:
        console.say(sentence, "  ")
    note = "means ± standard errors on validation; ★ best for a use, ≈ can't be told apart from it (95 %)"
    if results.promoted is not None:
        note += f"; trial {results.promoted} was promoted"
    headings, rows = words.table(found, results.table, setting)
    best = [place for place, row in enumerate(rows) if any("★" in str(cell) for cell in row)]
    console.table(f"Study {name}: {results.where}", headings, rows, note=note, best=best)


def promote(
    trial: Annotated[int | None, typer.Option(metavar="N", help="another complete trial than the best one")] = None,
    use: Annotated[str | None, typer.Option("--for", metavar="USE", help=USES)] = None,
) -> None:
    """Write the study's weight into params.yaml.

    It is rounded as far as the study can't tell the difference. Where today's weight can't be told apart from the best,
    nothing changes. What else the study tried is written too. `dvc repro` then trains with it.
    In MLflow, the trial's model (or today's, where nothing changes) becomes models:/cvae-mnist@champion,
    and models/CARD.md describes it.

    \b
    cvae promote
    cvae promote --for draw_prior
    cvae promote --trial 7
    """
    from pipeline.base import params
    from pipeline.cli.card import write_card
    from pipeline.stages.saved import load_pointer
    from pipeline.stages.study.files import read_results, read_setting
    from pipeline.stages.study.promotion import promotion
    from pipeline.tracking import runs as tracking
    from pipeline.tracking.local import tracking_uri

    if trial is not None and use is not None:
        raise UserError("give one of --trial and --for: a trial is its own weight")
    setting = read_setting()
    results = read_results(setting)
    chosen, why = promotion(setting, results, trial, use)
    if chosen is None:
        print(f"params.yaml: objective.kl_weight stays {setting.aim.kl_weight:g}. {why}")
        _register(load_pointer(RUN)["run_id"] if RUN.exists() else None)
        write_card(setting, why, None, {})
        return
    changes = {(name.partition(".")[0], name.partition(".")[2]): value for name, value in chosen.params.items()}
    before = params.write(changes)
    for (section, key), value in changes.items():
        old, new = json.dumps(before[section, key]), json.dumps(value)
        print(f"params.yaml: {section}.{key} {old} → {new}{'  (as it was)' if old == new else ''}")
    if results.study is not None:  # Optuna takes no notes on a trial that has ended
        results.study.inner.set_user_attr("promoted", chosen.number)
    if chosen.run_id and chosen.tracking_uri:
        stores = dict.fromkeys([tracking_uri(), chosen.tracking_uri])  # the folder may have moved
        tracking.tag(chosen.run_id, {"promoted": "true"}, list(stores))
    print(f"{why} `dvc repro` trains with it; on validation: {console.figures(chosen.values)}.")
    is_registered = _register(chosen.run_id)
    row = results.table.set_index("trial").loc[chosen.number].to_dict()
    write_card(setting, why, chosen.run_id if is_registered else None, row)


def _register(run_id: str | None) -> bool:
    """Makes the model of a run MLflow's champion, and says so; False where it was not kept."""
    from pipeline.stages.saved import load_completer, load_curve
    from pipeline.tracking.registry import crown

    beside = []
    for path, read in ((CURVE, load_curve), (COMPLETER, load_completer)):
        if path.exists():
            try:
                read(path)
                beside.append(path)
            except UserError as error:
                console.warn(f"it is not served: {error}")
    said = crown(run_id, beside=beside) if run_id else None
    if said and beside:
        said += f". Beside the champion: {' and '.join(path.name for path in beside)}"
    print(f"{said}." if said else "Its model was not kept, so none is registered in MLflow.")
    return said is not None


def reproduce(
    what: Annotated[Literal["article"], typer.Argument(help="article: the collapse and its remedy")],  # noqa: ARG001
    epochs: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="of each training")] = 3,
) -> None:
    """Train the source article's model at its KL weights.

    Also with every conditioning, with and without the label in its encoder. The figures, on validation, go to
    reports/article.

    \b
    cvae reproduce article
    cvae reproduce article --epochs 20
    """
    from pipeline.cli.article import run

    run(epochs)

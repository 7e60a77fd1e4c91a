"""`cvae report` shows the last evaluation, or writes a page; `cvae compare` shows several revisions."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.base import console, terminal
from pipeline.base.errors import UserError
from pipeline.base.paths import BEST, DOCTOR, FIGURES, HEADLINE, JUDGE, METRICS, PREPARED, VALIDATION
from pipeline.cli import handing
from pipeline.cli.handing import BROKEN, OF_FIT, OF_SAMPLES, grouped, unlike
from pipeline.cli.options import WORKSPACE, of_revision
from pipeline.stages.saved import load_json

REMEDY = "run `dvc repro evaluate`"
BIAS = 400  # ÷ images of a class: the frechet of two sets of real images (docs/metrics.md)
REVISIONS = "commits, branches or experiments"
SINGLE = "Another seed trains another network: the frechet of two single trainings must differ by 1.3 or so to count."


def report(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="with --html: see above")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write a page to hand on")] = None,
) -> None:
    """Show the headline figures of the last evaluation.

    With --html, one file holds them with samples, the study's answer, the doctor's verdict, and how to reproduce it.
    RUN is a safetensors file, runs:/RUN_ID of MLflow, the name of a DVC experiment, workspace, or study: the study's
    trials and its best model.

    \b
    cvae report
    cvae report --html report.html
    cvae report --html runs.html workspace study heavier runs:/RUN_ID
    """
    if html is not None:
        handing.write(html, runs or [])
        return
    if runs:
        raise UserError("give --html FILE.html, too: runs are shown in a page")
    figures, of_test = (load_json(path, f"{REMEDY} first", "protocol") for path in (VALIDATION, METRICS))
    try:
        _show(figures)
        print("\nAt the end, test. Choose nothing by it.")
        _tables(of_test)
    except BROKEN as error:
        lacks = f"{VALIDATION}, {METRICS}, {DOCTOR} or {BEST} lacks a figure of this version ({error!r})"
        raise UserError(f"{lacks}: run `dvc repro`, which makes them anew") from None


def _show(figures: dict[str, Any]) -> None:
    _tables(figures)
    console.say(SINGLE)
    if figures["collapsed"]:
        said = "the latents are unused, or all samples of a class look alike. Lower the KL weight."
        console.say(f"{terminal.painted('COLLAPSED:', 'red', sys.stdout)} {said}")
    hints = {"Look at": f"{FIGURES}/samplers.png: samples of every digit, beside real ones"}
    if DOCTOR.exists():
        diagnosis = load_json(DOCTOR, REMEDY)
        hints["Doctor"] = f"{diagnosis['verdict']}: `cvae doctor` shows the figures and what to change"
    if BEST.exists():
        best = load_json(BEST, "run `dvc repro tune`")
        low, high = best["interval"]
        reach = f"β = {low:.3g}" if low == high else f"any β from {low:.3g} to {high:.3g}"
        hints["Study"] = f"{reach} does best: {console.figures(best['values'])} on validation. See `cvae study`"
    hints["Compare"] = "cvae ui: every run with its curves, figures and samples"
    hints["Try"] = "cvae try objective.kl_weight=1, then cvae compare"
    for name, text in hints.items():
        console.say(f"{name:<11}{text}", " " * 11)


def plus_minus(value: float, deviation: float) -> str:
    """`5.43 ±0.21`: both to the second digit of the deviation, and at most to a thousandth."""
    digits = min(max(1 - math.floor(math.log10(deviation)), 0), 3) if deviation > 0 else 3
    return f"{value:.{digits}f} ±{deviation:.{digits}f}"


def _tables(figures: Mapping[str, Any]) -> None:
    """The figures of one split: samples, then the fit."""
    protocol, deviation = figures["protocol"], figures.get("standard_deviation", {})
    sets, per_class = protocol.get("sample_sets", 1), protocol["images"] / 10

    def cell(sampler: str, name: str) -> str:
        value, spread = figures[sampler][name], deviation.get(sampler, {}).get(name)
        return console.number(value) if spread is None else plus_minus(value, spread)

    console.table(
        f"Samples, measured on {protocol['images']:,} {protocol['split']} images",
        ("sampler", *OF_SAMPLES),
        [(name, *(cell(name, column) for column in OF_SAMPLES)) for name in ("prior", "fitted", "real")],
        note=(f"means of {sets} sample sets ± standard deviation between them; " if sets > 1 else "")
        + "real: training images in place of samples, the best that samples could reach. "
        f"About {BIAS / per_class:.2g} of any frechet comes from finite sets: {BIAS} ÷ {per_class:,.0f} images a class",
    )
    fit = [name for name in OF_FIT if name in figures]
    console.table(
        f"Fit, nats per image ({protocol['pixels']} pixels, nll with k = {protocol['nll_draws']})",
        ("β", *fit),
        [(f"{protocol['kl_weight']:g}", *(figures[name] for name in fit))],
    )


def compare(
    revisions: Annotated[list[str] | None, typer.Argument(metavar="[REV]...", help=REVISIONS)] = None,
) -> None:
    """Show headline figures on validation, side by side.

    Without names: the workspace, the last commit, and the experiments made from it.

    \b
    cvae compare
    cvae compare main heavier
    """
    from dvc.api import exp_show

    if not revisions:
        revisions = ["HEAD", *(row["Experiment"] for row in exp_show() if row.get("Experiment"))]
    names = [WORKSPACE, *revisions]
    found = {name: of_revision(name, HEADLINE) for name in names}
    missing = [name for name, figures in found.items() if not figures]
    rows = {name: figures for name, figures in found.items() if figures}
    if not rows:
        raise UserError(f"none of {', '.join(names)} has {HEADLINE}: run `dvc repro evaluate` first")
    names_of_figures = dict.fromkeys(column for figures in rows.values() for column in figures)
    # A figure a row and a revision a column, so that ten figures of a few revisions fit 80 characters.
    cells = [(name, *(figures.get(name, "–") for figures in rows.values())) for name in names_of_figures]
    note = f"no evaluation in {', '.join(missing)}" if missing else ""
    console.table("Headline figures on validation", ("figure", *rows), cells, note)
    console.say(SINGLE)
    stages = {name: of_revision(name, Path("dvc.lock")).get("stages", {}) for name in rows}
    judges = grouped({name: _dep(one, "evaluate", JUDGE) for name, one in stages.items()})
    if len(judges) > 1:
        groups = "; ".join(map(", ".join, judges.values()))
        console.warn(f"different judges measured {groups}: figures of samples compare within one judge alone")
    params = {name: one.get("train", {}).get("params", {}).get("params.yaml", {}) for name, one in stages.items()}
    trained = {name: one.get("train", {}) for name, one in params.items()}
    for sentence in unlike(trained, {name: _dep(one, "train", PREPARED) for name, one in stages.items()}):
        console.warn(sentence)


def _dep(stages: Mapping[str, Any], stage: str, path: Path) -> str | None:
    """The hash of what a stage read, by dvc.lock; None where that is not known."""
    return next((dep.get("md5") for dep in stages.get(stage, {}).get("deps", ()) if dep["path"] == str(path)), None)

"""`cvae doctor`: gathers the figures of a model or an MLflow run, and prints what the doctor finds in them.

A model is measured on validation, never on test: its user chooses by what the doctor says.
"""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pipeline.base import terminal
from pipeline.base.errors import UserError
from pipeline.base.paths import HISTORY, JUDGE, MODEL, PREPARED, RUN
from pipeline.cli.options import model_file

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.data.splits import Split
    from pipeline.measure.doctor import Case, Diagnosis
    from pipeline.stages.saved import Saved
    from pipeline.training.objective import ObjectiveParams

CURVES = ("validation/reconstruction", "validation/kl")
HEADLINE = (
    "reconstruction", "kl", "active_units", "prior/class_accuracy", "fitted/class_accuracy", "fitted/diversity",
    "fitted/log_density",
)  # fmt: skip
MARK = {"severe": "✗", "warning": "!", "note": "·"}


class Gathered(NamedTuple):
    """What is known of a model. measured: on what, in words. hints: commands that would give the missing figures.

    per_class: the sample metrics by sampler and digit, where they were measured here.
    """

    name: str
    measured: str
    case: "Case"
    hints: list[str]
    per_class: "pd.DataFrame | None" = None


def doctor(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a .safetensors, or runs:/RUN_ID of MLflow")] = str(MODEL),
    services: Annotated[bool, typer.Option("--services", help="check MLflow, Optuna and DVC's remote instead")] = False,
) -> None:
    """Say what is wrong with a model, and what to change.

    A model is measured on validation. Of an evaluated run the recorded figures are read.
    With --services it says what is wrong with the servers that the environment names, and exits with 2 if anything is.

    \b
    cvae doctor
    cvae doctor models/other.safetensors
    cvae doctor runs:/RUN_ID
    cvae doctor --services
    """
    if services:
        from pipeline.cli.services import services as check

        if not check():
            raise typer.Exit(2)
        return
    gathered = of_run(run) if run.startswith("runs:/") else of_file(Path(run))

    from pipeline.measure.doctor import diagnose

    print(screen(gathered, diagnose(gathered.case), min(terminal.width(), terminal.WIDEST)))


def of_file(path: Path, history: Sequence[Mapping[str, float]] = ()) -> Gathered:
    """The figures of the model in a file, measured here.

    history: its epochs, if known. Otherwise those of reports/history.csv are used, if they are this model's.
    """
    from pipeline.base.device import pick_device
    from pipeline.base.params import load_key
    from pipeline.measure.evaluator import Evaluator
    from pipeline.stages.saved import load_cvae, load_judges, load_splits

    saved = load_cvae(path, device := pick_device(load_key(str, "train", "device")))
    figures: dict[str, float] = {}
    case, measured, hints, per_class = case_of(saved, path, figures, history), "nothing measured", [], None
    if PREPARED.exists():
        train, validation = load_splits(PREPARED, "train", "validation", device=device)
        judges = load_judges(JUDGE, device) if JUDGE.exists() else None
        evaluator = Evaluator(judges, validation, train, case.aim.pixels, seed=0)
        figures |= evaluator.fit_figures(saved.model)
        figures |= _spectrum(train, case.aim, saved.model.latent_size)
        if judges is not None:
            samples = evaluator.sample_figures(saved.model, saved.density)
            figures |= samples.figures
            per_class = samples.per_class
        measured = f"measured on {len(validation):,} validation images"
    if "prior/class_accuracy" not in figures:
        hints.append("`dvc repro judge` trains the judge that reads samples, and gets the images to measure with")
    elif "nll" not in figures:
        hints.append("`dvc repro evaluate` measures the nll and its effective samples, which takes longer")
    if not case.history:
        hints.append("`cvae doctor runs:/RUN_ID` reads the epochs that MLflow recorded")
    return Gathered(str(path), measured, case, hints, per_class)


def case_of(
    saved: "Saved", path: Path, figures: Mapping[str, float], history: Sequence[Mapping[str, float]] = ()
) -> "Case":
    """The case of the model in a file. history: as for `of_file`."""
    from pipeline.base.params import parse
    from pipeline.measure.doctor import Case
    from pipeline.training.objective import ObjectiveParams

    aim, shape = parse(ObjectiveParams, saved.params["objective"], f"{path}: objective"), saved.model.architecture
    return Case(aim, figures, history or _history(saved.params), shape.prior, shape.conditioning)


def _spectrum(train: "Split", aim: "ObjectiveParams", latents: int) -> dict[str, float]:
    """What the spectrum of the data expects of a model; nothing where it is not known."""
    from pipeline.weight.spectrum import of_split

    with suppress(UserError):
        found = of_split(train, aim.likelihood, aim.pixels, aim.sigma, latents, solve=False)
        return {"spectrum/collapse_weight": found.collapse(), "spectrum/active_units": found.active(aim.kl_weight)}
    return {}


def _history(params: Mapping[str, Any]) -> list[dict[str, float]]:
    """The epochs in reports/history.csv, if they are those of the model with these params."""
    from pipeline.base.params import digest
    from pipeline.stages.saved import load_pointer, load_table

    with suppress(UserError):
        if load_pointer(RUN).get("hashes", {}).get("params") == digest(params):
            return [
                {str(name): value for name, value in row.items()} for row in load_table(HISTORY, "").to_dict("records")
            ]
    return []


def of_run(uri: str) -> Gathered:
    """The figures that an MLflow run recorded. If it was not evaluated but has a model, that is measured here."""
    from dataclasses import replace

    from pipeline.base.params import parse
    from pipeline.measure.doctor import Case
    from pipeline.tracking.local import history_of, model_of, named, params_of
    from pipeline.training.objective import ObjectiveParams

    run, store = named(uri)
    params, metrics, name = params_of(run, store), run.data.metrics, f"run {run.info.run_name}"
    history = [row for _, row in history_of(run, store, CURVES)]
    if "objective" not in params:
        raise UserError(f"{uri} ({name}) is no training of this project: it has no params of an objective")
    aim = parse(ObjectiveParams, params["objective"], f"{uri}: objective")
    split = "validation/"  # never test: people change what they train by what they read here
    figures = {metric.removeprefix(split): value for metric, value in metrics.items() if metric.startswith(split)}
    if metrics and not figures:
        raise UserError(f"{uri} ({name}) has none of this version's figures: train it again")

    model = params.get("model", {})
    case = Case(aim, figures, history, model.get("prior"), model.get("conditioning"))
    evaluated, has_model = "prior/class_accuracy" in figures, bool(model_of(run))
    if has_model and not evaluated:
        of_model = of_file(model_file(uri), history)
        case = replace(of_model.case, figures=figures | dict(of_model.case.figures))
        measured = f"not evaluated; its model: {of_model.measured}"
        return Gathered(name, measured, case, of_model.hints, of_model.per_class)
    hint = f"the run holds no model: `dvc exp run -S objective.kl_weight={aim.kl_weight!r}` trains and evaluates one"
    if has_model:
        file = f"models/{uri.removeprefix('runs:/').split('/')[0]}.safetensors"
        hint = f"`cvae sample 0-9 --model {uri}` fetches {file}, and `cvae doctor {file}` measures it"
    return Gathered(name, f"recorded on {split[:-1]} images" if evaluated else "not evaluated", case, [hint])


def screen(gathered: Gathered, diagnosis: "Diagnosis", columns: int) -> str:
    """All that is printed, in lines of at most so many columns."""
    from pipeline.base.console import figures, number
    from pipeline.cli.findings import words

    lines: list[str] = []

    def say(text: str, indent: str = "") -> None:
        wrapped = textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
        lines.extend(wrapped or [""])

    case = gathered.case
    about = f"{case.aim.likelihood} on {case.aim.pixels} pixels, β = {case.aim.kl_weight:,g}"
    say(f"{gathered.name}, {about}, {gathered.measured}")
    if known := {name: case.figures[name] for name in HEADLINE if name in case.figures}:
        say(figures(known))
    for found in diagnosis.findings:
        says, remedy = words(case, found)
        signs = (f"{one.figure} {number(one.value)} ({one.beyond} {number(one.threshold)})" for one in found.evidence)
        say("")
        say(f"{MARK[found.severity]} {found.name}  ({found.severity})")
        for text in (says, f"from {', '.join(signs)}", f"→ {remedy}"):
            say(text, "  ")
    say("")
    if diagnosis.fine:
        say(f"nothing found: {', '.join(diagnosis.fine)}")
    if diagnosis.unchecked:
        say("not checked: " + ", ".join(f"{name} (lacks {figure})" for name, figure in diagnosis.unchecked.items()))
        for hint in gathered.hints:
            say(f"→ {hint}", "  ")
    return "\n".join([*lines, f"verdict: {diagnosis.verdict}"])

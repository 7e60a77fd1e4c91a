"""`cvae doctor`: gathers the figures of a model or an MLflow run, and prints what the doctor finds in them.

A model is measured on validation, never on test: its user chooses by what the doctor says.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import HISTORY, JUDGE, MODEL, PREPARED, RUN
from pipeline.cli.options import model_file

if TYPE_CHECKING:
    import torch

    from pipeline.data.splits import Pixels
    from pipeline.measure.doctor import Case, Diagnosis, Evidence
    from pipeline.stages.saved import Saved
    from pipeline.tracking.local import Recorded
    from pipeline.training.objective import ObjectiveParams

CURVES = ("validation/reconstruction", "validation/kl")
HEADLINE = (
    "reconstruction", "kl", "active_units", "prior/class_accuracy", "fitted/class_accuracy", "fitted/diversity",
    "fitted/log_density",
)  # fmt: skip
WIDEST = 100  # characters of a line: longer ones are hard to read
MARK = {"severe": "✗", "warning": "!", "note": "·"}


class Gathered(NamedTuple):
    """What is known of a model. title: in one line. hints: commands that would give the missing figures."""

    title: str
    case: "Case"
    hints: list[str]


def doctor(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a .safetensors, or runs:/RUN_ID of MLflow")] = str(MODEL),
) -> None:
    """Say what is wrong with a model, and what to change.

    A model is measured on validation. Of an evaluated run the recorded figures are read.

    \b
    cvae doctor
    cvae doctor models/other.safetensors
    cvae doctor runs:/RUN_ID
    """
    gathered = of_run(run) if run.startswith("runs:/") else of_file(Path(run))

    from pipeline.measure.doctor import diagnose
    from pipeline.show.pictures import terminal_width

    print(screen(gathered, diagnose(gathered.case), min(terminal_width(), WIDEST)))


def of_file(path: Path, history: Sequence[Mapping[str, float]] = ()) -> Gathered:
    """The figures of the model in a file, measured here.

    history: its epochs, if known. Otherwise those of reports/history.csv are used, if they are this model's.
    """
    from pipeline.base.device import pick_device
    from pipeline.base.params import load_key, parse
    from pipeline.measure.doctor import Case
    from pipeline.stages.saved import load_cvae
    from pipeline.training.objective import ObjectiveParams

    saved = load_cvae(path, device := pick_device(load_key(str, "train", "device")))
    aim = parse(ObjectiveParams, saved.params["objective"], f"{path}: objective")
    figures, measured, hints = _measure(saved, aim.pixels, device)
    history = history or _history(saved.params)
    if not history:
        hints.append("`cvae doctor runs:/RUN_ID` reads the epochs that MLflow recorded")
    architecture = saved.model.architecture
    case = Case(aim, figures, history, architecture.prior, architecture.conditioning)
    return Gathered(f"{path}, {_about(case)}, {measured}", case, hints)


def _measure(saved: "Saved", pixels: "Pixels", device: "torch.device") -> tuple[dict[str, float], str, list[str]]:
    """The figures that the files here allow, what was measured in words, and hints."""
    from pipeline.measure.evaluator import Evaluator
    from pipeline.stages.saved import load_judge, load_splits

    if not PREPARED.exists():
        return {}, "nothing measured", ["`dvc repro judge` gets the images to measure with, and trains the judge"]
    reader = load_judge(JUDGE, device).read if JUDGE.exists() else None
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    measured = f"measured on {len(validation):,} validation images"
    evaluator = Evaluator(reader, validation, train, pixels, seed=0)
    figures = evaluator.fit_figures(saved.model)
    if reader is None:
        return figures, measured, ["`dvc repro judge` trains the judge that reads samples"]
    return figures | evaluator.sample_figures(saved.model, saved.density).figures, measured, []


def of_run(uri: str) -> Gathered:
    """The figures that an MLflow run recorded. If it was not evaluated but has a model, that is measured here."""
    from dataclasses import replace

    from pipeline.base.params import parse
    from pipeline.measure.doctor import Case
    from pipeline.tracking.local import recorded
    from pipeline.training.objective import ObjectiveParams

    run = recorded(uri, Path(), CURVES)
    settings = _settings(run)
    if not settings["objective"]:
        raise UserError(f"{uri} ({run.name}) is no training of this project: it has no params of an objective")
    aim = parse(ObjectiveParams, settings["objective"], f"{uri}: objective")
    split = "test" if "test/kl" in run.metrics else "validation"
    names = {name.removeprefix(f"{split}/"): name for name in run.metrics if name.startswith(f"{split}/")}
    figures = {short: run.metrics[name] for short, name in names.items()}
    if run.metrics and not figures:
        raise UserError(f"{uri} ({run.name}) has none of this version's figures: train it again")
    model = settings["model"]
    case = Case(aim, figures, run.history, model.get("prior"), model.get("conditioning"))
    title = f"run {run.name}, {_about(case)}"
    if "prior/class_accuracy" in figures:
        return Gathered(
            f"{title}, its figures on {split}", case, [_measuring(uri) if run.has_model else _training(aim)]
        )
    if not run.has_model:
        return Gathered(f"{title}, not evaluated", case, [_training(aim)])
    of_model = of_file(model_file(uri), run.history)
    case = replace(of_model.case, figures=figures | dict(of_model.case.figures))
    return Gathered(f"{title}, not evaluated: its model measured on validation", case, of_model.hints)


def _measuring(uri: str) -> str:
    file = f"models/{uri.removeprefix('runs:/').split('/')[0]}.safetensors"
    return f"`cvae sample 0-9 --model {uri}` fetches {file}, and `cvae doctor {file}` measures it"


def _training(aim: "ObjectiveParams") -> str:
    return f"the run holds no model: `dvc exp run -S objective.kl_weight={aim.kl_weight!r}` trains and evaluates one"


def _history(params: Mapping[str, Any]) -> list[dict[str, float]]:
    """The epochs in reports/history.csv, if they are those of the model with these params."""
    import pandas as pd

    from pipeline.base.params import digest

    try:
        trained = json.loads(RUN.read_text(encoding="utf-8"))["hashes"]["params"]
        rows = pd.read_csv(HISTORY).to_dict("records")
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if trained != digest(params):
        return []
    return [{str(name): float(value) for name, value in row.items()} for row in rows]


def _settings(run: "Recorded") -> dict[str, dict[str, Any]]:
    """The run's params `section.key`, as texts, as plain values by section."""
    sections: dict[str, dict[str, Any]] = {"objective": {}, "model": {}}
    for name, text in run.params.items():
        section, _, key = name.partition(".")
        if section in sections:
            sections[section][key] = _value(text)
    return sections


def _value(text: str) -> Any:
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text


def _about(case: "Case") -> str:
    return f"{case.aim.likelihood} on {case.aim.pixels} pixels, β = {case.aim.kl_weight:,g}"


def screen(gathered: Gathered, diagnosis: "Diagnosis", columns: int) -> str:
    """All that is printed, in lines of at most so many columns."""
    from pipeline.base import console
    from pipeline.cli.findings import words

    case = gathered.case
    known = {name: case.figures[name] for name in HEADLINE if name in case.figures}
    lines = _folded(gathered.title, columns)
    if known:
        lines += _folded(console.figures(known), columns)
    for found in diagnosis.findings:
        says, remedy = words(case, found)
        lines += ["", f"{MARK[found.severity]} {found.name}  ({found.severity})"]
        lines += _folded(says, columns, "  ")
        lines += _folded("from " + ", ".join(_evidence(one) for one in found.evidence), columns, "  ")
        lines += _folded(f"→ {remedy}", columns, "  ")
    lines.append("")
    if diagnosis.fine:
        lines += _folded(f"nothing found: {', '.join(diagnosis.fine)}", columns)
    if diagnosis.unchecked:
        missing = ", ".join(f"{name} (lacks {figure})" for name, figure in diagnosis.unchecked.items())
        lines += _folded(f"not checked: {missing}", columns)
        for hint in gathered.hints:
            lines += _folded(f"→ {hint}", columns, "  ")
    return "\n".join([*lines, f"verdict: {diagnosis.verdict}"])


def _evidence(one: "Evidence") -> str:
    from pipeline.base import console

    return f"{one.figure} {console.number(one.value)} ({one.beyond} {console.number(one.threshold)})"


def _folded(text: str, columns: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent, break_long_words=False)

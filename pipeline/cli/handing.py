"""`cvae report --html`: one HTML file of the workspace or of several runs. Its templates are in the folder handon/."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.console import number, warn
from pipeline.base.errors import UserError
from pipeline.base.files import sha256, write_text
from pipeline.base.paths import BEST, CURVE_FIGURE, METRICS, MODEL, PER_CLASS, RUN, SEEDS, TRIALS, VALIDATION
from pipeline.cli import doctor
from pipeline.cli.options import WORKSPACE, model_file, of_revision

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.measure.doctor import Case

TEMPLATES = Path(__file__).parent / "handon"
STUDY = "study"
OF_FIT = ("reconstruction", "kl", "elbo", "nll", "effective_samples", "active_units", "bits_per_dimension")
OF_SAMPLES = ("class_accuracy", "diversity", "frechet", "coverage")
SHOWN = (*OF_FIT, *(f"{sampler}/{name}" for sampler in ("prior", "fitted", "real") for name in OF_SAMPLES))
BROKEN = (KeyError, TypeError, ValueError, AttributeError)  # what a report of something else raises


@dataclass(frozen=True)
class Side:
    """A run as the page shows it. per_class: rows of a table, ten cells each. test: empty where it is not recorded.

    train: that section of its params.
    """

    name: str
    measured: str
    kl_weight: str
    validation: Mapping[str, float]
    test: Mapping[str, float]
    per_class: Mapping[str, Sequence[str]]
    verdict: str
    findings: Sequence[Mapping[str, str]]
    unchecked: str
    strip: str
    params: Mapping[str, Any]
    train: Mapping[str, Any]
    origin: Mapping[str, str]
    commands: str


def write(out: Path, runs: Sequence[str]) -> None:
    """Writes the page of the runs: files, runs:/RUN_ID, experiments, `study`, or `workspace`, the default.

    Raises UserError.
    """
    if out.suffix != ".html":
        raise UserError(f"--html {out} must end in .html")
    sides = [_side_of(run) for run in runs or [WORKSPACE]]
    html = page(sides, STUDY in runs)
    write_text(out, html)
    for sentence in _unlike(sides):
        warn(sentence)
    print(f"{out} written, {len(html) / 1e6:.1f} MB: open it in a browser")


def unlike(trained: Mapping[str, Mapping[str, Any]], data: Mapping[str, str | None]) -> list[str]:
    """What to know before trainings are compared: a sentence if they differ in length, and one if in their data.

    trained: of each name the section `train`. data: the hash of what it was trained on, or None.
    """
    found = []
    known = {name: one for name, one in trained.items() if {"epochs", "batch_size"} <= one.keys()}
    lengths = grouped({name: f"epochs {one['epochs']}, batch {one['batch_size']}" for name, one in known.items()})
    if len(lengths) > 1:
        groups = "; ".join(f"{', '.join(names)}: {length}" for length, names in lengths.items())
        found.append(f"trainings of different length ({groups}): a longer one may be better for that alone")
    of_data = grouped({name: one for name, one in data.items() if one})
    if len(of_data) > 1:
        found.append(f"trainings on different data ({'; '.join(map(', '.join, of_data.values()))}): they don't compare")
    return found


def _unlike(sides: Sequence[Side]) -> list[str]:
    trained = {side.name: side.train for side in sides}
    return unlike(trained, {side.name: side.origin.get("data hash") for side in sides})


def grouped(values: Mapping[str, str | None]) -> dict[str | None, list[str]]:
    """The names that have each value."""
    groups: dict[str | None, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def rendered(name: str, **values: Any) -> str:
    """A template of handon/, filled in; in HTML, values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=name.endswith(".html"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return made.get_template(name).render(**values).lstrip("\n")


def page(sides: Sequence[Side], with_trials: bool = False) -> str:
    """The HTML of runs side by side, and of the study's trials, if asked for."""
    from markupsafe import Markup

    from pipeline.show.page import TEMPLATES as EXPLORE
    from pipeline.show.page import text

    css = "".join(path.read_text(encoding="utf-8") for path in (EXPLORE / "page.css", TEMPLATES / "report.css"))
    return rendered(
        "report.html",
        title=f"Report: {sides[0].name}" if len(sides) == 1 else f"Report: {len(sides)} runs side by side",
        css=Markup(css),
        runs=sides,
        unlike=_unlike(sides),
        answer=_answer(),
        study=SEEDS,
        trials=_trials() if with_trials else None,
        curve=text(CURVE_FIGURE.read_bytes()) if CURVE_FIGURE.exists() else "",
        validation=_beside([side.validation for side in sides]),
        test=_beside([side.test for side in sides]) if any(side.test for side in sides) else {},
        params=_rows([side.params for side in sides]),
        origin=_rows([side.origin for side in sides]),
    )


def _beside(runs: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """A row for each figure that a run has, a cell for each run."""
    known = [name for name in SHOWN if any(name in figures for figures in runs)]
    return {name: [number(figures[name]) if name in figures else "–" for figures in runs] for name in known}


def _rows(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for values in runs for name in values)
    return {name: [_said(values[name]) if name in values else "–" for values in runs] for name in names}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _answer() -> list[str]:
    """The study's answer in words; nothing where no study was run here."""
    if not BEST.exists():
        return []
    import pandas as pd

    from pipeline.stages.study import words
    from pipeline.stages.study.files import read_setting
    from pipeline.study.uses import answers

    setting = read_setting(needs_files=False)
    try:
        seeds = pd.read_csv(SEEDS)
        return words.sentences(answers(seeds, setting), seeds, setting)
    except (OSError, IndexError, *BROKEN) as error:
        raise UserError(f"{SEEDS} is no table of this study ({error}): run `dvc repro tune`") from None


def _trials() -> dict[str, Any]:
    """The table of the study's trials and their samples, as the page shows them."""
    import pandas as pd

    from pipeline.stages.playing import of_study
    from pipeline.stages.study import words
    from pipeline.stages.study.files import read_setting
    from pipeline.study.uses import answers

    setting, pictures = read_setting(needs_files=False), of_study()
    seeds, table = pd.read_csv(SEEDS), pd.read_csv(TRIALS)
    headings, rows = words.table(answers(seeds, setting), table, setting)
    return {"headings": headings, "rows": rows, "pictures": pictures}


def _side_of(run: str) -> Side:
    if run == WORKSPACE:
        return _workspace()
    if run == STUDY:
        from pipeline.stages.saved import load_json

        best = load_json(BEST, "run `dvc repro tune` first", "run_id", "study")
        return replace(_other(f"runs:/{best['run_id']}"), name=f"the best of study {best['study']}")
    if run.startswith("runs:/") or run.endswith(".safetensors"):
        return _other(run)
    from pipeline.tracking.local import find, reading_uri

    pointer = of_revision(run, RUN)
    found = find(reading_uri(Path()), pointer.get("run_id", ""), pointer.get("run_key", "")) if pointer else None
    if found is None:
        raise UserError(f"{run} has no run in MLflow: give its safetensors file, or `dvc exp run` it again")
    return replace(_other(f"runs:/{found.info.run_id}"), name=run)


def _workspace() -> Side:
    from pipeline.measure.doctor import Case
    from pipeline.stages.saved import load_json, load_pointer

    remedy = "run `dvc repro evaluate` first"
    validation, test = (load_json(path, remedy, "protocol") for path in (VALIDATION, METRICS))
    pointer = load_pointer(RUN)
    aim, params, architecture, strip = _opened(MODEL)
    try:
        protocol = validation["protocol"]
        if protocol["kl_weight"] != aim.kl_weight:
            raise UserError(f"{VALIDATION} is of another model than {MODEL}: run `dvc repro evaluate`")
        figures = flattened(validation)
        case = Case(aim, figures, doctor._history(params), architecture.prior, architecture.conditioning)
        said = f"measured on {protocol['images']:,} {protocol['split']} images"
        hashes = {f"{name} hash": str(value) for name, value in pointer.get("hashes", {}).items()}
        found = flattened(test)
    except BROKEN as error:
        raise UserError(f"{VALIDATION} or {METRICS} lacks a figure ({error!r}): run `dvc repro evaluate`") from None
    origin = {**hashes, "MLflow run": pointer["run_id"], "code": _revision()}
    per_class = _table(PER_CLASS) if PER_CLASS.exists() else None
    return _side(WORKSPACE, said, case, per_class, found, params, origin, MODEL, strip)


def _other(run: str) -> Side:
    """A file, which is measured here, or a run of MLflow, whose recorded figures are read."""
    path = model_file(run)
    _, params, _, strip = _opened(path)
    gathered = doctor.of_run(run) if run.startswith("runs:/") else doctor.of_file(path)
    measured, per_class, test, origin = gathered.measured, gathered.per_class, {}, {}
    if run.startswith("runs:/"):
        from pipeline.tracking.local import artifact, named

        found, store = named(run, Path())
        tags, run_id = found.data.tags, found.info.run_id
        origin = {name.replace("_", " "): tags[name] for name in ("data_hash", "params_hash") if name in tags}
        origin |= {"MLflow run": run_id, "code": tags.get("mlflow.source.git.commit", "not recorded")}
        test = {name.removeprefix("test/"): one for name, one in found.data.metrics.items() if name.startswith("test/")}
        with tempfile.TemporaryDirectory(prefix="cvae-") as folder:
            table = artifact(found, store, PER_CLASS.name, Path(folder))
            per_class = _table(table) if table else per_class
        if per_class is None:
            per_class = doctor.of_file(path).per_class
            measured += "; each digit is measured here"
    return _side(gathered.name, measured, gathered.case, per_class, test, params, origin, path, strip)


def _opened(path: Path) -> tuple[Any, dict[str, Any], Any, str]:
    """What a model aims at, its params, its architecture, and its strip as a PNG in base64. Raises UserError."""
    from pipeline.base.params import parse
    from pipeline.model.samples import strip
    from pipeline.show.page import png
    from pipeline.stages.saved import load_cvae
    from pipeline.training.objective import ObjectiveParams

    model, density, params = load_cvae(path)
    aim = parse(ObjectiveParams, params["objective"], f"{path}: objective")
    return aim, params, model.architecture, png(strip(model, density))


def _side(
    name: str, measured: str, case: "Case", per_class: "pd.DataFrame | None", test: Mapping[str, float],
    params: Mapping[str, Any], origin: Mapping[str, str], path: Path, strip: str,
) -> Side:  # fmt: skip
    from pipeline.base.params import read
    from pipeline.cli.findings import words
    from pipeline.measure.doctor import diagnose
    from pipeline.model.cvae import as_given
    from pipeline.tracking.about import changed

    diagnosis = diagnose(case)
    findings = [
        {"name": one.name, "severity": one.severity, **words(case, one)._asdict()} for one in diagnosis.findings
    ]
    given = {**params, "model": as_given(params["model"], read()["model"])}
    differing = changed({f"{section}.{key}": v for section, values in given.items() for key, v in values.items()})
    options = " ".join(f"-S {shlex.quote(f'{key}={_said(value)}')}" for key, value in differing.items())
    commands = [f"dvc exp run evaluate {options}", "cvae report --html report.html"]
    code = origin.get("code", "").split()
    if code and len(code[0]) == 40:
        commands.insert(0, f"git checkout {code[0]}")
    return Side(
        name=name,
        measured=measured,
        kl_weight=f"{case.aim.kl_weight:g}",
        validation=case.figures,
        test=test,
        per_class={} if per_class is None else _digits(per_class),
        verdict=diagnosis.verdict,
        findings=findings,
        unchecked=", ".join(f"{check} (lacks {figure})" for check, figure in diagnosis.unchecked.items()),
        strip=strip,
        params=differing,
        train=params.get("train", {}),
        origin={**origin, "weights": f"{path.name}, SHA-256 {sha256(path)}"},
        commands="\n".join(commands),
    )


def flattened(figures: Mapping[str, Any]) -> dict[str, float]:
    """`{"fitted": {"frechet": 3.6}}` as `{"fitted/frechet": 3.6}`, without protocol and deviations."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            if name not in ("protocol", "standard_deviation"):
                flat |= {f"{name}/{inner}": float(one) for inner, one in value.items()}
        else:
            flat[name] = float(value)
    return flat


def _table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_csv(path)
        return table.astype(dict.fromkeys(OF_SAMPLES, float))
    except (OSError, *BROKEN) as error:
        raise UserError(f"{path} is no table of digits ({error}): run `dvc repro evaluate`") from None


def _digits(table: "pd.DataFrame") -> dict[str, list[str]]:
    """Rows of figures, a cell for each digit. table: a row for each sampler and digit."""
    rows = {}
    for sampler in ("fitted", "prior"):
        of_sampler = table[table["sampler"] == sampler].sort_values("digit")
        for name in ("class_accuracy", "diversity", "frechet"):
            rows[f"{sampler}/{name}"] = [number(value) for value in of_sampler[name].tolist()]
    return rows


def _revision() -> str:
    """The git revision of the code, and whether files differ from it."""
    try:
        run = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "not in git"
    return f"{commit}{' with changes that are not committed' if dirty else ''}"

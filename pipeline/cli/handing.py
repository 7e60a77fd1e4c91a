"""`cvae report --html`: one HTML file of the workspace or of several runs. Its templates are in the folder handon/."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.base.console import number, warn
from pipeline.base.errors import UserError
from pipeline.base.files import sha256, write_text
from pipeline.base.paths import BEST, CURVE, CURVE_FIGURE, METRICS, MODEL, PER_CLASS, RUN, SEEDS, TRIALS, VALIDATION
from pipeline.cli import doctor
from pipeline.cli.options import WORKSPACE, model_file, of_revision
from pipeline.stages.saved import Saved, check_curve, load_cvae, load_json, load_pointer

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "handon"
STUDY = "study"
OF_FIT = ("reconstruction", "kl", "elbo", "nll", "effective_samples", "active_units", "bits_per_dimension")
OF_SAMPLES = ("class_accuracy", "diversity", "frechet", "coverage")
SHOWN = (*OF_FIT, *(f"{sampler}/{name}" for sampler in ("prior", "fitted", "real") for name in OF_SAMPLES))
BROKEN = (KeyError, TypeError, ValueError, AttributeError)  # what a report of something else raises


class Side(NamedTuple):
    """A run of the page, with its figures on test, and where it comes from, as far as that is recorded."""

    known: doctor.Gathered
    saved: Saved
    test: Mapping[str, float]
    origin: Mapping[str, str]


def write(out: Path, runs: Sequence[str]) -> None:
    """Writes the page of the runs: files, runs:/RUN_ID, experiments, `study`, or `workspace`, the default.

    Raises UserError.
    """
    from pipeline.cli.findings import words
    from pipeline.measure.doctor import diagnose
    from pipeline.model.samples import strip
    from pipeline.show.page import png, text

    if out.suffix != ".html":
        raise UserError(f"--html {out} must end in .html")
    sides = [_side_of(run) for run in runs or [WORKSPACE]]
    named = {side.known.name: side for side in sides}
    notes = unlike(
        {name: side.saved.params.get("train", {}) for name, side in named.items()},
        {name: side.origin.get("data hash") for name, side in named.items()},
    )
    html = rendered(
        "report.html",
        title=f"Report: {sides[0].known.name}" if len(sides) == 1 else f"Report: {len(sides)} runs side by side",
        runs=sides,
        words=words,
        diagnose=diagnose,
        digits=_digits,
        strip=lambda saved: png(strip(saved.model, saved.density)),
        commands=_commands,
        unlike=notes,
        study=SEEDS,
        **_study(with_trials=STUDY in runs),
        curve=text(CURVE_FIGURE.read_bytes()) if _has_curve() else "",
        validation=_beside([side.known.case.figures for side in sides], number, SHOWN),
        test=_beside([side.test for side in sides], number, SHOWN),
        params=_beside([_differing(side) for side in sides], _said),
        origin=_beside([side.origin for side in sides], _said),
    )
    write_text(out, html)
    for sentence in notes:
        warn(sentence)
    print(f"{out} written, {len(html) / 1e6:.1f} MB: open it in a browser")


def _has_curve() -> bool:
    """Whether there is a curve that may be shown, of the same data as the study beside it; says where it is not."""
    try:
        if CURVE_FIGURE.exists() and BEST.exists():
            check_curve(CURVE, load_json(BEST, "run `dvc repro tune`").get("data"), BEST)
        return CURVE_FIGURE.exists()
    except UserError as error:
        warn(f"the report has no curve: {error}")
        return False


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


def grouped(values: Mapping[str, str | None]) -> dict[str | None, list[str]]:
    """The names that have each value."""
    groups: dict[str | None, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def rendered(name: str, **values: Any) -> str:
    """A template of handon/, filled in; in HTML, values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from pipeline.show import page

    made = Environment(
        loader=FileSystemLoader([TEMPLATES, page.TEMPLATES]), autoescape=name.endswith(".html"),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return made.get_template(name).render(**values).lstrip("\n")


def _beside(
    runs: Sequence[Mapping[str, Any]], form: Callable[[Any], str], names: Sequence[str] = ()
) -> dict[str, list[str]]:
    """A row for each of the names, or for all, that a run has; a cell for each run."""
    known = dict.fromkeys(name for values in runs for name in values)
    rows = [name for name in names if name in known] if names else known
    return {name: [form(values[name]) if name in values else "–" for values in runs] for name in rows}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _study(with_trials: bool) -> dict[str, Any]:
    """The study's answer in words and, if asked for, the table of its trials and their samples. Raises UserError."""
    if not BEST.exists():
        return {"answer": [], "trials": None}
    import pandas as pd

    from pipeline.stages.playing import of_study
    from pipeline.stages.study import words
    from pipeline.stages.study.files import read_setting
    from pipeline.study.uses import answers

    setting, trials = read_setting(needs_files=False), None
    try:
        seeds = pd.read_csv(SEEDS)
        found = answers(seeds, setting)
        said = words.sentences(found, seeds, setting)
    except (OSError, IndexError, *BROKEN) as error:
        raise UserError(f"{SEEDS} is no table of this study ({error}): run `dvc repro tune`") from None
    if with_trials:
        pictures = of_study()
        headings, rows = words.table(found, pd.read_csv(TRIALS), setting)
        trials = {"headings": headings, "rows": [(row[0], row[1:]) for row in rows], "pictures": pictures}
    return {"answer": said, "trials": trials}


def _side_of(run: str) -> Side:
    if run == WORKSPACE:
        return _workspace()
    if run == STUDY:
        best = load_json(BEST, "run `dvc repro tune` first", "run_id", "study")
        return _other(f"runs:/{best['run_id']}", f"the best of study {best['study']}")
    if run.startswith("runs:/") or run.endswith(".safetensors"):
        return _other(run)
    from pipeline.tracking.local import find, reading_uri

    pointer = of_revision(run, RUN)
    found = find(reading_uri(), pointer.get("run_id", ""), pointer.get("run_key", "")) if pointer else None
    if found is None:
        raise UserError(f"{run} has no run in MLflow: give its safetensors file, or `dvc exp run` it again")
    return _other(f"runs:/{found.info.run_id}", run)


def _workspace() -> Side:
    remedy = "run `dvc repro evaluate` first"
    validation, test = (load_json(path, remedy, "protocol") for path in (VALIDATION, METRICS))
    pointer, saved = load_pointer(RUN), load_cvae(MODEL)
    try:
        protocol, case = validation["protocol"], doctor.case_of(saved, MODEL, flattened(validation))
        if protocol["kl_weight"] != case.aim.kl_weight:
            raise UserError(f"{VALIDATION} is of another model than {MODEL}: run `dvc repro evaluate`")
        measured = f"measured on {protocol['images']:,} {protocol['split']} images"
        of_test = flattened(test)
    except BROKEN as error:
        raise UserError(f"{VALIDATION} or {METRICS} lacks a figure ({error!r}): run `dvc repro evaluate`") from None
    origin = {f"{name} hash": str(value) for name, value in pointer.get("hashes", {}).items()}
    origin |= {"MLflow run": pointer["run_id"], "code": _revision(), "weights": _weights(MODEL)}
    per_class = _table(PER_CLASS) if PER_CLASS.exists() else None
    return Side(doctor.Gathered(WORKSPACE, measured, case, [], per_class), saved, of_test, origin)


def _other(run: str, name: str = "") -> Side:
    """A file, which is measured here, or a run of MLflow, whose recorded figures are read."""
    path = model_file(run)
    if not run.startswith("runs:/"):
        return Side(doctor.of_file(path), load_cvae(path), {}, {"weights": _weights(path)})
    from pipeline.tracking.local import artifact, named

    known, (found, store) = doctor.of_run(run), named(run)
    tags = found.data.tags
    origin = {kind.replace("_", " "): tags[kind] for kind in ("data_hash", "params_hash") if kind in tags}
    origin |= {"MLflow run": found.info.run_id, "code": tags.get("mlflow.source.git.commit", "not recorded")}
    origin |= {"weights": _weights(path)}
    test = {figure.removeprefix("test/"): one for figure, one in found.data.metrics.items() if figure[:5] == "test/"}
    with tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        if table := artifact(found, store, PER_CLASS.name, Path(folder)):
            known = known._replace(per_class=_table(table))
    if known.per_class is None:
        here = f"{known.measured}; each digit is measured here"
        known = known._replace(measured=here, per_class=doctor.of_file(path).per_class)
    return Side(known._replace(name=name or known.name), load_cvae(path), test, origin)


def _weights(path: Path) -> str:
    return f"{path.name}, SHA-256 {sha256(path)}"


def _differing(side: Side) -> dict[str, Any]:
    """The params of a run that differ from params.yaml as committed."""
    from pipeline.base.params import flat, read
    from pipeline.model.cvae import as_given
    from pipeline.tracking.about import changed

    params = side.saved.params
    return changed(flat(params | {"model": as_given(params["model"], read()["model"])}))


def _commands(side: Side) -> list[str]:
    """What trains and measures the same model."""
    options = " ".join(f"-S {shlex.quote(f'{key}={_said(value)}')}" for key, value in _differing(side).items())
    commit = side.origin.get("code", "").partition(" ")[0]
    checkout = [f"git checkout {commit}"] if len(commit) == 40 else []
    return [*checkout, f"dvc exp run evaluate {options}", "cvae report --html report.html"]


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
        return pd.read_csv(path).astype({"sampler": str} | dict.fromkeys(OF_SAMPLES, float)).sort_values("digit")
    except (OSError, *BROKEN) as error:
        raise UserError(f"{path} is no table of digits ({error}): run `dvc repro evaluate`") from None


def _digits(table: "pd.DataFrame") -> dict[str, list[str]]:
    """Rows of figures, a cell for each digit. table: a row for each sampler and digit."""
    return {
        f"{sampler}/{name}": [number(value) for value in table[name][table["sampler"] == sampler].tolist()]
        for sampler in ("fitted", "prior")
        for name in ("class_accuracy", "diversity", "frechet")
    }


def _revision() -> str:
    """The git revision of the code, and whether files differ from it."""
    words = ["--always", "--abbrev=40", "--exclude=*"]
    dirty = "--dirty= with changes that are not committed"
    try:
        done = subprocess.run(
            ["git", "describe", *words, dirty], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "not in git"
    return done.stdout.strip()

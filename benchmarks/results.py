"""benchmarks/results.json, to which each program of `make bench` adds its part, and the bars."""

import contextlib
import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from pipeline.base.errors import UserError
from pipeline.base.files import write_json

FOLDER = Path("benchmarks")
Bars = dict[str, tuple[float, str]]  # name: bar, and "least" or "most"


def path(*, quick: bool) -> Path:
    """The results file. Git ignores that of a quick run."""
    return FOLDER / ("results-quick.json" if quick else "results.json")


def signed(device: torch.device) -> dict[str, Any]:
    """Date, commit, machine and versions, which each part carries."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": machine.describe(device),
        "versions": machine.versions(),
    }


def add(where: Path, part: dict[str, Any]) -> None:
    """Replaces the entries of the file that `part` names and keeps the rest. `bars` are merged."""
    found: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(where.read_text(encoding="utf-8"))
    bars = found.get("bars", {}) | part.get("bars", {})
    write_json(where, found | part | ({"bars": bars} if bars else {}))


def verdicts(figures: dict[str, float | None], bars: Bars) -> dict[str, dict[str, Any]]:
    """Each figure beside its bar. `met` is None if it was not measured."""
    rows: dict[str, dict[str, Any]] = {}
    for name, (bar, kind) in bars.items():
        value = figures.get(name)
        met = None if value is None else value >= bar if kind == "least" else value <= bar
        rows[name] = {"value": value, "bar": bar, "kind": kind, "met": met}
    return rows


def show(rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'':36} {'measured':>12} {'bar':>14}")
    for name, row in rows.items():
        value = "not measured" if row["value"] is None else f"{row['value']:,.2f}"
        word = {None: "", True: "met", False: "missed"}[row["met"]]
        print(f"{name:36} {value:>12} {'≥' if row['kind'] == 'least' else '≤'} {row['bar']:12,.2f}  {word}")


def between(path: Path, begin: str, end: str, inside: str) -> str:
    """The text of a page with `inside` between its two marks. Raises UserError where it has none."""
    before, first, rest = path.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UserError(f"{path} has lost its marks: put back the lines {begin} and {end}")
    return f"{before}{begin}\n{inside}\n{end}{after}"


def _commit() -> str | None:
    """The commit of the working copy, with a + if files have changed."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""Writes reports/explore.html, the page to play with: any KL weight by a slider. Half a minute on two cores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import replacing
from pipeline.base.paths import BEST, CURVE, CURVE_TABLE, EXPLORE, PREPARED, SPECTRUM, STUDY_SHEETS, TRIALS
from pipeline.measure.evaluator import QUICK_TRAIN
from pipeline.show.page import page, text
from pipeline.stages.playing import content
from pipeline.stages.saved import load_curve, load_splits


def main() -> None:
    write_page(of_study())


def write_page(runs: Sequence[Mapping[str, str]], out: Path = EXPLORE) -> None:
    """Writes the page with these runs side by side, each with name, words and png. Raises UserError."""
    model, params = load_curve(CURVE)
    train, validation = load_splits(PREPARED, "train", "validation")
    curve = pd.read_csv(_there(CURVE_TABLE, "curve"))
    spectrum, best = (_json(_there(path, stage)) for path, stage in ((SPECTRUM, "spectrum"), (BEST, "tune")))
    html = page(content(model, params, train[:QUICK_TRAIN], validation, curve, spectrum, best, runs))
    with replacing(out) as part:
        part.write_text(html, encoding="utf-8")
    print(f"{out} written, {len(html) / 1e6:.1f} MB: open it in a browser")


def of_study() -> list[dict[str, str]]:
    """The samples of the study's trials, from the lowest weight to the highest."""
    frechet = pd.read_csv(_there(TRIALS, "tune")).set_index("trial")["validation/fitted/frechet"]
    found = []
    for path in STUDY_SHEETS.glob("*.png"):
        number, weight = path.stem.split("_")
        words = f"trial {number}, fitted frechet {frechet[int(number)]:.3g}"
        found.append((float(weight), {"name": f"β = {weight}", "words": words, "png": text(path.read_bytes())}))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def _there(path: Path, stage: str) -> Path:
    if not path.exists():
        raise UserError(f"{path} not found: run `dvc repro {stage}` first")
    return path


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    console.run(main)

"""What a study leaves in reports/study: its table, its best trial and its figures."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.base import console
from pipeline.base.files import replacing, write_json
from pipeline.base.paths import BEST, STUDY_FIGURES, TRIALS
from pipeline.measure.metrics import LOWER_IS_BETTER
from pipeline.show.study import study_figures
from pipeline.show.style import save_all
from pipeline.study.trials import Chosen, Trials


def export(study: Trials, real: Mapping[str, float]) -> Chosen:
    """Writes the files and returns the best trial; real: the sample metrics of real images."""
    best, table, tune = study.choose(), study.table(), study.setting.tune
    if not best.feasible:
        console.warn(
            f"no complete trial reached a class_accuracy of {tune.least_class_accuracy} "
            "(tune.least_class_accuracy): best.json names the trial that came nearest"
        )
    with replacing(TRIALS) as part:
        table.to_csv(part, index=False)
    summary = study.summary(real)
    write_json(BEST, summary)
    objectives = {study.setting.figure(name): name in LOWER_IS_BETTER for name in tune.objectives}
    figures = study_figures(table, objectives, real, best.kl_weight, summary["front"], study.importances(), study.strip)
    save_all(figures, STUDY_FIGURES)
    return best


def exported(name: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """The summary and the table that `export` wrote for the study `name`; None where the files are of another.

    A fresh clone has these files, but not the database.
    """
    try:
        best = json.loads(BEST.read_text(encoding="utf-8"))
        return (best, pd.read_csv(TRIALS)) if best["study"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

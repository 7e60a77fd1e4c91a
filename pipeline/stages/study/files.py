"""What a study starts from, and what it leaves in reports/study: its table, its best trial and its figures."""

import json
from collections import Counter
from collections.abc import Mapping

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, sha256, write_json
from pipeline.base.params import load, load_key
from pipeline.base.paths import BEST, JUDGE, PREPARED, STUDY_FIGURES, TRIALS
from pipeline.data.splits import Split
from pipeline.measure.evaluator import QUICK_TRAIN, Draws, Evaluator
from pipeline.model.cvae import ModelParams, resolve
from pipeline.model.density import Components
from pipeline.show.study import study_figures
from pipeline.show.style import save_all
from pipeline.stages.saved import load_judges, load_splits
from pipeline.study.queue import Chosen, Study, state
from pipeline.study.space import Setting, TuneParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams


def read_setting() -> Setting:
    """The study of params.yaml. Raises UserError where a value is wrong or a stage has not run yet."""
    for path, stage in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {stage}` first")
    return Setting(
        tune=load(TuneParams, "tune"),
        architecture=resolve(load(ModelParams, "model")),
        aim=load(ObjectiveParams, "objective"),
        train=load(TrainParams, "train"),
        components=load_key(Components, "sample", "components"),
        nll_draws=load_key(Draws, "evaluate", "nll_draws"),
        hashes={"data": sha256(PREPARED), "judge": sha256(JUDGE)},
    )


def read_bench(setting: Setting) -> tuple[Split, Evaluator]:
    """The training split, and what measures on the validation split, on the device of train.device."""
    device = pick_device(setting.train.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    judges = load_judges(JUDGE, device)
    return train, Evaluator(judges, validation, train[:QUICK_TRAIN], setting.aim.pixels, setting.train.seed)


def export(study: Study, real: Mapping[str, float]) -> Chosen:
    """Writes the files and returns the best trial; real: the sample metrics of real images."""
    best, table, tune = study.choose(), study.table(), study.setting.tune
    if not best.feasible:
        console.warn(
            f"no complete trial reached a class_accuracy of {tune.least_class_accuracy} "
            "(tune.least_class_accuracy): best.json names the trial that came nearest"
        )
    with replacing(TRIALS) as part:
        table.to_csv(part, index=False)
    front = [trial.number for trial in study.front()]
    protocol = {
        "split": "validation",
        "objectives": list(tune.objectives),
        "sampler_of_latents": tune.sampler_of_latents,
        "epochs": tune.epochs,
        "trials": dict(Counter(state(trial).lower() for trial in study.trials())),
    }
    summary = {
        "kl_weight": best.kl_weight,
        "trial": best.number,
        "values": best.values,
        "run_id": best.run_id,
        "params": best.params,
        "feasible": best.feasible,
        "front": front,
        "study": study.name,
        "protocol": protocol,
        "real": dict(real),
    }
    write_json(BEST, summary)
    objectives = study.setting.objectives()
    figures = study_figures(table, objectives, real, best.kl_weight, front, study.importances(), study.strip)
    save_all(figures, STUDY_FIGURES)
    return best


def exported(name: str) -> tuple[Chosen, list[int], pd.DataFrame] | None:
    """The best trial, the front and the table that `export` wrote for the study `name`; None if it was another study.

    A fresh clone has these files, but not the database.
    """
    try:
        kept = json.loads(BEST.read_text(encoding="utf-8"))
        best = Chosen(kept["trial"], kept["values"], kept["params"], kept["feasible"])
        return (best, kept["front"], pd.read_csv(TRIALS)) if kept["study"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
